"""Plans that change while training: their memory, what a change costs, and what they save with the activation cache.

    python benchmarks/moving.py memory  [--model base16|MiniLM] [--changes 50] [--figure FILE]
    python benchmarks/moving.py changes [--model ...] [--changes 20]
    python benchmarks/moving.py savings [--model ...] [--rows 256] [--epochs 6] [--rounds 1] [--strategies ...]

`memory`: LISA (two blocks at a time, drawn every two steps); base16's weights are bfloat16 where they do not train.
Bytes of all tensors that training holds when the optimizer steps (weights, gradients, the optimizer's state), beside
what is predicted for the plan of each draw, and beside a loop that only sets `requires_grad` under one optimizer.
`changes`: seconds that a change of the plan takes, beside the median step. `savings`: processor time of whole
trainings, as shares of that of `all`, with the loss on held-out rows. One thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from jobs import SETTINGS, real_job
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

import frostline as fl
from frostline.cost import Workload, memory
from frostline.plan import phases
from frostline.run._setup import load_model
from frostline.tasks import load_task

JOBS = {"base16": SETTINGS["base16-webnlg-bot50"], "MiniLM": SETTINGS["minilm-mnli-bot50"]}
DTYPES = {"base16": "bfloat16", "MiniLM": "float32"}
"""Of weights that do not train, for `memory`. Plain BERT cannot compute with weights of two dtypes."""
EVERY = 2
MIB = 2**20


def arguments(folder: Path, steps: int, batch: int, **more: Any) -> TrainingArguments:
    given: dict[str, Any] = {
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "linear",
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 10_000,
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
    }
    return TrainingArguments(output_dir=str(folder), **given | more)


def held_bytes(model: Any, optimizer: Any) -> int:
    """Bytes of weights, gradients and the optimizer's state, each memory once."""
    parameters = list(model.parameters())
    tensors: Iterable[Tensor] = [
        *parameters,
        *(p.grad for p in parameters if p.grad is not None),
        *(value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)),
    ]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


class Held(TrainerCallback):
    """Notes what is held each time the optimizer steps."""

    def __init__(self) -> None:
        self.bytes: list[int] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **around: Any) -> None:
        optimizer = around["optimizer"]
        self.bytes.append(held_bytes(around["model"], getattr(optimizer, "optimizer", optimizer)))


def model_of(name: str) -> Any:
    setting = JOBS[name]
    return load_model(setting.model, load_task(setting.task), seed=0, dtype=DTYPES[name])


def naive(model: Any, plans: list[tuple[int, Any]], batches: Iterator[Any], anatomy: Any) -> list[int]:
    """LISA as it is often written: `requires_grad` changes, and one optimizer holds all parameters."""
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    found, names = [], set()
    always = {tensor.name for tensor in (*anatomy.embeddings, *anatomy.final_norm, *anatomy.head)}
    starts = dict(plans)
    for step, batch in enumerate(batches):
        if step in starts:
            drawn = {
                tensor.name
                for mode, block in zip(starts[step].blocks, anatomy.blocks, strict=True)
                for tensor in block.tensors
                if mode.mode == "full"
            }
            names = drawn | always
            for name, parameter in named.items():
                parameter.requires_grad_(name in names)
                if name in names:
                    parameter.data = parameter.data.float()
        with torch.autocast("cpu", torch.bfloat16):
            model(**batch).loss.backward()
        found.append(held_bytes(model, optimizer))
        optimizer.step()
        optimizer.zero_grad()
    return found


def run_memory(name: str, changes: int, figure: str | None, console: Console) -> None:
    job, steps = real_job(JOBS[name], 64), EVERY * (changes + 1)
    model = model_of(name)
    schedule = fl.make_schedule(model, "lisa", options={"every": EVERY}, steps=steps)
    plans, held = phases(schedule, steps), Held()
    with tempfile.TemporaryDirectory() as folder:
        trainer = fl.Trainer(
            model,
            arguments(Path(folder), steps, 4, bf16=True),
            schedule=schedule,
            train_dataset=job.rows,
            data_collator=job.collate,
            callbacks=[held],
        )
        trainer.train()
    anatomy = trainer.applied.anatomy
    ours = [max(held.bytes[step : step + EVERY]) for step, _ in plans]
    work = Workload(per_device_train_batch_size=4, bf16=True, frozen_dtype=DTYPES[name])
    expected = []
    for _, plan in plans:
        one = memory(plan, anatomy, work)
        expected.append(one.weights + one.gradients + one.optimizer)
    other = model_of(name)
    batches = (job.collate(job.rows[4 * (i % 16) : 4 * (i % 16) + 4]) for i in range(steps))
    plain = naive(other, plans, batches, anatomy)
    plain = [max(plain[step : step + EVERY]) for step, _ in plans]
    table = Table("period", "frostline, MiB", "predicted", "requires_grad alone", title=f"{name}: LISA")
    for index in sorted({0, 1, 2, 5, 10, 20, 30, 40, len(plans) - 1} & set(range(len(plans)))):
        values = (ours[index], expected[index], plain[index])
        table.add_row(str(index), *(f"{value / MIB:.1f}" for value in values))
    console.print(table)
    off = [own / wanted - 1 for own, wanted in zip(ours, expected, strict=True)]
    console.print(
        f"{len(trainer.changes)} changes: measured to predicted {min(off):+.4f} to {max(off):+.4f}; the largest period "
        f"is {max(ours) / min(ours):.3f} of the smallest (blocks differ in size: {max(expected) / min(expected):.3f} "
        f"predicted); without frostline {max(plain) / max(ours):.2f} of ours at the end"
    )
    if figure is not None:
        draw(figure, ours, expected, plain, name)


