"""A call of a model, and the rows that it brings.

B rows, T tokens
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from frostline.bottom._bottom import NOT_READ_BELOW, Bottom
from frostline.bottom._caching_pass import same_states
from frostline.bottom._cut import last_blocks
from frostline.bottom._feed import BRINGS_STATES, RowsInBatch, asks_below, rows_of
from frostline.bottom._rows import spans_in
from frostline.core.errors import DataError
from frostline.core.labels import IGNORED
from frostline.hooks import capture, evaluation_mode, generators_kept, packed_starts, says_how_packed

_LENGTHS = ("max_length_q", "max_length_k")
"""Arguments of a packed call that repeat the length of its longest row."""


@dataclass(frozen=True)
class Call:
    """A call of the model whose rows are known by name.

    Attributes:
        rows: of the call.
        real: which tokens are no padding, [B, T].
        labelled: the same of the decoder, where its rows are among those of the call.
        precision: at which the model is called.
        places: of each row: its line's length, where it begins, and the rows before it that it might see.
        asked: what the call has beside the rows.
    """

    rows: RowsInBatch
    real: Tensor
    labelled: Tensor | None
    precision: torch.dtype | None
    places: tuple[Any, ...]
    asked: frozenset[str]

    @property
    def padded(self) -> bool:
        return not bool(self.real.all()) or (self.labelled is not None and not bool(self.labelled.all()))

    def real_of(self, config: Any) -> Callable[[str], Tensor | None]:
        """Name of an output -> which of its positions are no padding, [B, T]; None where that is not known."""
        two = getattr(config, "is_encoder_decoder", False)
        return lambda name: self.labelled if two and not name.startswith("encoder") else self.real


class Calls:
    """Tells which rows a model is called with.

    Args:
        bottom: of the model.
        paused: a context in which calls of the model are not looked at.
    """

    def __init__(self, bottom: Bottom, paused: Callable[[], AbstractContextManager[None]]) -> None:
        self._bottom, self._paused, self._model = bottom, paused, bottom.training.model
        self._apart: dict[Any, bool] = {}  # a kind of call -> whether the states of a row do not depend on it

    def recognized(self, batch: Mapping[str, Any]) -> Call | None:
        """The rows of a call; None where they cannot be told, or the call is not one of plain rows."""
        if asks_below(self._model.config, batch) or any(batch.get(name) is not None for name in BRINGS_STATES):
            return None
        names, not_read = self._bottom.names, {*NOT_READ_BELOW, *self._bottom.training.label_names}
        decodes = "labels" in names.values()
        given = {name: value for name, value in batch.items() if value is not None}
        read = {name: value for name, value in given.items() if name not in not_read or (decodes and name == "labels")}
        if any(name.startswith("decoder_") for name in read):
            if decodes:
                return None  # the decoder is not called with the labels
            read = {name: value for name, value in read.items() if not name.startswith("decoder_")}
        read = {name: value for name, value in read.items() if name not in _LENGTHS}
        settings = {name: value for name, value in read.items() if isinstance(value, bool | int | float | str)}
        tensors = {name: value for name, value in read.items() if name not in settings}
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                return None
            if name not in self._bottom.inputs and not says_how_packed(name, value, batch):
                return None
        try:
            rows = rows_of(tensors, self._bottom.inputs)
            if not rows:
                return None
            keys = tuple(self._bottom.key(row) for row in rows)
        except (DataError, TypeError, ValueError, KeyError):
            return None
        if settings and not self._without_effect(settings, given):
            keys = tuple(f"{key} {sorted(settings.items())}" for key in keys)
        return self._placed(keys, given, tensors, frozenset(given))

    def keys_of(self, batch: Mapping[str, Any]) -> tuple[str, ...] | None:
        """The keys by which the rows of a call with `batch` are recognized; None where they cannot be told."""
        call = self.recognized(batch) if isinstance(batch, Mapping) else None
        return None if call is None else call.rows.keys

    def _placed(
        self, keys: tuple[str, ...], given: Mapping[str, Any], tensors: Mapping[str, Any], asked: frozenset[str]
    ) -> Call | None:
        """The call with rows of these `keys`; None where their places cannot be told, or matter for their states."""
        ids, mask, labels = tensors["input_ids"], tensors.get("attention_mask"), tensors.get("labels")
        if labels is not None and labels.dim() != 2:
            return None  # classes: not what the decoder reads
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        labelled = None if labels is None else labels != IGNORED
        length, starts = ids.shape[1], packed_starts(tensors)
        if starts is not None:
            ends = [*starts[1:], length]
            spans: Tensor | None = torch.tensor([(0, a, b - a) for a, b in zip(starts, ends, strict=True)])
        else:
            spans = spans_in(real)
        found = {"input_ids": spans, "labels": None if labelled is None else spans_in(labelled)}
        by_stream = {stream: found[name] for stream, name in self._bottom.names.items()}
        if spans is None or any(each is None or len(each) != len(keys) for each in by_stream.values()):
            return None
        places = tuple((length, start, keys[:i] if starts else ()) for i, start in enumerate(spans[:, 1].tolist()))
        if starts is not None:
            kind: Any = ("packed", asked, self._model.training)
        elif bool((spans[:, 1] > 0).any()) and "position_ids" not in tensors:
            kind = ("moved", asked)
        else:
            kind = None
        if kind is not None and not self._independent(kind, given, spans):
            return None
        shapes = {stream: tuple(given[name].shape[:2]) for stream, name in self._bottom.names.items()}
        rows = RowsInBatch(keys, cast(Any, by_stream), cast(Any, shapes))
        return Call(rows, real, labelled, autocast_dtype(ids.device), places, asked)

    def _independent(self, kind: Any, given: Mapping[str, Any], spans: Tensor) -> bool:
        """Whether the states of a row in such a call are those that it has alone, at the start of a line."""
        if kind not in self._apart:
            ids = given["input_ids"]
            line, start, count = spans[(spans[:, 1] > 0).nonzero()[0, 0]].tolist()
            ends = slice(start, start + count)
            inputs = {
                name: value for name, value in given.items() if isinstance(value, Tensor) and value.shape == ids.shape
            }
            inputs = {name: value for name, value in inputs.items() if not name.startswith(("labels", "shift_labels"))}
            alone = {name: value[line : line + 1, ends] for name, value in inputs.items()}
            others = {
                name: value for name, value in given.items() if not isinstance(value, Tensor) and name not in _LENGTHS
            }
            try:
                together, single = self._states(given), self._states(alone | others)
                self._apart[kind] = same_states(
                    {stream: states[line, ends] for stream, states in together.items()},
                    {stream: states[0] for stream, states in single.items()},
                )
            except (RuntimeError, ValueError, TypeError, IndexError):
                self._apart[kind] = False
        return self._apart[kind]

    def _without_effect(self, settings: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
        """Whether the states of a call are the same without its `settings`, such as TRL's `fused_lm_head`."""
        kind = ("settings", *sorted(settings.items()))
        if kind not in self._apart:
            try:
                without = self._states({name: value for name, value in given.items() if name not in settings})
                equal = all(torch.equal(value, without[stream]) for stream, value in self._states(given).items())
                self._apart[kind] = equal and len(self._bottom.names) == 1  # a decoder is not looked at
            except (RuntimeError, ValueError, TypeError, IndexError):
                self._apart[kind] = False
        return self._apart[kind]

    def _states(self, given: Mapping[str, Any]) -> dict[str, Tensor]:
        """The boundary states of a call, stream -> [B, T, d] on the CPU; of an encoder-decoder, the encoder's."""
        whole = {name: value for name, value in given.items() if "labels" not in name}
        blocks = dict(list(last_blocks(self._bottom.cut).items())[:1])
        with self._paused(), evaluation_mode(self._model), generators_kept(given["input_ids"].device):
            found = capture(self._model, blocks, whole | {"return_dict": True})
        return {stream: states.cpu() for stream, states in found.items()}


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
