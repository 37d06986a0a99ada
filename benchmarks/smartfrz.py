"""The predictor of `smartfrz`: collect histories of real trainings, train it on them, judge it on what it has not seen.

    python benchmarks/smartfrz.py collect [--out runs/smartfrz] [--only TEXT]
    python benchmarks/smartfrz.py judge   [--out runs/smartfrz]
    python benchmarks/smartfrz.py train   [--out runs/smartfrz]

`collect` trains every block of small real models on real tasks. At 20 moments of a training it notes how far each
block's weights moved (`weight_motion`), the learning rate, and the outputs of every block on the same rows. A block
*has settled* at a moment when linear CKA between its outputs then and at the end of the training is at least 0.99.
`judge` leaves out a task, a model, or a model with its tasks, trains on the rest, and says how often the predictor is
right on what was left out. Beside it: the answer that is most frequent in the rest, and a logistic regression on depth
and progress alone. `train` trains on everything and writes the weights that come with frostline. One thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainingArguments

import frostline as fl
from frostline.anatomy import find_anatomy
from frostline.checkpoints import load_tokenizer, quiet_libraries
from frostline.hooks import capture, undisturbed
from frostline.plan import Observations, Plan
from frostline.run._setup import load_model
from frostline.strategies import Situation, _predictor, freeze_blocks
from frostline.strategies._predictor import WEIGHTS, Predictor, features
from frostline.tasks import Collator, encode, load_task, model_kind, prepare_tokenizer

MOMENTS, STEPS, ROWS, PROBES, TOKENS, LENGTH = 20, 80, 480, 16, 256, 64
SETTLED = 0.01
"""1 - CKA up to which a block's outputs count as those of the end."""
MODELS = {
    "MiniLM": "sentence-transformers/all-MiniLM-L6-v2",
    "base16": "frostline/base16",
    "stories260K": "karpathy/stories260K",
}


@dataclass(frozen=True)
class Kind:
    """One training: model, task, learning rate and its schedule."""

    model: str
    task: str
    learning_rate: float
    lr_scheduler_type: str
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.model}-{self.task}-{self.learning_rate:g}-{self.lr_scheduler_type}-{self.seed}"


def kinds() -> list[Kind]:
    """Every model on its tasks, with two learning rates and two schedules."""
    tasks = {
        "stories260K": ("webnlg", "arc-e", "boolq", "gsm8k"),
        "MiniLM": ("rte", "qnli", "cb", "wnli"),
        "base16": ("webnlg", "obqa", "arc-c"),
    }
    rates = {"stories260K": (3e-4, 2e-3), "MiniLM": (5e-5, 3e-4), "base16": (3e-4, 2e-3)}
    return [
        Kind(model, task, rate, kind)
        for place in range(max(map(len, tasks.values())))
        for model in tasks
        for task in tasks[model][place : place + 1]
        for rate, kind in zip(rates[model], ("linear", "constant_with_warmup"), strict=True)
    ]


