"""Shortcuts are checked before training; what was true then may grow false. They are checked again while it runs.

A model's forward may add to its loss from some step on, a callback may put a hook on a block or ask the config for
hidden states. So training is compared again on a few rows, with the shortcuts and without: at steps 2 and 4, at 8, 16
and so on while that takes at most 1% of the time, and when hooks or config change.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from frostline.hooks._foreign import hooks_on

ALWAYS = 4
"""Up to this step, checks are made whatever their time."""
SHARE = 0.01
"""The largest share of the training time that later checks may take."""
_ASKS = ("output_hidden_states", "output_attentions", "return_dict")


class Rechecks:
    """Says when to compare again, and counts the time that it takes.

    Attributes:
        seconds: time that checks took so far.
        passed: the last step at which all agreed.

    Args:
        model: what trains, with everything that frostline puts on it.
    """

    def __init__(self, model: nn.Module, step: int = 0) -> None:
        self._model = model
        self._modules = list(model.modules())
        self._known = self._now()
        self._last = 0.0
        self.seconds = 0.0
        self.passed = step

    def due(self, step: int, elapsed: float) -> bool:
        """Whether to check before `step` (counted from 0), when training has run for `elapsed` seconds."""
        if self._now() != self._known:
            return True
        if step < 2 or step & (step - 1):
            return False
        return step <= ALWAYS or self.seconds + self._last <= SHARE * elapsed

    def since(self, step: int, found: str) -> str:
        """One line on a difference that a check before `step` found."""
        return f"off since step {step}: {found}. Results since step {self.passed} may differ from plain training"

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around a check: counts its time. What hooks and config are at its end counts as checked."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._last = time.perf_counter() - begun
            self.seconds += self._last
            self.note()

    def note(self) -> None:
        """Take hooks and config as they are now for those that were checked."""
        self._known = self._now()

    def _now(self) -> tuple[Any, ...]:
        config: Any = getattr(self._model, "config", None)
        return (hooks_on(self._modules), *(getattr(config, name, None) for name in _ASKS))
