"""Measure the signals of a pair, and train each block alone. A finding is one small JSON."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import frostline as fl
from frostline.anatomy import find_anatomy
from frostline.checkpoints import load_tokenizer, quiet_libraries
from frostline.core.files import write_json
from frostline.core.labels import IGNORED
from frostline.plan import Full
from frostline.run import load_model
from frostline.run._device import autocast
from frostline.signals import SIGNALS, choose_signals, measure
from frostline.tasks import Collator, TaskOptions, encode, load_task, model_kind, prepare_tokenizer
from signals_judged.pairs import SEEDS, Pair

RATE_SEED = 7
WARM_UP = 5
SAMPLE = 64
"""Rows that signals are measured on."""
CUTS = (0.0, 0.25, 0.5, 0.75)
"""The share of the blocks that is frozen."""


class Trial:
    """Trains plans of one pair with one seed."""

    def __init__(self, pair: Pair, seed: int) -> None:
        self.pair, self.seed = pair, seed
        options = TaskOptions(max_eval_rows=pair.eval_rows, seed=seed)
        self.task = load_task(pair.task, options)
        with quiet_libraries():
            self.tokenizer = prepare_tokenizer(load_tokenizer(pair.model))
        model = self.model()
        kind = model_kind(model.config)
        self.rows = encode(self.task, "train", self.tokenizer, pair.max_length, kind).rows
        few = encode(self.task, "eval", self.tokenizer, pair.max_length, kind).rows
        self.held_out = sorted((row for row in few if labelled(row)), key=lambda row: len(row["input_ids"]))
        self.blocks = len(find_anatomy(model).blocks)
        self.collate = Collator(self.tokenizer)

    def model(self, dtype: str = "auto") -> Any:
        with quiet_libraries():
            model = load_model(self.pair.model, self.task, seed=self.seed, dtype=dtype)
            prepare_tokenizer(self.tokenizer, model)
        return model

    def batches(self) -> Iterator[dict[str, Any]]:
        """Batches of rows in an order that the seed draws, epoch after epoch."""
        draw = torch.Generator().manual_seed(self.seed)
        while True:
            order = torch.randperm(len(self.rows), generator=draw).tolist()
            for at in range(0, len(order) - self.pair.batch + 1, self.pair.batch):
                yield self._batch([self.rows[i] for i in order[at : at + self.pair.batch]])

    def _batch(self, rows: Sequence[Any]) -> dict[str, Any]:
        return {name: value for name, value in self.collate(rows).items() if isinstance(value, torch.Tensor)}

    @torch.no_grad()
    def loss(self, model: Any) -> float:
        """The mean loss of the held-out rows, each row's own mean over its labels."""
        model.eval()
        total = 0.0
        for at in range(0, len(self.held_out), 32):
            rows = self.held_out[at : at + 32]
            with autocast(None):
                logits, labels = model(**(batch := self._batch(rows))).logits.float(), batch["labels"]
            if labels.dim() == 1:
                total += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            else:
                losses = torch.nn.functional.cross_entropy(
                    logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=IGNORED
                )
                total += float((losses.sum(1) / (labels[:, 1:] != IGNORED).sum(1)).sum())
        return round(total / len(self.held_out), 6)

    @cached_property
    def before(self) -> float:
        return self.loss(self.model())

    def train(self, trained: Sequence[int], rate: float, steps: int) -> dict[str, Any]:
        """Train some blocks and the head, at a rate that rises over a few steps and then stays."""
        model = self.model()
        fl.apply(plan_of(model, trained), model)
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0.0)
        begun = time.process_time()
        torch.manual_seed(self.seed)
        model.train()
        for step, batch in enumerate(islice(self.batches(), steps)):
            optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / WARM_UP)
            with autocast(None):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.process_time() - begun
        found = {"seed": self.seed, "blocks": list(trained), "rate": rate, "steps": steps, "before": self.before}
        return found | {"after": self.loss(model), "cpu_seconds": round(seconds, 1)}

    def signals(self) -> dict[str, Any]:
        """Every signal that the model has, on the first rows that the seed draws, in float32."""
        model = self.model("float32")
        draw = torch.Generator().manual_seed(self.seed)
        sample = [self.rows[i] for i in torch.randperm(len(self.rows), generator=draw)[:SAMPLE].tolist()]
        names = [name for name in SIGNALS if self._has(model, name, sample)]
        begun = time.process_time()
        with quiet_libraries():
            measured = measure(model, sample, self.collate, signals=names)
        values = {
            name: [None if one.value is None or math.isinf(one.value) else float(f"{one.value:.6g}") for one in found]
            for name, found in measured.items()
            if "." not in name
        }
        seconds = round(time.process_time() - begun, 1)
        return {"seed": self.seed, "rows": SAMPLE, "cpu_seconds": seconds, "signals": values}

    @staticmethod
    def _has(model: Any, name: str, sample: Sequence[Any]) -> bool:
        try:
            choose_signals(model, find_anatomy(model), sample, [name])
        except fl.FrostlineError:
            return False
        return True


