"""Call what a user brings (a collator, a data set) without a trace: its own state is put back afterwards."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from frostline.hooks._undisturbed import generators_kept

_DEPTH = 4
"""How many objects deep state is looked for: a wrapper, a collator, what it is made of, a generator of that."""
_MANY = 64
"""Collections of more entries than this hold data, not state; their entries are not looked at."""
_LEFT_ALONE = ("transformers.token", "tokenizers", "datasets", "pyarrow", "pandas")
"""Modules whose objects have no state that a call changes, or much too much of it to look at."""


@contextmanager
def state_kept(*things: Any, device: torch.device | None = None) -> Iterator[None]:
    """Inside this context, `things` may be called; at the end they and all random generators are as they were.

    Attributes, the variables that a function encloses, lists, dicts and generators are put back; models, tokenizers
    and tensors are not looked at.

    Args:
        things: collators, data sets, functions.
        device: the accelerator whose generator is to be kept too.
    """
    undo: list[Callable[[], Any]] = []
    seen: set[int] = set()
    for thing in things:
        _remember(thing, undo, seen, _DEPTH)
    try:
        with generators_kept(device):
            yield
    finally:
        for put_back in reversed(undo):
            put_back()


def _remember(thing: Any, undo: list[Callable[[], Any]], seen: set[int], depth: int) -> None:
    """Add to `undo` what puts `thing` back as it is now."""
    if depth < 0 or id(thing) in seen or isinstance(thing, (nn.Module, torch.Tensor, np.ndarray, type)):
        return
    seen.add(id(thing))
    inner: list[Any] = []
    if isinstance(thing, torch.Generator):
        undo.append(functools.partial(thing.set_state, thing.get_state()))
    elif isinstance(thing, random.Random):
        undo.append(functools.partial(thing.setstate, thing.getstate()))
    elif isinstance(thing, np.random.Generator):
        undo.append(functools.partial(setattr, thing.bit_generator, "state", thing.bit_generator.state))
    elif isinstance(thing, np.random.RandomState):
        undo.append(functools.partial(thing.set_state, thing.get_state()))
    elif isinstance(thing, list):
        undo.append(functools.partial(thing.__setitem__, slice(None), list(thing)))
        inner = thing if len(thing) <= _MANY else []
    elif isinstance(thing, dict | set):
        undo.append(functools.partial(_refill, thing, thing.copy()))
        inner = list(thing.values()) if isinstance(thing, dict) and len(thing) <= _MANY else []
    elif isinstance(thing, tuple):
        inner = list(thing) if len(thing) <= _MANY else []
    elif isinstance(thing, functools.partial):
        inner = [thing.func, *thing.args, *thing.keywords.values()]
    elif hasattr(thing, "__func__"):  # a method
        inner = [thing.__func__, thing.__self__]
    elif hasattr(thing, "__closure__"):
        for cell in thing.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # a variable that has no value yet
                continue
            undo.append(functools.partial(setattr, cell, "cell_contents", value))
            inner.append(value)
    elif hasattr(thing, "__dict__") and not type(thing).__module__.startswith(_LEFT_ALONE):
        undo.append(functools.partial(_refill, vars(thing), dict(vars(thing))))
        inner = list(vars(thing).values())
    for value in inner:
        _remember(value, undo, seen, depth - 1)


def _refill(collection: Any, content: Any) -> None:
    collection.clear()
    collection.update(content)
