"""Kill real `frostline train` processes at random times, resume them, and compare the weights bit for bit.

Each job (a strategy with settings) first runs undisturbed. Then it runs again and is killed by SIGKILL, one to six
times: one time in four at a moment drawn from its whole length, start and evaluation included, else from what comes
after its first checkpoint. Then it is resumed until it ends. The
weights, the answers and the metrics have to be those of the undisturbed run, and nothing may be left that a kill
leaves.

`auto` chooses by times that it measures, so no two runs need to choose alike. Its trials stay in the cache: the
undisturbed run is made after the killed one, on its cache, and then makes no trials of its own.

python benchmarks/kills.py [--kills 100] [--seed 1] [--jobs bot50 packing ...]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from frostline.core.files import UNFINISHED
from frostline.core.locks import LOCK_FILE

SETTINGS = (
    "max_steps=12",
    "save_steps=2",
    "per_device_train_batch_size=4",
    "max_length=24",
    "learning_rate=1e-3",
    "bf16=false",
    "threads=1",
    "eval_steps=5",
    "generate_rows=2",
    "max_new_tokens=4",
)
JOBS = {
    "all": ("--strategy", "all", "save_total_limit=1"),
    "bot50": ("--strategy", "bot50", "activation_cache=on"),
    "bot50 without cache": ("--strategy", "bot50", "activation_cache=off", "gradient_accumulation_steps=2"),
    "streaming": ("--strategy", "bot50", "streaming=true"),
    "packing": ("--strategy", "bot50", "packing=true", "activation_cache=on"),
    "lora": ("--strategy", "lora"),
    "bot50+lora": ("--strategy", "bot50+lora", "activation_cache=on"),
    "adt-l50": ("--strategy", "adt-l50"),
    "flora": ("--strategy", "bot50", "optim=flora"),
    "hlpt": ("--strategy", "hlpt"),
    "auto": ("--strategy", "auto", "budget.time=25s", "max_steps=", "eval_steps=", "save_steps=25"),
    "study": ("--strategy", "bot50", "activation_cache=on"),
    # Plans that change, or that draw what runs: four changes at least in twelve steps.
    "lisa": ("--strategy", "lisa", "--set=every=3", "activation_cache=on"),
    "lisa, states kept": ("--strategy", "lisa", "--set=every=2", "keep_left_state=true"),
    "badam": ("--strategy", "badam", "--set=every=3"),
    "freezeout": ("--strategy", "freezeout", "activation_cache=on"),
    "autofreeze": ("--strategy", "autofreeze", "--set=decisions=4"),
    "gradual": ("--strategy", "gradual", "--set=every=3", "activation_cache=on"),
    "egeria": ("--strategy", "egeria", "--set=decisions=6", "--set=window=2", "--set=tolerance=0.8"),
    "smartfrz": ("--strategy", "smartfrz", "--set=decisions=4"),
    "adapterdrop": ("--strategy", "adapterdrop"),
    "layerdrop": ("--strategy", "layerdrop"),
    "unipelt": ("--strategy", "unipelt"),
    "lisa+lora": ("--strategy", "lisa+lora", "--set=every=3"),
}
MEASURED = ("auto",)


@dataclass(frozen=True)
class Job:
    """A command that trains, and where it leaves its run."""

    name: str
    model: str
    task: Path

    def command(self, out: Path, *, resume: bool) -> list[str]:
        """The command line. A study is called again as it was."""
        start = [sys.executable, "-m", "frostline"]
        if self.name != "study":
            given = ["--model", self.model, "--task", str(self.task), *_settings(JOBS[self.name])]
            return [*start, "train", *given, "--out", str(out), *(["--resume"] if resume else [])]
        settings = dict(setting.split("=") for setting in (*SETTINGS, *JOBS[self.name][2:]))
        study = out.with_suffix(".study.json")
        strategies = [JOBS[self.name][1], "head"]
        grid = {"models": [self.model], "tasks": [str(self.task)], "strategies": strategies, "baseline": None}
        study.write_text(json.dumps({**grid, "config": {k: json.loads(_json(v)) for k, v in settings.items()}}))
        return [*start, "study", str(study), "--out", str(out)]

    def start(self, out: Path, cache: Path, *, resume: bool = False) -> subprocess.Popen[str]:
        """The process."""
        return subprocess.Popen(
            self.command(out, resume=resume),
            env={**os.environ, "FROSTLINE_CACHE": str(cache)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a process that has to end well."""
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(process.args)}\nended with {process.returncode}: {said}")  # type: ignore[arg-type]


