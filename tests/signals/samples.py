"""Encoded rows of unequal length for tiny and real models, and their collator."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

LENGTHS = (3, 9, 5, 7, 4)
PAD, IGNORED = 0, -100
TEXTS = ("The cat sat on the mat.", "A dog barked at the old man next door all night.", "It rained.")


def sample(model: Any, *, seed: int = 0, targets: int = 2) -> list[dict[str, Any]]:
    """A row for each of `LENGTHS`: class labels for a classifier, else the last `targets` tokens labelled."""
    draw = random.Random(seed)
    rows = []
    for length in LENGTHS:
        ids = [draw.randrange(3, model.config.vocab_size) for _ in range(length)]
        if "Classification" in type(model).__name__:
            labels: Any = draw.randrange(2)
        elif model.config.is_encoder_decoder:
            labels = [draw.randrange(3, model.config.vocab_size) for _ in range(targets)]
        else:
            labels = [IGNORED] * (length - targets) + ids[-targets:]
        rows.append({"input_ids": ids, "labels": labels, "example_id": f"train:{len(rows)}"})
    return rows


def first(_row: dict[str, Any]) -> int:
    """The token that a row's labels are read at, as a position: the first."""
    return 0


def last(_row: dict[str, Any]) -> int:
    """The last one."""
    return -1


def before_label(row: dict[str, Any]) -> int:
    """The one before the first labelled token."""
    return next(at for at, label in enumerate(row["labels"]) if label != IGNORED) - 1


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch padded on the right."""

    def padded(name: str, value: int) -> torch.Tensor:
        most = max(len(row[name]) for row in rows)
        return torch.tensor([row[name] + [value] * (most - len(row[name])) for row in rows])

    whole = isinstance(rows[0]["labels"], list)
    return {
        "input_ids": padded("input_ids", PAD),
        "attention_mask": padded("input_ids", PAD).ne(PAD).long(),
        "labels": padded("labels", IGNORED) if whole else torch.tensor([row["labels"] for row in rows]),
        "example_id": [row["example_id"] for row in rows],
    }


def alone(row: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A batch of one row, without padding."""
    return {name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}


def real(folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The model in `folder` in float32, as a classifier where it is an encoder, and rows of English for it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    auto: Any = AutoModelForSequenceClassification if tokenizer.cls_token else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    rows: list[dict[str, Any]] = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        labels: Any = len(rows) % 2 if tokenizer.cls_token else [IGNORED] * (len(ids) - 2) + ids[-2:]
        rows.append({"input_ids": ids, "labels": labels, "example_id": f"train:{len(rows)}"})
    return model, rows
