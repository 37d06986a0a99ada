"""Random draws that hold for a whole pass in training: the same on every process, and in a run that was resumed.

They come from no random generator. A draw is a function of a seed, of the number of the optimizer step, and of the
number of the pass within that step. So nothing about them is in a checkpoint.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from torch import nn

from frostline.core.seeding import derive_seed

_ATTRIBUTE = "_frostline_passes"


class Passes:
    """Counts the training passes through one module.

    Attributes:
        step: the number of the current optimizer step, as `begin_step` says it; 0 where nobody does.
        made: how many passes were made since that step began.
    """

    def __init__(self) -> None:
        self.step = self.made = 0

    @classmethod
    def through(cls, module: nn.Module) -> Passes:
        """Those that `module` counts already, or new ones."""
        found: Passes = vars(module).setdefault(_ATTRIBUTE, cls())
        return found

    def draw(self, seed: int, *names: str) -> random.Random:
        """A generator for one use in the pass that comes next."""
        return random.Random(derive_seed(seed, *names, self.step, self.made))


def passes_in(model: nn.Module) -> Iterator[Passes]:
    """The counts of all modules in `model` that have one."""
    for module in model.modules():
        found: Passes | None = vars(module).get(_ATTRIBUTE)
        if found is not None:
            yield found


def begin_step(model: nn.Module, step: int) -> None:
    """Tell a model under a plan with drops (LayerDrop, AdapterDrop) that optimizer step `step`, from 0, begins.

    `frostline.Trainer` and `frostline.attach` do so. A loop of your own needs it only to be resumed: without it the
    passes of the whole training count as those of step 0, and draws differ from step to step all the same.

    Args:
        model: the model, or one around it.
        step: the number of the optimizer step, from 0.
    """
    for passes in passes_in(model):
        passes.step, passes.made = step, 0
