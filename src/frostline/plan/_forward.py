"""What a plan changes in the forward pass (methods.md 2): the layered loss and the residual interaction."""

from __future__ import annotations

from collections.abc import Mapping

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


class Forward(Options):
    """Changes of the forward pass and of the loss. By default there are none.

    Attributes:
        loss_weights: the layered loss, one number lambda_l for each block. The training loss is the sum over blocks of
            lambda_l times the loss of block l's output, passed through final norm and head. 0, ..., 0, 1 is the
            ordinary loss.
        residual: the residual interaction.
    """

    loss_weights: tuple[float, ...] | None = None
    residual: Residual = Residual()

    @property
    def interacts(self) -> bool:
        """Whether the residual interaction changes the model's output."""
        return self.residual.alpha != 0

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
        return self.interacts or self.layered
