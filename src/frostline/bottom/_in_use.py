"""The frozen bottom while its states are read: it is out of memory, and each pass of known rows is fed.

In a pass of cached rows, `_before_pass` feeds their states, the stand-ins return them, and `_after_pass` clears them.
In any other pass nothing is fed: the stand-ins call `_before_own` and then the module itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import get_worker_info

from frostline.bottom._below import hook_below
from frostline.bottom._cache import DamagedRow
from frostline.bottom._check import difference_in_use
from frostline.bottom._contents import Contents
from frostline.bottom._feed import BRINGS_STATES, ReadAhead, States, asks_below, rows_in_batch, stored_states
from frostline.bottom._identity import names_below
from frostline.bottom._rows import AlteredRow, Features
from frostline.bottom._standins import StandIns
from frostline.bottom._watch import BottomWatch
from frostline.bottom._weights import OffloadedWeights
from frostline.core.errors import FrostlineError


class InUse:
    """Stand-ins for the bottom of a training, whose weights are out of memory, until `end`.

    Attributes:
        freed: bytes of the weights that are out of memory.

    Args:
        contents: what is cached, and for which training.
        root: the folder in which all caches lie.
        computed: called when a training pass runs the bottom itself.

    Raises `FrostlineError` when there is no room for the weights; then all is as it was.
    """

    def __init__(self, contents: Contents, root: Path, computed: Callable[[], None]) -> None:
        self._contents, self._computed = contents, computed
        self._held = self._is_copy = False
        training, model = contents.training, contents.training.model
        self._reader = ReadAhead(contents.cache, contents.inputs, contents.names, pinned=training.device.type == "cuda")
        self._standins = StandIns(model, contents.cut, self._before_own)
        self._weights = OffloadedWeights(model, self._standins, root)
        self._hooks: list[Any] = []
        self._watch: BottomWatch | None = None
        try:
            self.freed = self._weights.offload()
        except BaseException:
            self.end()
            raise
        if contents.streaming is None:
            self._watch = BottomWatch(model, contents.cut, names_below(training.anatomy, contents.cut))
        self._arguments = tuple(inspect.signature(model.forward).parameters)
        self._hooks = [
            model.register_forward_pre_hook(self._before_pass, with_kwargs=True),
            model.register_forward_hook(self._after_pass, always_call=True),
        ]

    def __reduce__(self) -> Any:
        """A copy of the model (a running average, a pickle) runs its own bottom, and is never fed."""
        return _never_fed, ()

    def end(self) -> None:
        """Give the model its bottom back."""
        for hook in self._hooks:
            hook.remove()
        self._standins.remove()
        self._weights.restore()
        self._reader.close()

    def expect(self, rows: Sequence[Features], batch: Mapping[str, Any]) -> None:
        """Announce that `batch` was collated from `rows`, so that their states are read before the model is called."""
        if get_worker_info() is None:
            self._reader.expect(rows, batch)

    @contextmanager
    def holding(self, rows: Sequence[Features], batch: Mapping[str, Any]) -> Iterator[None]:
        """Inside this context, every pass gets the boundary states of `rows`, whatever ids the pass is given."""
        contents = self._contents
        keys = [contents.key(row) for row in rows]
        with suppress(DamagedRow, AlteredRow, KeyError):  # damaged, or not as cached: nothing is fed, the bottom runs
            self._feed(stored_states(contents.cache, rows_in_batch(keys, batch, rows, contents.names)))
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self._standins.clear()

    def changed(self) -> str | None:
        """Say in one line what has changed below the boundary since the cache is used; None where nothing has."""
        watch = self._watch
        if watch is None:
            return None
        found = watch.change()
        if found is None and watch.written:
            with self._without():
                found = self._contents.change()
            watch.note()
        return found

    def recheck(self) -> str | None:
        """Compare training with the cache and without it on the check rows: how they differ, in one line, or None."""
        contents = self._contents
        if asks_below(contents.training.model.config, {}):  # every pass of training runs the bottom now
            return None
        hook = hook_below(contents.training.model, contents.cut)
        return hook or difference_in_use(contents, self._without, self.holding)

    @contextmanager
    def _without(self) -> Iterator[None]:
        """Inside this context, the bottom runs for every pass."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _before_pass(self, model: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        if self._held:
            return
        batch = dict(zip(self._arguments, args, strict=False)) | dict(kwargs)
        asks = asks_below(model.config, batch)
        if any(isinstance(value, torch.Tensor) and value.is_meta for value in batch.values()):
            raise FrostlineError(
                "the batch lies on the meta device, as the first weights of a streamed model do: use the trainer's "
                "device for batches (trainer.args.device)"
            )
        known = not asks and all(batch.get(name) is None for name in BRINGS_STATES)
        states = self._reader.take(batch) if known else None
        if states is not None:
            self._feed(states)
        elif model.training and torch.is_grad_enabled():
            self._computed()

    def _after_pass(self, *_: Any) -> None:
        if not self._held:
            self._standins.clear()

    def _feed(self, states: States) -> None:
        if torch.is_grad_enabled() and self._weights.offload() and self._watch is not None:
            self._watch.note()  # a pass of other rows had restored them
        device = self._contents.training.device
        self._standins.feed({name: value.to(device, non_blocking=True) for name, value in states.items()})

    def _before_own(self) -> None:
        """Before a module of the bottom runs itself, in a pass of rows that are not in the cache."""
        if self._is_copy:
            return
        if self._contents.streaming is not None:
            raise FrostlineError(
                "the bottom of this model is read block by block and is never in memory, so only rows in the "
                "activation cache, and sound there, can run: evaluate other rows with frostline.load, or use "
                "streaming=false"
            )
        if self._contents.training.device.type != "cpu":
            self._weights.restore()
            if self._watch is not None:
                self._watch.note()


def _never_fed() -> InUse:
    made = InUse.__new__(InUse)
    made._held = made._is_copy = True
    return made
