"""What a step takes of a CPU process: peak memory beside its prediction, and processor time, under several settings.

Each setting is a number of environment variables, such as those of oneDNN and glibc. Every run is a process of its
own, `frostline train`, and the settings take turns (A B A B), so that what else the machine does falls on all alike.
The figures are medians over the rounds, with the smallest and the largest; the time is compared within each round.

    python benchmarks/step_memory.py [--rounds 3] [--cache on] [--settings torch kernels=32 ...] [--shapes]

`torch` is what torch does by itself. `--shapes` counts the distinct matrix products of one run instead.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from frostline.tasks import load_task

ROWS = 800
SETTINGS = ("max_steps=60", "per_device_train_batch_size=8", "bf16=true", "threads=1", "generate_rows=0")
SHORT = {
    "kernels": ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"),
    "onednn": ("ONEDNN_PRIMITIVE_CACHE_CAPACITY",),
    "ideep": ("LRU_CACHE_CAPACITY",),
    "mmap": ("MALLOC_MMAP_THRESHOLD_",),
    "trim": ("MALLOC_TRIM_THRESHOLD_",),
    "arenas": ("MALLOC_ARENA_MAX",),
}
TORCH = dict.fromkeys(SHORT["kernels"], "1024")


def environment(setting: str) -> dict[str, str]:
    """The variables of a setting: `torch`, or short names with values, such as `kernels=32,mmap=1048576`."""
    if setting == "torch":
        return TORCH
    parts = dict(part.split("=") for part in setting.split(","))
    return {**TORCH, **{name: value for short, value in parts.items() for name in SHORT.get(short, (short,))}}


def write_task(name: str, folder: Path) -> Path:
    """The first rows of a built-in task, and few to evaluate."""
    task = load_task(name)
    folder.mkdir()
    for split, rows in (("train", task.train[:ROWS]), ("dev", task.eval[:8])):
        lines = [json.dumps({"prompt": row.text, "completion": row.target}) + "\n" for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def train(given: argparse.Namespace, task: Path, out: Path, setting: str) -> dict[str, float]:
    """One run: its peak, the prediction, and the processor time of a step."""
    command = [sys.executable, "-m", "frostline", "train", "--model", given.model, "--task", str(task)]
    command += ["--strategy", given.strategy, "--out", str(out), *SETTINGS, f"activation_cache={given.cache}"]
    # The caching pass is in memory of the same process: without the states of an earlier run, it is in every run.
    variables = {**os.environ, **environment(setting), "FROSTLINE_CACHE": f"{out}-cache"}
    done = subprocess.run([*command, *given.more], env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    if given.shapes:
        return shapes(done.stdout)
    record = json.loads((out / "run.json").read_text())
    measured, predicted = record["measured"], record["predicted"]
    return {
        "peak": measured["peak_memory_bytes"] / 2**20,
        "predicted": predicted["peak_memory_bytes"] / 2**20,
        "cpu": measured["cpu_seconds_per_step"],
    }


def shapes(log: str) -> dict[str, float]:
    """How many matrix products oneDNN ran, and how many distinct ones."""
    products = [line.split(",") for line in log.splitlines() if ",exec,cpu,matmul," in line]
    distinct = Counter((fields[8], fields[-2]) for fields in products)
    return {"products": len(products), "distinct": len(distinct)}


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base16")
    parser.add_argument("--task", default="webnlg", help="A built-in task.")
    parser.add_argument("--strategy", default="bot75")
    parser.add_argument("--cache", choices=("on", "off"), default="on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", default=["torch", "kernels=64", "kernels=32", "kernels=16"])
    parser.add_argument("--shapes", action="store_true")
    parser.add_argument("more", nargs="*", help="Settings of the run, key=value, after --.")
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {setting: [] for setting in given.settings}
    with tempfile.TemporaryDirectory(prefix="step-memory-") as folder:
        task = write_task(given.task, Path(folder) / "task")
        if given.shapes:
            os.environ["ONEDNN_VERBOSE"] = "1"
            print(train(given, task, Path(folder) / "shapes", "torch"))
            return
        for number in range(given.rounds):
            for setting, runs in found.items():
                runs.append(train(given, task, Path(folder) / f"{setting} {number}", setting))
                print(number, setting, runs[-1], file=sys.stderr, flush=True)
    print("| setting | peak, MiB | predicted | ratio | CPU a step, ms | time × |")
    print("|---|--:|--:|--:|--:|--:|")
    for setting, runs in found.items():
        peaks, first = [run["peak"] for run in runs], found[given.settings[0]]
        times = [run["cpu"] / other["cpu"] for run, other in zip(runs, first, strict=True)]
        predicted = runs[0]["predicted"]
        ratio, cpu = statistics.median(peaks) / predicted, [run["cpu"] * 1000 for run in runs]
        row = (setting, spread(peaks, 0), f"{predicted:.0f}", f"{ratio:.2f}", spread(cpu, 1), spread(times, 3))
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