def plan_of(model: Any, trained: Sequence[int]) -> fl.Plan:
    """Some blocks and the head train; a head that is tied to the embeddings is untied."""
    plan = fl.make_plan(model, "head")
    blocks = tuple(Full() if block in trained else mode for block, mode in enumerate(plan.blocks))
    return plan.model_copy(update={"blocks": blocks})


def labelled(row: Mapping[str, Any]) -> bool:
    return isinstance(row["labels"], int) or any(label != IGNORED for label in row["labels"][1:])


def keep(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The finding at `path`; made and written where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(path, time.strftime("%H:%M:%S"), flush=True)
        write_json(path, make())
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def rate_of(pair: Pair, folder: Path) -> float:
    """The best of the pair's rates for its middle block."""

    def losses() -> dict[str, Any]:
        trial = Trial(pair, RATE_SEED)
        middle = [trial.blocks // 2]
        tried = {f"{rate:g}": trial.train(middle, rate, pair.steps)["after"] for rate in pair.rates}
        return {"seed": RATE_SEED, "blocks": middle, "steps": pair.steps, "before": trial.before, "after": tried}

    after = keep(folder / "rates.json", losses)["after"]
    return float(min(after, key=after.get))


def run(pairs: Sequence[Pair], out: Path) -> None:
    for seed in SEEDS:
        for pair in pairs:
            folder = out / pair.name
            rate, trial = rate_of(pair, folder), Trial(pair, seed)
            keep(folder / f"signals-seed{seed}.json", trial.signals)
            plans = {"head": [], **{f"block{block}": [block] for block in range(trial.blocks)}}
            for name, trained in plans.items():
                keep(folder / f"{name}-seed{seed}.json", lambda: trial.train(trained, rate, pair.steps))  # noqa: B023
    for pair in pairs:
        folder, trial = out / pair.name, Trial(pair, SEEDS[0])
        for cut in sorted({round(share * trial.blocks) for share in CUTS}, reverse=True):
            trained, steps = list(range(cut, trial.blocks)), steps_of(pair, trial, cut)
            path = folder / f"cut{cut}-seed{SEEDS[0]}.json"
            keep(path, lambda: trial.train(trained, rate_of(pair, folder), steps))  # noqa: B023


def steps_of(pair: Pair, trial: Trial, cut: int) -> int:
    """As many steps as fit in the time of `pair.steps` steps of all blocks (methods.md 7, the cached limit)."""
    anatomy = find_anatomy(trial.model())
    width = sum(linear.in_features * linear.out_features for linear in anatomy.head_linears)
    tokens = pair.max_length if anatomy.has_lm_head else 1
    head = width * tokens / (anatomy.blocks[0].parameters * pair.max_length)
    return round(pair.steps * (trial.blocks + head) / (trial.blocks - cut + head))
