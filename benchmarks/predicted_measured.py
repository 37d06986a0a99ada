"""Predicted against measured: the time of steps and runs after calibration, and peak memory, pair by pair.

A pair is a model, a plan, a batch and a length. In each round the machine is calibrated for the pair while a trainer
trains it, a step of each in turn, so that what else the machine does falls on both alike; prediction and measurement
are compared within the round, and figures are medians over the rounds, with quartiles of the errors. `wall` and `cpu`
are two clocks that run beside each other: where the machine does other things too they differ, and the processor's
tells error from noise. A run is three epochs of 16 batches, of the steps measured and the caching pass before them.
Memory is measured in fresh processes: what torch's allocator holds at its peak, and beside it the process's private
memory.

    python benchmarks/predicted_measured.py [--pairs PAIR ...] [--rounds 3] [--bf16] [--out FILE]

The real models are looked for under $FROSTLINE_MODELS; the Llama of 100M parameters is random.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from threading import Semaphore
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from frostline.anatomy import find_anatomy, skeleton
from frostline.checkpoints import load_config, load_weights, quiet_libraries
from frostline.cost import Workload, has_dropout, memory, run_seconds, step_seconds
from frostline.engine import MemoryMeter, Trainer
from frostline.run import make_plan, versions
from frostline.run._calibrate import Calibration, measure
from frostline.run._timeline import CLOCKS, Clocks

BATCHES, EPOCHS = 16, 3
LABELLED = 4
"""Of a decoder's row one token in so many carries a label."""


@dataclass(frozen=True)
class Pair:
    """What is trained. `cached`: from an activation cache."""

    model: str
    strategy: str
    batch: int
    length: int
    cached: bool = False

    @property
    def name(self) -> str:
        return f"{self.model}-{self.strategy}{'-cached' if self.cached else ''}-{self.batch}x{self.length}"


PAIRS = {
    pair.name: pair
    for pair in (
        Pair("minilm", "all", 8, 64),
        Pair("minilm", "bot50", 16, 64),
        Pair("minilm", "bot75", 16, 128, cached=True),
        Pair("minilm", "top50", 8, 32),
        Pair("minilm", "int50", 8, 128),
        Pair("minilm", "lora", 16, 32),
        Pair("minilm", "head", 8, 128),
        Pair("base16", "all", 8, 128),
        Pair("base16", "bot50", 4, 64),
        Pair("base16", "bot75", 8, 128, cached=True),
        Pair("base16", "top50", 8, 64),
        Pair("base16", "int50", 16, 32),
        Pair("base16", "lora", 8, 128),
        Pair("llama100m", "all", 4, 64),
        Pair("llama100m", "bot50", 4, 64, cached=True),
        Pair("llama100m", "bot75", 4, 128, cached=True),
        Pair("llama100m", "bot75", 8, 64),
        Pair("llama100m", "top50", 4, 32),
        Pair("llama100m", "int50", 8, 32),
        Pair("llama100m", "lora", 4, 64),
    )
}


def config_and_class(model: str) -> tuple[Any, Any]:
    if model == "minilm":
        return load_config("sentence-transformers/all-MiniLM-L6-v2"), AutoModelForSequenceClassification
    if model == "base16":
        return load_config("frostline/base16"), AutoModelForCausalLM
    shape = {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 12, "num_attention_heads": 10}
    return LlamaConfig(vocab_size=32000, **shape), AutoModelForCausalLM


def make_model(pair: Pair) -> Any:
    config, model_class = config_and_class(pair.model)
    torch.manual_seed(0)
    with quiet_libraries():
        if pair.model == "llama100m":
            return model_class.from_config(config)
        return load_weights(config._name_or_path, model_class, config, "float32")


def workload_of(pair: Pair, bf16: bool) -> Workload:
    config, model_class = config_and_class(pair.model)
    return Workload(
        rows=pair.batch * BATCHES,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=pair.batch,
        length=pair.length,
        bf16=bf16,
        dropout=has_dropout(config),
        activation_cache=pair.cached,
        label_share=1 / LABELLED if model_class is AutoModelForCausalLM else 1.0,
        loss_positions=True,
    )


def rows_of(pair: Pair) -> list[dict[str, Any]]:
    """Random rows, the longest as long as the pair says, the others a little shorter."""
    config, model_class = config_and_class(pair.model)
    random = torch.Generator().manual_seed(0)
    rows = []
    for number in range(pair.batch * BATCHES):
        length = pair.length - number % 4
        ids = torch.randint(3, config.vocab_size, (length,), generator=random).tolist()
        if model_class is AutoModelForCausalLM:
            read = pair.length // LABELLED
            rows.append({"input_ids": ids, "labels": [-100] * (length - read) + ids[-read:]})
        else:
            rows.append({"input_ids": ids, "labels": number % 2})
    return rows


