"""`adapter_names=[...]` of PEFT: each row of a batch has an adapter of its own.

PEFT passes the names from the model's call to its layers by hooks. So does this, but the hooks act in the call that
brought the names only: calls at the same time in other threads go by the active adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from frostline.core.errors import AdapterError

BASE = "__base__"
"""PEFT's name for a row without an adapter."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The adapter of each row. With `beams`, generation repeats each row so many times, but not in an encoder."""

    names: tuple[str, ...]
    beams: int

    def of(self, rows: int) -> list[str]:
        """The adapter of each of `rows` rows. Raises `AdapterError` where their number does not fit."""
        if rows == len(self.names):
            return list(self.names)
        if rows == len(self.names) * self.beams:
            return [name for name in self.names for _ in range(self.beams)]
        raise AdapterError(
            f"Length of `adapter_names` should be the same as the number of inputs, but got {len(self.names)} and "
            f"{rows} respectively."
        )


_NAMED: ContextVar[Rows | None] = ContextVar("named", default=None)


@contextmanager
def rows_named(layers: Sequence[nn.Module], names: Sequence[str], beams: int) -> Iterator[None]:
    """Inside, calls of `layers` get the rows' names as `adapter_names`.

    Args:
        layers: modules with adapters, and modules that train whole.
        names: the adapter of each row.
        beams: how many times generation repeats each row.
    """
    rows = Rows(tuple(names), beams)

    def name_rows(layer: nn.Module, args: Any, kwargs: Any = None) -> Any:
        # A call of another thread; it gets no kwargs where it comes while this hook is put on or taken off.
        if _NAMED.get() is not rows:
            return None
        given: Any = args[0] if args else next(iter(kwargs.values()))
        return args, {**kwargs, "adapter_names": rows.of(len(given))}

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(name_rows, with_kwargs=True).remove)
        token = _NAMED.set(rows)
        try:
            yield
        finally:
            _NAMED.reset(token)


def by_adapter(names: Sequence[str], device: torch.device) -> dict[str, Tensor]:
    """Adapter -> the numbers of its rows. Rows of the base are left out."""
    found: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name != BASE:
            found.setdefault(name, []).append(row)
    return {name: torch.tensor(rows, device=device) for name, rows in found.items()}


def trained_whole(model: nn.Module) -> list[nn.Module]:
    """The modules that PEFT trains whole, beside adapters."""
    return [module for module in model.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