def draw(path: str, ours: list[int], expected: list[int], plain: list[int], name: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for values, label, style in (
        (plain, "requires_grad alone, one optimizer", "-"),
        (ours, "frostline", "-"),
        (expected, "predicted", ":"),
    ):
        plt.plot([value / MIB for value in values], style, label=label)
    plt.xlabel("change of the plan")
    plt.ylabel("weights, gradients, optimizer (MiB)")
    plt.title(f"LISA on {name}, two blocks at a time")
    plt.ylim(bottom=0)
    plt.legend()
    plt.savefig(path, dpi=120, bbox_inches="tight")


def run_changes(name: str, changes: int, console: Console) -> None:
    job = real_job(JOBS[name], 128)
    for strategy, options in (("lisa", {"every": 4}), ("badam", {"every": 4}), ("freezeout", {})):
        steps, model, taken = 4 * (changes + 1), job.model(), list[float]()
        schedule = fl.make_schedule(model, strategy, options=options, steps=steps)
        with tempfile.TemporaryDirectory() as folder:
            trainer = fl.Trainer(
                model,
                arguments(Path(folder), steps, 8),
                schedule=schedule,
                train_dataset=job.rows,
                data_collator=job.collate,
                activation_cache="off",
            )
            own, seconds = trainer._begin_step, list[float]()

            def begin_step(
                step: int, inputs: Any, own: Any = own, taken: list[float] = taken, trainer: Any = trainer
            ) -> None:
                before, begun = len(trainer.changes), time.process_time()
                own(step, inputs)
                if len(trainer.changes) > before:
                    taken.append(time.process_time() - begun)

            inner = trainer.training_step

            def training_step(*given: Any, inner: Any = inner, seconds: list[float] = seconds, **more: Any) -> Any:
                begun = time.process_time()
                loss = inner(*given, **more)
                seconds.append(time.process_time() - begun)
                return loss

            trainer._begin_step = begin_step  # type: ignore[method-assign]
            trainer.training_step = training_step  # type: ignore[method-assign]
            trainer.train()
        step = statistics.median(seconds)
        console.print(
            f"{name} {strategy}: {len(taken)} changes, median {statistics.median(taken) * 1e3:.1f} ms, largest "
            f"{max(taken) * 1e3:.1f} ms; median forward and backward pass {step * 1e3:.0f} ms: "
            f"{statistics.median(taken) / step:.3f} (at most {max(taken) / step:.3f})"
        )


CONTENDERS: tuple[tuple[str, str], ...] = (
    ("all", "off"),
    ("bot50", "off"),
    ("bot50", "auto"),
    ("freezeout", "off"),
    ("freezeout", "auto"),
    ("autofreeze", "off"),
    ("autofreeze", "auto"),
    ("egeria", "off"),
    ("egeria", "auto"),
    ("gradual", "off"),
    ("lisa", "off"),
    ("badam", "auto"),
)


def run_savings(name: str, rows: int, epochs: int, rounds: int, strategies: list[str], console: Console) -> None:
    contenders = [contender for contender in CONTENDERS if not strategies or contender[0] in ("all", *strategies)]
    setting = JOBS[name]
    job = real_job(setting, rows + 64)
    held_out, trained = job.rows[rows:], job.rows[:rows]
    steps = epochs * -(-rows // 16)
    found: dict[tuple[str, str], list[float]] = {contender: [] for contender in contenders}
    losses: dict[tuple[str, str], float] = {}
    states: dict[tuple[str, str], str] = {}
    for _ in range(rounds):
        for strategy, cache in contenders:
            model = job.model()
            with tempfile.TemporaryDirectory() as folder:
                os.environ["FROSTLINE_CACHE"] = folder
                begun = time.process_time()
                trainer = fl.Trainer(
                    model,
                    arguments(Path(folder), steps, 16, learning_rate=2e-4),
                    schedule=fl.make_schedule(model, strategy, steps=steps),
                    train_dataset=trained,
                    data_collator=job.collate,
                    eval_dataset=held_out,
                    activation_cache=cache,
                )
                trainer.train()
                found[strategy, cache].append(time.process_time() - begun)
                trainer._end_plan()
                losses[strategy, cache] = trainer.evaluate()["eval_loss"]
                changes = [change.step for change in trainer.changes]
                states[strategy, cache] = f"{changes[:12]}; {trainer.cache_report.reason}"
            console.print(strategy, cache, f"{found[strategy, cache][-1]:.1f} s", states[strategy, cache])
    whole = statistics.median(found["all", "off"])
    table = Table(
        "strategy", "cache", "share of all's time", "range", "loss", title=f"{name}: {rows} rows, {steps} steps"
    )
    for contender, seconds in found.items():
        shares = [one / whole for one in seconds]
        spread = f"{min(shares):.3f} to {max(shares):.3f}"
        table.add_row(*contender, f"{statistics.median(shares):.3f}", spread, f"{losses[contender]:.3f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "changes", "savings"])
    parser.add_argument("--model", choices=list(JOBS), default="base16")
    parser.add_argument("--changes", type=int, default=50)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--strategies", nargs="*", default=[], help="for savings: these beside `all`; by default several"
    )
    parser.add_argument("--figure")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    console = Console(width=150)
    if given.what == "memory":
        run_memory(given.model, given.changes, given.figure, console)
    elif given.what == "changes":
        run_changes(given.model, given.changes, console)
    else:
        run_savings(given.model, given.rows, given.epochs, given.rounds, given.strategies, console)


if __name__ == "__main__":
    main()