class Pad:
    """Collates rows, padded to one length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, rows: Any) -> dict[str, torch.Tensor]:
        def padded(name: str, fill: int) -> torch.Tensor:
            return torch.tensor([row[name] + [fill] * (self.length - len(row[name])) for row in rows])

        ids, mask = padded("input_ids", 0), torch.zeros(len(rows), self.length, dtype=torch.long)
        for row, own in zip(rows, mask, strict=True):
            own[: len(row["input_ids"])] = 1
        labelled = isinstance(rows[0]["labels"], list)
        labels = padded("labels", -100) if labelled else torch.tensor([row["labels"] for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Turns:
    """Two threads take a step each in turn: while one works the other waits, and its clocks stand still.

    The calibration is thread 1; training is thread 0, and goes on until the calibration is `over`.
    """

    def __init__(self) -> None:
        self.over = False
        self._free = (Semaphore(0), Semaphore(0))
        self._waited = [0.0, 0.0]

    def wait(self, me: int) -> None:
        begun = time.perf_counter()
        self._free[me].acquire()
        self._waited[me] += time.perf_counter() - begun

    def pass_on(self, me: int) -> None:
        self._free[1 - me].release()
        if not self.over:
            self.wait(me)

    def end(self, me: int) -> None:
        self.over = True
        self._free[1 - me].release()

    def clocks(self, me: int) -> Clocks:
        return {"wall": lambda: time.perf_counter() - self._waited[me], "cpu": time.thread_time}


class OneStep(TrainerCallback):
    """Passes the turn on after each step."""

    def __init__(self, turns: Turns, me: int) -> None:
        self.turns, self.me = turns, me

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.turns.pass_on(self.me)
        if self.turns.over:
            control.should_training_stop = True


class WholeSteps(TrainerCallback):
    """From the end of one step to the end of the next, by each clock."""

    def __init__(self, clocks: Clocks) -> None:
        self.clocks = clocks
        self.ends: list[dict[str, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append({clock: read() for clock, read in self.clocks.items()})

    def seconds(self, clock: str) -> float:
        ends = [end[clock] for end in self.ends[1:]]  # the first step warms caches up
        return statistics.median(after - before for before, after in pairwise(ends))


def make_trainer(pair: Pair, folder: str, bf16: bool, steps: int, callbacks: list[TrainerCallback]) -> Trainer:
    model = make_model(pair)
    arguments = TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        max_steps=steps,
        per_device_train_batch_size=pair.batch,
        learning_rate=1e-5,
        bf16=bf16,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model,
        arguments,
        plan=make_plan(model, pair.strategy),
        train_dataset=rows_of(pair),
        data_collator=Pad(pair.length),
        activation_cache="on" if pair.cached else "off",
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def one_round(
    pair: Pair, workload: Workload, bf16: bool, probe: float
) -> tuple[Calibration, WholeSteps, dict[str, float]]:
    """A calibration, the steps trained in turn with it, and the seconds of the caching pass before."""
    turns = Turns()
    clocks = turns.clocks(0)
    steps = WholeSteps(clocks)

    def calibrated() -> Calibration:
        try:
            config, model_class = config_and_class(pair.model)
            mine = turns.clocks(1)
            return measure(config, model_class, workload, seconds=probe, clocks=mine, callbacks=[OneStep(turns, 1)])
        finally:
            turns.end(1)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as other:
        os.environ["FROSTLINE_CACHE"] = str(Path(folder) / "cache")
        trainer = make_trainer(pair, folder, bf16, 10_000, [steps, OneStep(turns, 0)])
        before = {clock: read() for clock, read in clocks.items()}
        trainer.session.begin()
        cached = {clock: read() - before[clock] for clock, read in clocks.items()}
        calibration = other.submit(calibrated)
        turns.wait(0)
        try:
            trainer.train()
        finally:
            turns.end(0)
        return calibration.result(), steps, cached


def compare(pair: Pair, rounds: int, bf16: bool, probe: float) -> dict[str, Any]:
    """Predicted and measured seconds of a step and of a run, a list over rounds for each clock."""
    config, model_class = config_and_class(pair.model)
    workload = workload_of(pair, bf16)
    bare = skeleton(config, model_class)
    anatomy, plan = find_anatomy(bare), make_plan(bare, pair.strategy)
    found: dict[str, Any] = {clock: [] for clock in CLOCKS}
    for _ in range(rounds):
        calibration, steps, cached = one_round(pair, workload, bf16, probe)
        for clock in CLOCKS:
            speed = calibration.speed(clock)
            step = steps.seconds(clock)
            found[clock].append(
                {
                    "predicted_step": step_seconds(plan, anatomy, workload, speed),
                    "step": step,
                    "predicted_run": run_seconds(plan, anatomy, workload, speed),
                    "run": BATCHES * EPOCHS * step + (cached[clock] if pair.cached else 0.0),
                    "cached": cached[clock],
                    "speed": speed.model_dump(),
                }
            )
    return found


# Memory: one pair in a fresh process.


def print_allocated(pair: Pair, bf16: bool) -> None:
    """The most that torch's allocator holds while the pair trains, its weights included."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FROSTLINE_CACHE"] = str(Path(folder) / "cache")
        trainer = make_trainer(pair, folder, bf16, 3, [])
        trainer.session.begin()
        _read_in_this_thread(trainer)
        resident = {p.data_ptr(): p.nbytes for p in trainer.model.parameters() if not p.is_meta}
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            trainer.train()
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        print(sum(resident.values()) + max(accumulate(event.nbytes() for event in events)))