def killed_after(process: subprocess.Popen[str], seconds: float) -> bool:
    """Whether it was still running then, and was killed."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    if process.returncode:
        raise SystemExit(f"{' '.join(process.args)}\nended with {process.returncode}")  # type: ignore[arg-type]
    return False


def is_finished(out: Path) -> bool:
    return (out / "run.json").is_file() and json.loads((out / "run.json").read_text())["status"] == "finished"


def resumes(out: Path) -> bool:
    return (out / "run.json").is_file() or (out / "trials.json").is_file()


def phase(out: Path) -> str:
    """What a run was at when it was killed."""
    marks = {"judging": "delta.safetensors", "training": "run.json", "trials": "trials.json"}
    return next((name for name, mark in marks.items() if (out / mark).is_file()), "start")


def first_checkpoint(out: Path) -> float:
    """When the first checkpoint of a run was written."""
    return min(place.stat().st_mtime for place in out.rglob("checkpoint-*"))


def differences(whole: Path, out: Path) -> list[str]:
    """What a resumed run left that is not what the undisturbed one left."""
    found = []
    for delta in sorted(whole.rglob("delta.safetensors")):
        other = out / delta.relative_to(whole)
        if "checkpoint-" in str(other.parent.name):
            continue
        before, after = (
            {n: t.view(torch.uint8).numpy().tobytes() for n, t in load_file(place).items()} for place in (delta, other)
        )
        found += [] if before == after else [f"{other}: weights"]
        records = [json.loads((place.parent / "run.json").read_text())["metrics"] for place in (delta, other)]
        found += [f"{other}: {part}" for part in ("before", "after") if records[0][part] != records[1][part]]
        answers = [(place.parent / "predictions.jsonl").read_bytes() for place in (delta, other)]
        found += [f"{other}: answers"] if answers[0] != answers[1] else []
    left = [path for path in out.rglob("*") if path.name == LOCK_FILE or path.name.startswith(UNFINISHED)]
    return found + [f"{path}: left" for path in left]


def write_task(folder: Path, rows: int = 400) -> Path:
    """A small generation task."""
    folder.mkdir()
    for split, count in (("train", rows), ("dev", 8)):
        said = [(f"Tom saw {i} dogs", f"He was {('sad', 'glad')[i % 2]}.") for i in range(count)]
        lines = [{"prompt": prompt, "completion": completion} for prompt, completion in said]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _settings(own: tuple[str, ...]) -> list[str]:
    """A job's own words and the usual settings, with its own in place of those of the same name; `name=`: not given."""
    words = [word for word in own if "=" not in word or word.startswith("--")]
    named = dict(word.split("=", 1) for word in (*SETTINGS, *own) if word not in words)
    return [*words, *(f"{name}={value}" for name, value in named.items() if value)]


def _json(text: str) -> str:
    return text if text in ("true", "false") or text[0].isdigit() else json.dumps(text)


def run(kills: int, seed: int, names: list[str], model: str, folder: Path) -> Counter[str]:
    """Kill until there were `kills` kills; the number of kills by job. Ends at the first difference."""
    draw, count = random.Random(seed), Counter[str]()
    task, wholes = write_task(folder / "task"), {}
    for number in range(10 * kills):
        if sum(count.values()) >= kills:
            break
        job = Job(names[number % len(names)], model, task)
        if job.name not in wholes:
            whole, started = folder / f"{job.name} whole", time.time()
            # A cache of its own: the states of another job, of batches of another shape, are rounded otherwise.
            finish(job.start(whole, folder / f"{job.name} cache"))
            wholes[job.name] = whole, first_checkpoint(whole) - started, time.time() - started
        whole, first, seconds = wholes[job.name]
        out, cache = folder / f"{job.name} {number}", folder / f"cache {number}"
        phases: list[str] = []
        begins = [draw.choice((0.0, first, first, first)) for _ in range(draw.randint(1, 6))]
        times = [draw.uniform(begin, seconds) for begin in begins][: kills - sum(count.values())]
        for moment in times:
            if is_finished(out):
                break
            if killed_after(job.start(out, cache, resume=resumes(out)), moment):
                count[job.name] += 1
                phases.append(phase(out))
        if not is_finished(out):
            finish(job.start(out, cache, resume=resumes(out)))
        if job.name in MEASURED:
            whole = folder / f"{job.name} {number} whole"
            finish(job.start(whole, cache))
        if wrong := differences(whole, out):
            raise SystemExit(f"killed after {times}: " + "; ".join(wrong))
        moments = ", ".join(f"{moment:.2f}" for moment in times)
        print(
            f"{sum(count.values()):4} kills: {job.name}: the same after {moments} of {seconds:.2f} s: {phases}",
            flush=True,
        )
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--model", default="stories260K", help="A model's folder or name.")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills-"))  # it stays where a difference is found
    print(f"runs in {folder}")
    count = run(given.kills, given.seed, given.jobs, given.model, folder)
    shutil.rmtree(folder)
    print(f"{sum(count.values())} kills, every run the same bit for bit: {dict(count)}")


if __name__ == "__main__":
    main()
