"""What a plan changes in the forward pass (methods.md 2): the layered loss and the residual interaction."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, field_validator

from frostline.core.settings import Options


class Residual(Options):
    """h_l = block_l(h_(l-1)) + alpha h_(l-span), for every block l, counted from 1, with l >= span.

    h_0 is what the embeddings give. In an encoder-decoder each stack counts for itself.
    """

    alpha: float = 0.0
    span: int = Field(1, gt=0)

    @field_validator("alpha")
    @classmethod
    def _one_zero(cls, value: float) -> float:
        return value or 0.0  # -0.0 changes nothing either, and is written otherwise


class Forward(Options):
    """Changes of the forward pass and of the loss; none by default.

    `loss_weights` has a number lambda_l for each block: the training loss is the sum over blocks of lambda_l times
    the loss read off block l's output through final norm and head. 0, ..., 0, 1 is the ordinary loss.
    """

    loss_weights: tuple[float, ...] | None = None
    residual: Residual = Residual()

    @property
    def interacts(self) -> bool:
        """Whether the model computes something else than its checkpoint says."""
        return self.residual.alpha != 0

    @property
    def layered(self) -> bool:
        """Whether the loss is another than the ordinary one."""
        return self.loss_weights is not None and self.loss_weights != (0.0,) * (len(self.loss_weights) - 1) + (1.0,)

    @property
    def losses(self) -> Mapping[int, float]:
        """Block, counted from 0 -> its weight in the loss, of a layered loss; empty for the ordinary one."""
        if self.loss_weights is None or not self.layered:
            return {}
        return {index: weight for index, weight in enumerate(self.loss_weights) if weight}

    @property
    def changes(self) -> bool:
        """Whether anything is changed at all."""
        return self.interacts or self.layered
