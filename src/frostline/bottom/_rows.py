"""Examples: their identity by content, and where a collator put each of them in a batch.

B rows of the batch as the model reads it, T its length; a packed batch has B = 1
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from frostline.core.errors import UserError

Features = Mapping[str, Any]


class AlteredRow(UserError):
    """An example is not in its batch as the data set gives it: stored states would be another text's."""


def row_key(features: Features, inputs: Sequence[str]) -> str:
    """A hash of what the model's bottom reads of one example: the features named in `inputs` that it has."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(inputs):
        if features.get(name) is None:
            continue
        values = torch.as_tensor(features[name])
        if name == "attention_mask" and values.dim() == 1 and bool(values.all()):
            continue  # what a collator would make of it
        values = values.float() if values.is_floating_point() else values.long()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode() + values.contiguous().numpy().tobytes())
    return digest.hexdigest()


def numbers(value: Any) -> Tensor | None:
    """A feature's whole numbers, [n]; None where it is something else (a text, a class label)."""
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        return None
    found = torch.as_tensor(value)
    return found.long() if found.dim() == 1 and not found.is_floating_point() else None


def row_length(features: Features, name: str) -> int:
    """How many tokens one example has in the feature `name`. Raises `UserError` when it has none."""
    values = numbers(features[name]) if name in features else None
    if values is None:
        raise UserError(f"an example has no list of token ids '{name}'")
    return len(values)


def find_spans(batch: Mapping[str, Any], rows: Sequence[Features], name: str) -> Tensor:
    """Where each example of `rows` lies in the collated `batch`: [rows, 3] of (batch row, start, tokens).

    Looked for in the feature `name`: on the right of a row's padding, on the left, or where positions begin again
    when the batch is packed. Raises `AlteredRow` when an example is not there unchanged, as with a collator
    that masks or shuffles tokens.
    """
    ids = batch[name]
    starts = packed_starts(batch) if len(rows) > 1 else None
    spans = []
    for i, row in enumerate(rows):
        values = numbers(row[name])
        if values is None:
            raise UserError(f"an example has no list of token ids '{name}'")
        own, length = values.to(ids.device), len(values)
        line = 0 if starts is not None else i
        candidates = [0, ids.shape[-1] - length] if starts is None else starts[i : i + 1]
        found = next((s for s in candidates if s >= 0 and torch.equal(ids[line, s : s + length], own)), None)
        if found is None:
            raise AlteredRow(
                f"the collator changes the examples ('{name}' differs from the row's), so that stored states would be "
                "another text's"
            )
        spans.append((line, found, length))
    return torch.tensor(spans, dtype=torch.long).reshape(-1, 3)


def trimmed(batch: Mapping[str, Any], spans: Tensor, name: str) -> dict[str, Any]:
    """`batch` without the columns after the last token of any row, in the feature `name` and all that go with it."""
    shape, end = batch[name].shape, int((spans[:, 1] + spans[:, 2]).max())
    along = {
        key: value[:, :end]
        for key, value in batch.items()
        if isinstance(value, Tensor) and value.shape == shape and (key == "labels") == (name == "labels")
    }
    return {**batch, **along}


def packed_starts(batch: Mapping[str, Any]) -> list[int] | None:
    """Where the rows of a packed batch begin: where its positions [1, T] are 0. None for a batch of padded rows."""
    positions = batch.get("position_ids")
    if positions is None or positions.shape[0] != 1 or batch.get("attention_mask") is not None:
        return None
    starts = (positions[0] == 0).nonzero().flatten().tolist()
    return starts if len(starts) > 1 else None


def place(states: Sequence[Tensor], spans: Tensor, shape: tuple[int, int]) -> Tensor:
    """Rows' states, each [n, d], put where `spans` says into zeros of `shape` [B, T], d wide."""
    out = torch.zeros(*shape, states[0].shape[-1], dtype=states[0].dtype)
    for state, (line, start, tokens) in zip(states, spans.tolist(), strict=True):
        out[line, start : start + tokens] = state
    return out


def cut_out(hidden: Tensor, spans: Tensor) -> list[Tensor]:
    """The inverse of `place`: each row's own states [n, d] out of [B, T, d]."""
    return [hidden[line, start : start + tokens] for line, start, tokens in spans.tolist()]
