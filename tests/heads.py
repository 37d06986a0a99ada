"""Tiny models of every head that a user may bring, with rows and a collator for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
)

from architectures import ARCHITECTURES, WIDTH

Row = dict[str, Any]


@dataclass(frozen=True)
class Head:
    """One head: its auto class, settings of its config, and what is beside the ids in row `i` of `length` tokens."""

    auto: Any
    config: dict[str, Any]
    beside: Callable[[int, list[int], torch.Generator], Row]


def _some(ids: list[int], index: int) -> list[int]:
    """Labels of unequal numbers: the ids, without the first few."""
    skipped = 1 + index % 3
    return [-100] * skipped + ids[skipped:]


def _tokens(index: int, ids: list[int], random: torch.Generator) -> Row:
    labels = torch.randint(3, (len(ids),), generator=random).tolist()
    return {"labels": [-100 if position % 3 == index % 3 else label for position, label in enumerate(labels)]}


def _masked(index: int, ids: list[int], random: torch.Generator) -> Row:
    return {"labels": [token if position % 4 == index % 2 else -100 for position, token in enumerate(ids)]}


HEADS: dict[str, Head] = {
    "classes": Head(AutoModelForSequenceClassification, {"num_labels": 3}, lambda i, ids, _: {"labels": i % 3}),
    "several labels": Head(
        AutoModelForSequenceClassification,
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        lambda i, ids, _: {"labels": [float(i % 2), float(i % 3 == 0), 1.0]},
    ),
    "a number": Head(
        AutoModelForSequenceClassification,
        {"num_labels": 1, "problem_type": "regression"},
        lambda i, ids, _: {"labels": 0.3 * i},
    ),
    "token classes": Head(AutoModelForTokenClassification, {"num_labels": 3}, _tokens),
    "answers": Head(
        AutoModelForQuestionAnswering,
        {},
        lambda i, ids, _: {"start_positions": i % len(ids), "end_positions": len(ids) - 1},
    ),
    "choices": Head(AutoModelForMultipleChoice, {}, lambda i, ids, _: {"labels": i % 2}),
    "masked": Head(AutoModelForMaskedLM, {}, _masked),
    "causal": Head(AutoModelForCausalLM, {}, lambda i, ids, _: {"labels": _some(ids, i)}),
    "seq2seq": Head(
        AutoModelForSeq2SeqLM,
        {},
        lambda i, ids, random: {"labels": torch.randint(3, 100, (2 + i % 4,), generator=random).tolist()},
    ),
}


def model_of(architecture: str, head: str, dropout: float = 0.0) -> Any:
    """A random model of 4 blocks with this head, its weights drawn by a seed."""
    chosen = HEADS[head]
    if architecture == "bart":
        sizes = {"d_model": WIDTH, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4}
        sizes |= {"decoder_attention_heads": 4, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 128}
        config: Any = BartConfig(**sizes, max_position_embeddings=64, pad_token_id=0, **chosen.config)
        config.forced_eos_token_id = None
    else:
        config = ARCHITECTURES[architecture](**chosen.config)
    config.classifier_dropout = dropout  # some heads have dropout of 0.1 where the config does not say
    for key, value in config.to_dict().items():
        if ("dropout" in key or "pdrop" in key) and isinstance(value, int | float):
            setattr(config, key, dropout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return chosen.auto.from_config(config)


def rows_of(head: str, count: int = 8) -> list[Row]:
    """Rows of 5 to 9 tokens; of 8 for answers, whose loss reads padding too: the softmax runs over all positions."""
    random = torch.Generator().manual_seed(3)
    rows = []
    for index in range(count):
        length = 8 if head == "answers" else 5 + index % 5
        ids = torch.randint(3, 100, (length,), generator=random).tolist()
        row: Row = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        if head == "choices":
            row = {name: [values, values[::-1]] for name, values in row.items()}
        rows.append(row | HEADS[head].beside(index, ids, random))
    return rows


def collate(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Padded on the right to the longest row."""
    batch = {}
    for name in rows[0]:
        fill = -100 if name == "labels" and isinstance(rows[0][name], list) and _whole(rows[0][name]) else 0
        batch[name] = torch.tensor(_padded([row[name] for row in rows], fill))
    return batch


def _whole(values: Any) -> bool:
    return all(isinstance(value, int) for value in values)


def _padded(values: list[Any], fill: int) -> list[Any]:
    if not isinstance(values[0], list):
        return values
    if isinstance(values[0][0], list):
        longest = max(len(inner) for value in values for inner in value)
        return [[inner + [fill] * (longest - len(inner)) for inner in value] for value in values]
    longest = max(map(len, values))
    return [value + [fill] * (longest - len(value)) for value in values]
