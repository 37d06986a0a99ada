"""A plan for a model that is in memory, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from frostline.core.errors import UserError
from frostline.core.labels import IGNORED
from frostline.core.seeding import derive_seed
from frostline.cost import Workload
from frostline.plan import Plan
from frostline.signals import Probe, measure, token_text
from frostline.strategies import Budget, Situation, choose_schedule

Collate = Callable[[Any], Mapping[str, Any]]


def make_plan(
    model: nn.Module,
    strategy: str = "bot50",
    *,
    data: Any = None,
    data_collator: Collate | None = None,
    budget: Budget | None = None,
    workload: Workload | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Plan:
    """The plan with which the strategy called `strategy` starts on `model`.

    `data` is what strategies that measure the model read: a data set of tokenised rows with `input_ids` and
    `labels`, which `data_collator` makes batches of (by default they are padded on the right). `budget` is what
    training may take on `workload`. Raises `UserError` for an unknown strategy or option, a model without blocks, a
    strategy that wants data where there is none, and a budget that no plan fits.
    """
    situation = Situation.of(
        model,
        seed,
        measure=None if data is None else partial(_measure, model, data, data_collator, seed),
        budget=budget or Budget(),
        workload=workload or Workload(),
    )
    plan = choose_schedule(strategy, situation, options).next(0, {})
    if plan is None:
        raise UserError(f"strategy '{strategy}' gave no plan for step 0")
    return plan


def _measure(
    model: Any, data: Any, collate: Collate | None, seed: int, signals: Sequence[str] | None, rows: int
) -> Probe:
    if not len(data) or "input_ids" not in data[0] or "labels" not in data[0]:
        raise UserError("data: a data set of tokenised rows with input_ids and labels is wanted")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(derive_seed(seed, "probe")))
    sample = [data[index] for index in order[:rows].tolist()]
    found = measure(model, sample, collate or partial(_padded, model), signals=signals)
    classes = isinstance(sample[0]["labels"], int)
    read = token_text(Situation.of(model).anatomy, classes=classes, tokens="first")
    return Probe(str(getattr(model.config, "_name_or_path", "")) or "the model", "the data", len(sample), read, found)


def _padded(model: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    pad = getattr(model.config.get_text_config(), "pad_token_id", None) or 0

    def column(name: str, fill: int) -> torch.Tensor:
        return pad_sequence([torch.as_tensor(row[name]) for row in rows], batch_first=True, padding_value=fill)

    ids = column("input_ids", pad)
    mask = pad_sequence([torch.ones(len(row["input_ids"]), dtype=torch.long) for row in rows], batch_first=True)
    one_each = isinstance(rows[0]["labels"], int)
    labels = torch.tensor([row["labels"] for row in rows]) if one_each else column("labels", IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