class Recording:
    """A schedule of one plan. At every moment it notes signals, and the outputs of each block on the same rows."""

    settled = False
    observes = frozenset({"weight_motion", "learning_rate"})

    def __init__(self, model: nn.Module, plan: Plan, batch: Mapping[str, Tensor]) -> None:
        self.first, self.model, self.batch = plan, model, batch
        self.motion: list[list[float]] = []
        self.rates: list[float] = []
        self.outputs: list[list[Tensor]] = [self.states()]

    def next(self, step: int, observations: Observations) -> Plan | None:
        if step % (STEPS // MOMENTS) == 0:
            self.motion.append(list(observations["weight_motion"]))
            self.rates.append(observations["learning_rate"][0])
            self.outputs.append(self.states())
        return None

    def states(self) -> list[Tensor]:
        blocks = {str(block.index): block.name for block in find_anatomy(self.model, adapted=True).blocks}
        with undisturbed(self.model):
            found = capture(self.model, blocks, self.batch)
        mask = self.batch["attention_mask"].bool()
        return [found[str(index)][mask][:TOKENS] for index in range(len(blocks))]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


def distance(first: Tensor, second: Tensor) -> float:
    """1 - linear CKA of outputs [tokens, d] (Kornblith et al. 2019)."""
    first, second = (x.double() - x.double().mean(dim=0) for x in (first, second))
    return float(1 - (first.T @ second).square().sum() / ((first.T @ first).norm() * (second.T @ second).norm()))


def arguments(folder: str, kind: Kind, steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=kind.learning_rate,
        lr_scheduler_type=kind.lr_scheduler_type,
        warmup_steps=4,
        seed=kind.seed,
        save_strategy="no",
        report_to="none",
        logging_steps=10_000,
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )


def loaded(kind: Kind) -> tuple[Any, list[dict[str, Any]], Any]:
    """Model, rows and collator of a training."""
    task = load_task(kind.task)
    with quiet_libraries():
        model = load_model(MODELS[kind.model], task, seed=kind.seed, dtype="float32")
        tokenizer = prepare_tokenizer(load_tokenizer(MODELS[kind.model]))
    rows = encode(task, "train", tokenizer, LENGTH, model_kind(model.config))
    return model, [dict(row) for row in rows][: ROWS + PROBES], Collator(tokenizer)


def record(kind: Kind) -> dict[str, Any]:
    """Train once, and give what the predictor may read at each moment and how far each block is from its end."""
    model, rows, collate = loaded(kind)
    plan = freeze_blocks(Situation.of(model), set(), "all")
    batch = {name: value for name, value in collate(rows[-PROBES:]).items() if name != "labels"}
    schedule = Recording(model, plan, batch)
    with tempfile.TemporaryDirectory() as folder:
        trainer = fl.Trainer(
            model,
            arguments(folder, kind, STEPS),
            schedule=schedule,
            train_dataset=rows[:-PROBES],
            data_collator=collate,
            activation_cache="off",
        )
        trainer.train()
    end = schedule.states()
    far = [[distance(now, last) for now, last in zip(own, end, strict=True)] for own in schedule.outputs]
    return {**asdict(kind), "motion": schedule.motion, "rates": schedule.rates, "far": far}


def collect(out: Path, only: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for kind in kinds():
        place = out / f"{kind.name}.json"
        if only in kind.name and not place.exists():
            place.write_text(json.dumps(record(kind)))
            print(kind.name, flush=True)


Examples = list[Tensor]
"""Moments [N, H, F], block [N, S], mask [N, H] and whether the block has settled [N]."""


def examples(runs: list[Any]) -> Examples:
    """One example for each block at each moment of each training."""
    found = []
    for run in runs:
        for moment in range(1, len(run["motion"]) + 1):
            for block, far in enumerate(run["far"][moment]):
                read = features(run["motion"][:moment], run["rates"][:moment], block, moment / MOMENTS)
                found.append((*read, torch.tensor([float(far <= SETTLED)])))
    return [torch.cat(column) for column in zip(*found, strict=True)]


def fitted(model: nn.Module, inputs: Examples, settled: Tensor, steps: int = 600) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.01)
    for _ in range(steps):
        loss = nn.functional.binary_cross_entropy_with_logits(model(*inputs).flatten(), settled)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def predictor(data: Examples) -> nn.Module:
    torch.manual_seed(0)
    return fitted(Predictor(), data[:3], data[3])


def judge(runs: list[Any]) -> None:
    """Print one line for each part that is left out."""
    table = Table(*("left out", "examples", "settled", "accuracy", "of those it freezes, settled"))
    for column in ("most frequent answer", "depth and progress"):
        table.add_column(column)
    parts = [(f"{run['task']} (task)", "", run["task"]) for run in runs]
    parts += [(f"{run['model']} (model)", run["model"], "") for run in runs]
    parts += [(f"{run['model']} and its tasks", run["model"], "its") for run in runs]
    for name, model, task in dict.fromkeys(parts):
        tasks = {run["task"] for run in runs if run["model"] == model} if task == "its" else {task}
        tested = [run for run in runs if (run["model"] == model if model else run["task"] in tasks)]
        rest = [run for run in runs if run["model"] != model and run["task"] not in tasks]
        seen, new = examples(rest), examples(tested)
        truth = new[3] > 0.5
        found = predictor(seen)(*new[:3]) > 0
        plain = fitted(nn.Linear(2, 1), seen[1:2], seen[3])(new[1]).flatten() > 0
        frequent = torch.full_like(truth, bool(seen[3].mean() > 0.5))
        shown = [
            float(x.float().mean()) for x in (truth, found == truth, truth[found], frequent == truth, plain == truth)
        ]
        table.add_row(name, f"{len(truth):,}", *(f"{value:.2f}" for value in shown))
    Console(width=140).print(f"{len(runs)} trainings", table)


def train(runs: list[Any]) -> None:
    place = Path(_predictor.__file__).with_name(WEIGHTS)
    save_file(predictor(examples(runs)).state_dict(), place)
    print(f"{place}: {place.stat().st_size:,} bytes, from {len(runs)} trainings")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["collect", "judge", "train"])
    parser.add_argument("--out", type=Path, default=Path("runs/smartfrz"))
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "collect":
        collect(given.out, given.only)
        return
    runs = [json.loads(path.read_text()) for path in sorted(given.out.glob("*.json"))]
    judge(runs) if given.what == "judge" else train(runs)


if __name__ == "__main__":
    main()
