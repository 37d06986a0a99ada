"""What a plan changes in the forward pass (methods.md 2): the layered loss and the residual interaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from frostline.core.settings import Options


class Residual(Options):
    """The residual interaction: h_l = block_l(h_(l-1)) + alpha h_(l-span), for every block l >= span, counted from 1.

    h_0 is the embeddings' output. In an encoder-decoder, blocks are counted from 1 in each stack.

    Attributes:
        alpha: its weight; 0 is the ordinary model.
        span: how many blocks it reaches back.
    """

    alpha: float = 0.0
    span: int = Field(1, gt=0)

    @field_validator("alpha")
    @classmethod
    def _one_zero(cls, value: float) -> float:
        return value or 0.0  # -0.0 is the same as 0.0, but would be written differently


class LayerDrop(Options):
    """LayerDrop (Fan et al. 2020): in training, each block that trains is skipped with probability `p` in each pass.

    A skipped block returns its input. A pass that would skip every block of a stack is drawn again.

    Attributes:
        p: the probability; 0 skips none.
        seed: of the draws, which depend on it, on the optimizer step and on the pass within that step.
        evaluate: which of these blocks run outside training: `all`, or `every_other` one, from the lowest.
    """

    p: float = Field(0.0, ge=0, lt=1)
    seed: int = Field(0, ge=0)
    evaluate: Literal["all", "every_other"] = "all"

    @property
    def acts(self) -> bool:
        """Whether any block is ever skipped."""
        return self.p > 0 or self.evaluate != "all"


class AdapterDrop(Options):
    """AdapterDrop (Ruckle et al. 2021): the adapters of the lowest n blocks that have some are left out.

    Where they are left out always, a plan freezes these blocks instead. This is for what changes from pass to pass.

    Attributes:
        robust: in training, draw n for each pass, from 0 up to all but one of the blocks that have adapters.
        seed: of the draws, which depend on it, on the optimizer step and on the pass within that step.
        evaluate: n outside training.
    """

    robust: bool = False
    seed: int = Field(0, ge=0)
    evaluate: int = Field(0, ge=0)

    @property
    def acts(self) -> bool:
        """Whether any adapter is ever left out."""
        return self.robust or self.evaluate > 0


class Forward(Options):
    """Changes of the forward pass and of the loss. By default there are none.

    Attributes:
        loss_weights: the layered loss, one number lambda_l for each block. The training loss is the sum over blocks of
            lambda_l times the loss of block l's output, passed through final norm and head. 0, ..., 0, 1 is the
            ordinary loss.
        residual: the residual interaction.
        layerdrop: blocks that are skipped at random in training.
        adapterdrop: adapters of the lowest blocks that are left out at random in training.
    """

    loss_weights: tuple[float, ...] | None = None
    residual: Residual = Residual()
    layerdrop: LayerDrop = LayerDrop()
    adapterdrop: AdapterDrop = AdapterDrop()

    @property
    def interacts(self) -> bool:
        """Whether the residual interaction changes the model's output."""
        return self.residual.alpha != 0

    @property
    def drops(self) -> bool:
        """Whether blocks or adapters are left out at random in training."""
        return self.layerdrop.p > 0 or self.adapterdrop.robust

    @property
    def why_not_plain(self) -> str | None:
        """Why an ordinary model with the same weights computes something else, in a few words; None where it does not.

        What happens in training alone does not count.
        """
        if self.interacts:
            return "its blocks add earlier states (forward.residual)"
        if self.layerdrop.evaluate != "all":
            return "it is evaluated without every other block (forward.layerdrop.evaluate)"
        if self.adapterdrop.evaluate:
            return "it is evaluated without its lowest adapters (forward.adapterdrop.evaluate)"
        return None

    @property
    def layered(self) -> bool:
        """Whether the loss differs from the ordinary one."""
        return self.loss_weights is not None and self.loss_weights != (0.0,) * (len(self.loss_weights) - 1) + (1.0,)

    @property
    def losses(self) -> Mapping[int, float]:
        """Block, counted from 0 -> its weight in the layered loss. Empty for the ordinary loss."""
        if self.loss_weights is None or not self.layered:
            return {}
        return {index: weight for index, weight in enumerate(self.loss_weights) if weight}

    @property
    def changes(self) -> bool:
        """Whether anything changes."""
        return self.drops or self.layered or self.why_not_plain is not None
