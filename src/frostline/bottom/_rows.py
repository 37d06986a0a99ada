"""Rows: their key by content, and the place of each row in a collated batch.

B rows of the batch as the model reads it, T its length; a packed batch has B = 1
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from frostline.core.errors import DataError
from frostline.hooks import packed_starts

Features = Mapping[str, Any]


class AlteredRow(DataError):
    """The collator has changed a row, so the stored states of the row would be wrong."""


def row_key(features: Features, inputs: Sequence[str]) -> str:
    """A hash of what the model's bottom reads of one row: those features named in `inputs` that it has."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(inputs):
        if features.get(name) is None:
            continue
        try:
            values = torch.as_tensor(features[name])
        except (TypeError, ValueError, RuntimeError):
            raise _no_tokens(name) from None
        if name == "attention_mask" and values.dim() == 1 and bool((values == 1).all()):
            continue  # the same as no mask: a collator makes this one itself
        values = values.float() if values.is_floating_point() else values.long()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode() + values.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _integers(value: Any) -> Tensor | None:
    """The integers of a feature, [n]; None where it is something else (a text, a class label)."""
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        return None
    found = torch.as_tensor(value)
    return found.long() if found.dim() == 1 and not found.is_floating_point() else None


def row_length(features: Features, name: str) -> int:
    """How many tokens a row has in the feature `name`. Raises `DataError` when the feature is no list of token ids."""
    if not holds_tokens(features, name):
        raise _no_tokens(name)
    return len(features[name])


def holds_tokens(features: Features, name: str) -> bool:
    """Whether the feature `name` of a row is a list of token ids."""
    return name in features and _integers(features[name]) is not None


def holds_several(tokens: Any) -> bool:
    """Whether the tokens of a row are those of several texts, as for multiple choice."""
    first = tokens[0] if isinstance(tokens, Sequence | Tensor) and len(tokens) else 0
    return isinstance(first, Sequence) or (isinstance(first, Tensor) and first.dim() > 0)


def find_spans(batch: Mapping[str, Any], rows: Sequence[Features], name: str) -> Tensor:
    """The place of each row in the collated `batch`, [rows, 3]: (row of the batch, first token, number of tokens).

    A row is searched for at the start and at the end of its row of the batch (padding on the right or on the left),
    and in a packed batch where the positions begin again.

    Args:
        batch: as collated.
        rows: the rows that it was made of, in order.
        name: the feature that holds the tokens.

    Raises `AlteredRow` when a row is not there unchanged (the collator masks or shuffles tokens), and `DataError` when
    a row has no tokens.
    """
    ids = batch[name]
    starts = packed_starts(batch) if len(rows) > 1 else None
    spans = []
    for i, row in enumerate(rows):
        values = _integers(row[name])
        if values is None:
            raise _no_tokens(name)
        own, length = values.to(ids.device), len(values)
        line = 0 if starts is not None else i
        candidates = [0, ids.shape[-1] - length] if starts is None else starts[i : i + 1]
        found = next((s for s in candidates if s >= 0 and torch.equal(ids[line, s : s + length], own)), None)
        if found is None:
            raise AlteredRow(
                f"the collator changes the rows ('{name}' in the batch differs from the data set), so the stored "
                "states would be wrong"
            )
        spans.append((line, found, length))
    return torch.tensor(spans, dtype=torch.long).reshape(-1, 3)


def spans_in(real: Tensor) -> Tensor | None:
    """The place of each row of a batch, as `find_spans` gives it; None where a row has holes.

    Args:
        real: which tokens are no padding, [B, T].
    """
    counts, length = real.sum(1), real.shape[1]
    steps = torch.arange(length, device=real.device)
    first = torch.where(real, steps, length).amin(1) if length else counts
    last = torch.where(real, steps, -1).amax(1) if length else counts - 1
    if bool(((last - first + 1 != counts) & (counts > 0)).any()):
        return None
    lines = torch.arange(len(real), device=real.device)
    return torch.stack([lines, first.where(counts > 0, 0), counts], dim=1).cpu()


def _no_tokens(name: str) -> DataError:
    return DataError(f"a row has no list of token ids '{name}': use tokenized rows")


def trimmed(batch: Mapping[str, Any], spans: Tensor, name: str) -> dict[str, Any]:
    """`batch` without the columns that are padding in every row.

    Args:
        batch: as collated.
        spans: the places of its rows, as `find_spans` gives them.
        name: the feature that holds the tokens; all features of the same shape are shortened with it.
    """
    shape, end = batch[name].shape, int((spans[:, 1] + spans[:, 2]).max())
    along = {
        key: value[:, :end]
        for key, value in batch.items()
        if isinstance(value, Tensor) and value.shape == shape and (key == "labels") == (name == "labels")
    }
    return {**batch, **along}


def place(states: Sequence[Tensor], spans: Tensor, shape: tuple[int, int]) -> Tensor:
    """Put the states of rows, each [n, d], into zeros [B, T, d] at the places of the rows.

    Args:
        states: of each row.
        spans: the places, as `find_spans` gives them.
        shape: B and T.
    """
    out = torch.zeros(*shape, states[0].shape[-1], dtype=states[0].dtype)
    for state, (line, start, tokens) in zip(states, spans.tolist(), strict=True):
        out[line, start : start + tokens] = state
    return out


def of_rows(
    states: Mapping[str, Tensor],
    keys: Iterable[str],
    spans: Mapping[str, Tensor],
    dtypes: Mapping[str, torch.dtype],
) -> dict[str, dict[str, Tensor]]:
    """The states of each row of a batch, on the CPU and apart from the batch: key -> stream -> [n, d].

    Args:
        states: of the batch, stream -> [B, T, d].
        keys: of its rows.
        spans: stream -> the places of the rows, as `find_spans` gives them.
        dtypes: stream -> the dtype that the states get.
    """
    parts = {stream: cut_out(hidden.to("cpu", dtypes[stream]), spans[stream]) for stream, hidden in states.items()}
    return {key: {stream: own[i].clone() for stream, own in parts.items()} for i, key in enumerate(keys)}


def cut_out(hidden: Tensor, spans: Tensor) -> list[Tensor]:
    """The inverse of `place`: the states [n, d] of each row, taken from `hidden` [B, T, d]."""
    return [hidden[line, start : start + tokens] for line, start, tokens in spans.tolist()]