def _read_in_this_thread(trainer: Trainer) -> None:
    """The profiler sees one thread: let the next batch's states be read in it."""
    reader = trainer.session._reader

    def submit(read: Any, rows: Any) -> Any:
        coming: Any = Future()
        coming.set_result(read(rows))
        return coming

    if reader is not None:
        reader._pool.submit = submit


class Restart(TrainerCallback):
    """Forgets what loading and the caching pass took."""

    def __init__(self, meter: MemoryMeter) -> None:
        self.meter = meter

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.meter.restart_peak()


def print_private(pair: Pair, bf16: bool) -> None:
    """The peak of the process's private memory above that before the model, when glibc gives back what is freed."""
    ctypes.CDLL("libc.so.6").mallopt(-3, 65536)
    with tempfile.TemporaryDirectory() as folder, MemoryMeter(interval=0.001) as meter:
        os.environ["FROSTLINE_CACHE"] = str(Path(folder) / "cache")
        make_trainer(pair, folder, bf16, 3, [Restart(meter)]).train()
        print(meter.peak_bytes)


MEMORY = {"allocated": print_allocated, "private": print_private}


def memory_of(pair: Pair, bf16: bool) -> dict[str, int]:
    config, model_class = config_and_class(pair.model)
    bare = skeleton(config, model_class)
    predicted = memory(make_plan(bare, pair.strategy), find_anatomy(bare), workload_of(pair, bf16)).peak
    measured = {}
    for name in MEMORY:
        command = [sys.executable, __file__, "--pairs", pair.name, "--memory-of", name, *(["--bf16"] * bf16)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        measured[name] = int(done.stdout.splitlines()[-1])
    return {"predicted": predicted, **measured}


def errors(result: dict[str, Any], clock: str, what: str) -> list[float]:
    return [each[f"predicted_{what}"] / each[what] - 1 for each in result["time"][clock]]


def summary(results: list[dict[str, Any]]) -> dict[str, str]:
    def share(values: list[float], bound: float) -> str:
        return f"{sum(abs(value) <= bound for value in values)} of {len(values)}"

    lines = {
        f"{what}, {clock}, within 15%": share([statistics.median(errors(r, clock, what)) for r in results], 0.15)
        for what in ("step", "run")
        for clock in CLOCKS
    }
    held = [r["memory"]["predicted"] / r["memory"]["allocated"] - 1 for r in results if "memory" in r]
    return lines | {"peak memory within 10%": share(held, 0.10)}


def show(results: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="predicted and measured; errors are medians over rounds (quartiles)")
    for column in ("pair", "step s", "predicted", "error wall", "error cpu", "run s", "error wall", "error cpu"):
        table.add_column(column, justify="left" if column == "pair" else "right")
    for column in ("peak MiB", "predicted", "error", "private"):
        table.add_column(column, justify="right")
    for result in results:
        wall = result["time"]["wall"]
        cells = [result["name"]]
        for what in ("step", "run"):
            cells.append(f"{statistics.median(each[what] for each in wall):.3g}")
            if what == "step":
                cells.append(f"{statistics.median(each['predicted_step'] for each in wall):.3g}")
            cells += [spread(errors(result, clock, what)) for clock in CLOCKS]
        if "memory" in result:
            held = result["memory"]
            cells += [f"{held[name] / 2**20:.0f}" for name in ("allocated", "predicted")]
            cells += [f"{held['predicted'] / held['allocated'] - 1:+.1%}", f"{held['private'] / 2**20:.0f}"]
        table.add_row(*cells)
    console.print(table)
    for name, share in summary(results).items():
        console.print(f"{name}: {share}")


def spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:+.0%}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:+.0%} ({low:+.0%} {high:+.0%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="*", default=list(PAIRS), metavar="PAIR", help=", ".join(PAIRS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--probe", type=float, default=20.0, help="seconds of a round's steps in turn")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--no-memory", action="store_true", help="leave memory out")
    parser.add_argument("--memory-of", choices=list(MEMORY), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-predicted-measured.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if options.memory_of:
        return MEMORY[options.memory_of](PAIRS[options.pairs[0]], options.bf16)
    console, results = Console(width=170), []
    for name in options.pairs:
        begun = time.perf_counter()
        pair = PAIRS[name]
        result = {"name": name, **asdict(pair), "time": compare(pair, options.rounds, options.bf16, options.probe)}
        if not options.no_memory:
            result["memory"] = memory_of(pair, options.bf16)
        results.append(result)
        told = " ".join(f"{clock} {spread(errors(result, clock, 'step'))}" for clock in CLOCKS)
        console.print(f"[dim]{name}: step {told}, {time.perf_counter() - begun:.0f} s")
        document = {
            "versions": versions(),
            "precision": "bfloat16" if options.bf16 else "float32",
            "rounds": options.rounds,
            "results": results,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=2) + "\n")
    show(results, console)
    console.print(f"written: {options.out}")
    return None


if __name__ == "__main__":
    main()
