"""Simple plans, each for the same processor time, and `auto` in that time: what a saving is for.

The time unit is full fine-tuning's three epochs. A plan that costs less per step makes more steps in a share of it.
Every plan trains at three learning rates, warms up, holds the rate and lets it fall over the last fifth of its steps
(warmup_stable_decay). Shares of one plan and rate have the part before the rate falls in common, so it trains once. A
second seed takes the rates that won with the first.

    python benchmarks/equal_time.py times runs/equal        # what a step of each plan costs, on a quiet machine
    python benchmarks/equal_time.py plans runs/equal        # trains the plans; what is done stays done
    python benchmarks/equal_time.py first runs/equal        # everything first, for a tenth of the time, then a plan
    python benchmarks/equal_time.py auto runs/equal         # `frostline train --budget time=SHARE`, each in a process
    python benchmarks/equal_time.py table runs/equal        # the best rate of each plan in each share, and auto
    python benchmarks/equal_time.py rule runs/equal         # the rule of auto beside what plans gained

`auto` may use a share of what full fine-tuning's steps take, as it measures them itself: trials, caching and judging
are in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback, TrainingArguments

import frostline as fl
from frostline.anatomy import find_anatomy
from frostline.checkpoints import load_tokenizer, quiet_libraries
from frostline.engine import StepMeter
from frostline.plan import Full, Timetable
from frostline.run import make_plan
from frostline.run._device import autocast
from frostline.run._setup import load_model
from frostline.strategies._worth import LORA_WORTH, PASSES, TIED_WORTH, learned, of_share
from frostline.tasks import Collator, TaskOptions, encode, evaluate, load_task, model_kind, prepare_tokenizer

SHARES = (0.2, 0.4, 0.6)
SEEDS = (0, 1)
EPOCHS = 3
DECAY = 0.2
WARM_UP = 10
BEFORE = {"loss": 4.673, "accuracy": 0.333}
"""Quality before training; accuracy that of guessing, which a new head is not always at."""
WHOLE = 1.0
"""Full fine-tuning in all of its time."""


@dataclass(frozen=True)
class Job:
    """A model and its rows. `rates` has three learning rates for each plan."""

    model: str
    task: str
    rows: int
    eval_rows: int
    max_length: int
    batch: int
    quality: str
    rates: dict[str, tuple[float, float, float]]

    @property
    def full_steps(self) -> int:
        return EPOCHS * -(-self.rows // self.batch)


JOBS = {
    "base16-webnlg": Job(
        "frostline/base16",
        "webnlg",
        rows=800,
        eval_rows=300,
        max_length=128,
        batch=8,
        quality="loss",
        rates={
            "all": (1e-3, 2e-3, 4e-3),
            "bot50": (1e-3, 2e-3, 4e-3),
            "bot50-untied": (1e-3, 2e-3, 4e-3),
            "bot62-untied": (1e-3, 2e-3, 4e-3),
            "bot75-untied": (1e-3, 2e-3, 3e-3),
            "bot87-untied": (1e-3, 2e-3, 3e-3),
            "all+lora": (2e-3, 5e-3, 1e-2),
        },
    ),
    "minilm-mnli": Job(
        "sentence-transformers/all-MiniLM-L6-v2",
        "mnli",
        rows=3200,
        eval_rows=2000,
        max_length=64,
        batch=32,
        quality="accuracy",
        rates={
            "all": (5e-5, 1e-4, 2e-4),
            "bot17": (1e-4, 2e-4, 3e-4),
            "bot33": (1e-4, 2e-4, 3e-4),
            "bot50": (1e-4, 2e-4, 3e-4),
            "bot67": (1e-4, 2e-4, 3e-4),
            "bot75-untied": (1e-4, 2e-4, 3e-4),
            "all+lora": (3e-4, 1e-3, 2e-3),
        },
    ),
}


FIRST_ALL = 0.1
"""The share of the time in which `first` trains everything."""
FIRST = {"base16-webnlg": ("bot75-untied",), "minilm-mnli": ("bot33", "bot50")}


def plan_for(model: Any, name: str) -> fl.Plan:
    if name == "all+lora":
        return make_plan(model, "all+lora", options={"lora": {"targets": "all"}})
    plan = make_plan(model, name.removesuffix("-untied"))
    if name.endswith("-untied") and plan.head.mode == "frozen":
        plan = fl.Plan.model_validate(plan.model_dump() | {"untie": True, "head": {"mode": "full"}})
    return plan


def everything_first(plan: fl.Plan, first: int, steps: int) -> Timetable:
    """Everything trains for `first` steps, then what a plan says."""
    everything = plan.model_copy(update={"embeddings": Full(), "blocks": (Full(),) * len(plan.blocks)})
    return Timetable(lambda: iter([(0, everything), (first, plan)]), steps)


class Training:
    """Trainings of one plan at one rate and seed: the rows are read once."""

    def __init__(self, job: Job, seed: int, folder: Path) -> None:
        self.job, self.seed, self.folder = job, seed, folder
        options = TaskOptions(max_train_rows=job.rows, max_eval_rows=job.eval_rows)
        self.task = load_task(job.task, options)
        with quiet_libraries():
            self.tokenizer = prepare_tokenizer(load_tokenizer(job.model))
            config = load_model(job.model, self.task, seed=seed, dtype="auto").config
        self.rows = encode(self.task, "train", self.tokenizer, job.max_length, model_kind(config))
        few = encode(self.task, "eval", self.tokenizer, job.max_length, model_kind(config))
        self.rows_held_out = [few[row] for row in range(64 if job.batch < 16 else 192)]

    def trainer(self, name: str, rate: float, steps: int, decay: int, first: int = 0, **options: Any) -> Any:
        with quiet_libraries():
            model = load_model(self.job.model, self.task, seed=self.seed, dtype="auto")
            prepare_tokenizer(self.tokenizer, model)
            arguments = TrainingArguments(
                str(self.folder),
                seed=self.seed,
                use_cpu=True,
                max_steps=steps,
                per_device_train_batch_size=self.job.batch,
                learning_rate=rate,
                lr_scheduler_type="warmup_stable_decay",
                lr_scheduler_kwargs={"num_decay_steps": decay},
                warmup_steps=WARM_UP,
                bf16=True,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                disable_tqdm=True,
            )
            plan = plan_for(model, name)
            given: dict[str, Any] = {"schedule": everything_first(plan, first, steps)} if first else {"plan": plan}
            return fl.Trainer(
                model,
                arguments,
                **given,
                train_dataset=self.rows,
                data_collator=Collator(self.tokenizer),
                **options,
            )

    def held_out(self, model: Any) -> float:
        few = self.rows_held_out
        model.eval()
        total = 0.0
        with torch.no_grad(), autocast(True):
            for at in range(0, len(few), 16):
                batch = Collator(self.tokenizer)([few[i] for i in range(at, min(at + 16, len(few)))])
                total += float(model(**batch).loss) * len(batch["input_ids"])
        model.train()
        return total / len(few)

    def quality(self, model: Any) -> dict[str, float]:
        with quiet_libraries(), autocast(True):
            found = evaluate(model, self.tokenizer, self.task, max_length=self.job.max_length, generate_rows=0)
        return dict(found.metrics)


def measure_times(job: Job, folder: Path) -> dict[str, Any]:
    """Processor seconds of a step and of the caching pass of each plan: means of two rounds, one after another."""
    found: dict[str, dict[str, list[float]]] = {name: {"step": [], "start": []} for name in job.rates}
    training = Training(job, 0, folder / "scratch")
    for number in range(2):
        for name in job.rates:
            os.environ["FROSTLINE_CACHE"] = str(folder / f"cache-{number}-{name}")  # nothing is stored yet
            meter = StepMeter()
            mode = "off" if name.startswith("all") else "on"
            trainer = training.trainer(name, 1e-4, 25, 1, callbacks=[meter], activation_cache=mode)
            begun = time.process_time()
            with quiet_libraries():
                trainer.session.decide()
                if trainer.session.report.used:
                    trainer.session.begin()
                found[name]["start"].append(time.process_time() - begun)
                trainer.train()
            found[name]["step"].append(statistics.mean(meter.cpu_seconds[1:]))
            shutil.rmtree(os.environ.pop("FROSTLINE_CACHE"), ignore_errors=True)
    return {
        name: {key: statistics.mean(values) for key, values in one.items()} | {"all": one}
        for name, one in found.items()
    }


def steps_in(job: Job, times: dict[str, Any], name: str, share: float) -> int:
    whole = job.full_steps * times["all"]["step"]
    return max(20, round((share * whole - times[name]["start"]) / times[name]["step"]))


def train_shares(training: Training, name: str, rate: float, shares: dict[float, int]) -> list[dict[str, Any]]:
    """Train to each share; a share starts where the rate of the one before began to fall."""
    start: str | None = None
    at = 0
    curve: dict[int, float] = {}
    found: list[dict[str, Any]] = []
    for share, steps in sorted(shares.items()):
        decay = round(DECAY * steps)
        branch = steps - decay
        callbacks = [SaveAt(branch), Curve(training, curve, branch)]
        trainer = training.trainer(name, rate, steps, decay, callbacks=callbacks)
        with quiet_libraries():
            trainer.train(resume_from_checkpoint=start)
        one = {
            "plan": name,
            "rate": rate,
            "seed": training.seed,
            "share": share,
            "steps": steps,
            "from_step": at,
            "curve": dict(curve),
            "cache": trainer.cache_report.reason,
        }
        found.append(one | training.quality(trainer.model))
        shutil.rmtree(training.folder / f"checkpoint-{at}", ignore_errors=True)
        start, at = str(training.folder / f"checkpoint-{branch}"), branch
    return found


def train_first(job: Job, folder: Path, names: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    """A tenth of the time everything trains, then a plan does, with a cache made at that step; at two rates."""
    times = read(folder / "times.json")
    for name, share, seed in itertools.product(names, SHARES, seeds):
        known = times.get(name) or assumed(times, name)
        first = round(FIRST_ALL * share * job.full_steps)
        left = (share * job.full_steps - first) * times["all"]["step"] - known["start"]
        steps = first + round(left / known["step"])
        for rate in job.rates[name][1:]:
            path = folder / f"all-then-{name}-{rate:g}-{share:g}-seed{seed}.json"
            if path.exists():
                continue
            print(path.name, steps, time.strftime("%H:%M:%S"), flush=True)
            training, curve = Training(job, seed, folder / "scratch-first"), dict[int, float]()
            held = steps - round(DECAY * steps)
            trainer = training.trainer(name, rate, steps, steps - held, first, callbacks=[Curve(training, curve, held)])
            begun = time.process_time()
            with quiet_libraries():
                trainer.train()
            one = {"plan": f"all-then-{name}", "rate": rate, "seed": seed, "share": share, "steps": steps}
            one |= {"from_step": 0, "first": first, "curve": curve, "cache": trainer.cache_report.reason}
            one |= {"seconds": time.process_time() - begun, "used": trainer.cache_report.used}
            path.write_text(json.dumps([one | training.quality(trainer.model)], indent=1))


def assumed(times: dict[str, Any], name: str) -> dict[str, float]:
    """The times of a plan that was not measured: on the line between full fine-tuning and bot50."""
    frozen = int(name.removeprefix("bot").removesuffix("-untied")) / 50
    whole, half = times["all"], times["bot50"]
    return {
        "step": whole["step"] + frozen * (half["step"] - whole["step"]),
        "start": whole["start"] + frozen * (half["start"] - whole["start"]),
    }


class Curve(TrainerCallback):
    """Loss on a few held-out rows while the rate is held (up to step `last`), at steps that grow by a fourth."""

    def __init__(self, training: Training, curve: dict[int, float], last: int) -> None:
        self.training, self.curve, self.last = training, curve, last
        self.steps = {round(5 * 1.25**n) for n in range(40)}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step in self.steps and state.global_step <= self.last:
            self.curve[state.global_step] = self.training.held_out(model)


class SaveAt(TrainerCallback):
    """Saves one checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = state.global_step == self.step


