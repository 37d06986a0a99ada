"""Many rows, and one very long row: seconds to the first optimizer step, and the peak of memory.

Each run is `frostline train` in a process of its own on stories260K, first with an empty FROSTLINE_CACHE ("cold"), then
again with what that left ("warm"). At most 200 rows are evaluated. Memory is private and anonymous (RssAnon).

python benchmarks/size.py [--rows 300000 3000000] [--kind language] [--cache auto] [--long] [--profile]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = re.findall("[a-z]+", Path(__file__).read_text(encoding="utf-8"))
CHILD = """
import cProfile, pstats, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
first = []
register_optimizer_step_post_hook(lambda *_: first or first.extend((time.time(), time.process_time())))
from frostline.cli.main import main
profile = cProfile.Profile() if sys.argv[1] == "profile" else None
sys.argv[1:] = sys.argv[2:]
if profile: profile.enable()
try:
    main()
finally:
    if profile:
        profile.disable()
        pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(70)
    print("first step at", *first, file=sys.stderr)
"""


def write_rows(path: Path, count: int, kind: str) -> None:
    draw = random.Random(17)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = f"{number} {' '.join(draw.choices(WORDS, k=6))}"
            row = {"text": text, "label": f"class {number % 4}"} if kind == "classification" else {"text": text}
            file.write(json.dumps(row) + "\n")


def write_long(folder: Path, spaced: bool) -> dict[str, Path]:
    """Ten short rows and one of 50 MB, as JSONL and as CSV."""
    draw = random.Random(17)
    text = " ".join(draw.choices(WORDS, k=8_000_000))[: 50 * 10**6]
    text = text.ljust(50 * 10**6, "x") if spaced else "x" * len(text)
    rows = [" ".join(draw.choices(WORDS, k=8)) + f" {number}" for number in range(10)] + [text]
    what = f"50 MB row, {'words' if spaced else 'no spaces'}"
    jsonl, table = (folder / f"{spaced}.{suffix}" for suffix in ("jsonl", "csv"))
    jsonl.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([row] for row in rows)])
    return {f"{what}, JSONL": jsonl, f"{what}, CSV": table}


def run(
    data: Path, folder: Path, given: argparse.Namespace, settings: list[str]
) -> tuple[float, float, float, dict[str, float]]:
    """(Seconds to the first step, processor seconds of them, peak in MiB, seconds by phase)."""
    out = folder / f"run{time.time_ns()}"
    arguments = [
        *("train", f"model={given.model}", f"task={data}", f"out={out}", "strategy=bot50", "max_length=128"),
        *("per_device_train_batch_size=8", "data.max_eval_rows=200", f"activation_cache={given.cache}", *settings),
    ]
    begun = time.time()
    command = [sys.executable, "-c", CHILD, "profile" if given.profile else "plain", *arguments]
    environment = os.environ | {"FROSTLINE_CACHE": str(folder / "cache")}
    with (folder / "log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.02)
        log.seek(0)
        text = log.read()
    if process.returncode or given.profile:
        print(text)
    first, processor = map(float, text.partition("first step at ")[2].split()[:2])
    measured = json.loads((out / "run.json").read_text(encoding="utf-8"))["measured"]
    return first - begun, processor, peak / 2**10, measured.get("seconds", {})


def anonymous(pid: int) -> int:
    """Private anonymous memory of a process and the processes that it started, in KiB."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon"):
                total = int(line.split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except OSError:
        return total
    return total + sum(anonymous(int(child)) for child in children)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[300_000])
    parser.add_argument("--kind", choices=("language", "classification"), default="language")
    parser.add_argument("--cache", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--model", default=f"{os.environ.get('FROSTLINE_MODELS', 'models')}/stories260K")
    parser.add_argument("--long", action="store_true", help="also one row of 50 MB")
    parser.add_argument("--profile", action="store_true", help="print where a run's time goes")
    parser.add_argument("settings", nargs="*", help="settings of `frostline train`, such as max_steps=5")
    given = parser.parse_intermixed_args()
    settings = given.settings or ["max_steps=5"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files: dict[str, Path] = {}
        for count in given.rows:
            files[f"{count:,} rows"] = folder / f"{count}.jsonl"
            write_rows(files[f"{count:,} rows"], count, given.kind)
        if given.long:
            files |= write_long(folder, True) | write_long(folder, False)
        for what, path in files.items():
            for state in ("cold", "warm"):
                seconds, processor, peak, phases = run(path, folder, given, settings)
                shown = ", ".join(f"{phase} {spent:.1f}" for phase, spent in phases.items())
                first = f"first step after {seconds:.1f} s (processor {processor:.1f} s)"
                print(f"{what}, {state}: {first}, peak {peak:.0f} MiB  {shown}", flush=True)


if __name__ == "__main__":
    main()