def train_plans(job: Job, folder: Path, seeds: tuple[int, ...]) -> None:
    times = read(folder / "times.json")
    for seed in seeds:
        for name, rates in job.rates.items():
            steps = {share: steps_in(job, times, name, share) for share in SHARES}
            if name == "all":
                steps[WHOLE] = job.full_steps
            if name not in times:
                continue
            wanted = rates if seed == SEEDS[0] else tuple({best(folder, job, name, share)["rate"] for share in steps})
            for rate in wanted:
                path = folder / f"{name}-{rate:g}-seed{seed}.json"
                if path.exists():
                    continue
                print(path.name, time.strftime("%H:%M:%S"), flush=True)
                scratch = folder / f"scratch-{name}-{rate:g}-{seed}"
                found = train_shares(Training(job, seed, scratch), name, rate, steps)
                shutil.rmtree(scratch, ignore_errors=True)
                path.write_text(json.dumps(found, indent=1))


def train_auto(job: Job, folder: Path, seeds: tuple[int, ...]) -> None:
    """`auto` in each share, in a process of its own and with empty caches."""
    for seed, share in itertools.product(seeds, SHARES):
        path = folder / f"auto-{share:g}-seed{seed}.json"
        if path.exists():
            continue
        print(path.name, time.strftime("%H:%M:%S"), flush=True)
        out, cache = folder / f"auto-{share:g}-{seed}", folder / "cache-auto"
        for place in (out, cache):
            shutil.rmtree(place, ignore_errors=True)
        settings = {
            "data.max_train_rows": job.rows,
            "data.max_eval_rows": job.eval_rows,
            "max_length": job.max_length,
            "per_device_train_batch_size": job.batch,
            "bf16": "true",
            "threads": 1,
            "generate_rows": 0,
        }
        options = ["--model", job.model, "--task", job.task, "--strategy", "auto", "--budget", f"time={share}"]
        options += [
            "--out",
            str(out),
            "--seed",
            str(seed),
            "--figure",
            str(folder / f"auto-{share:g}-{seed}.png"),
            "--json",
        ]
        subprocess.run(
            [
                sys.executable,
                "-m",
                "frostline",
                "train",
                *options,
                *(f"{key}={value}" for key, value in settings.items()),
            ],
            env={**os.environ, "FROSTLINE_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        record = read(out / "run.json")
        chosen, metrics = record["chosen"], record["metrics"]["after"]
        one = {"plan": "auto", "rate": chosen["learning_rate"], "seed": seed, "share": share} | metrics
        one |= {name: chosen[name] for name in ("boundary", "mode", "untie", "max_steps", "budget_seconds")}
        one |= {"trials": record["trials"], "notices": record["notices"]}
        path.write_text(json.dumps([one], indent=1))


def gains(job: Job, folder: Path) -> Iterator[tuple[str, float, float, float, float]]:
    """Plan, share of the time, passes, gain as a share of full fine-tuning's in all of its time, and the rule's."""
    with quiet_libraries():
        task = load_task(job.task, TaskOptions(max_train_rows=job.rows, max_eval_rows=job.eval_rows))
        model = load_model(job.model, task, seed=0, dtype="auto")
    anatomy = find_anatomy(model)
    before = BEFORE[job.quality]
    whole = best(folder, job, "all", WHOLE)[job.quality] - before
    full = learned(EPOCHS)
    for name, share in itertools.product(job.rates, SHARES):
        if not results(folder, name, share, SEEDS[0]):
            continue
        found = best(folder, job, name, share)
        passes, plan = found["steps"] * job.batch / job.rows, plan_for(model, name)
        worth = LORA_WORTH if name.endswith("+lora") else 1.0
        if anatomy.tied and not plan.untie and name != "all":
            worth *= TIED_WORTH
        trained = 1 - plan.boundary / len(plan.blocks)
        rule = of_share(trained, anatomy) * worth * learned(min(passes, PASSES)) / full
        yield name, share, passes, (found[job.quality] - before) / whole, rule


def rule_table(key: str, folder: Path) -> Table:
    """A row for each cell, and the mean difference below."""
    shown = Table("plan", "share", "passes", "gain", "rule", title=key)
    cells = list(gains(JOBS[key], folder))
    for name, share, passes, gain, rule in cells:
        shown.add_row(name, f"{share:.1f}", f"{passes:.1f}", f"{gain:.2f}", f"{rule:.2f}")
    errors = [abs(rule - gain) for *_, passes, gain, rule in cells if passes < 2 * PASSES]
    shown.caption = f"mean error {statistics.mean(errors):.3f}, largest {max(errors):.2f}, up to {2 * PASSES} passes"
    for share in SHARES:
        there = [cell for cell in cells if cell[1] == share]
        ruled, right = max(there, key=lambda cell: cell[4]), max(there, key=lambda cell: cell[3])
        shown.caption += f"; at {share}: {ruled[0]} ({ruled[3]:.2f}), best {right[0]} ({right[3]:.2f})"
    return shown


def results(folder: Path, name: str, share: float, seed: int) -> list[dict[str, Any]]:
    files = folder.glob(f"{name}-*-seed{seed}.json")
    return [one for path in files for one in read(path) if one["share"] == share and one["plan"] == name]


def best(folder: Path, job: Job, name: str, share: float, seed: int = SEEDS[0]) -> dict[str, Any]:
    """The result at the rate with the best quality."""
    sign = 1 if job.quality == "loss" else -1
    return min(results(folder, name, share, seed), key=lambda one: sign * one[job.quality])


def table(key: str, folder: Path) -> Table:
    """A row for each plan; a cell has the quality of each seed at its best rate, and that rate."""
    job = JOBS[key]
    shares = (*SHARES, WHOLE)
    shown = Table("plan", "step", *(f"{share:.1f}" for share in shares), title=f"{key}, {job.quality} of each seed")
    times = read(folder / "times.json")
    for name in (*job.rates, "auto"):
        cells = [f"{times[name]['step'] / times['all']['step']:.2f}" if name in times else ""]
        for share in shares:
            seeds = [seed for seed in SEEDS if results(folder, name, share, seed)]
            found = [best(folder, job, name, share, seed) for seed in seeds]
            cells.append(", ".join(f"{one[job.quality]:.3f} ({one['rate']:g})" for one in found))
        shown.add_row(name, *cells)
    return shown


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("times", "plans", "first", "auto", "table", "rule"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", nargs="*", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    for key in given.jobs:
        folder = given.folder / key
        folder.mkdir(parents=True, exist_ok=True)
        if given.what == "times":
            (folder / "times.json").write_text(json.dumps(measure_times(JOBS[key], folder), indent=1))
        elif given.what == "plans":
            train_plans(JOBS[key], folder, tuple(given.seeds))
        elif given.what == "first":
            train_first(JOBS[key], folder, FIRST[key], tuple(given.seeds))
        elif given.what == "auto":
            train_auto(JOBS[key], folder, tuple(given.seeds))
        elif given.what == "rule":
            Console().print(rule_table(key, folder))
        else:
            Console().print(table(key, folder))


if __name__ == "__main__":
    main()
