"""Compute only what the loss looks at: the head at labelled positions, the last block where it is read."""

from frostline.loss_positions._install import LossPositions, use_loss_positions
from frostline.loss_positions._packing import SplitAttention, pack_rows
from frostline.loss_positions._positions import LossRule

__all__ = ["LossPositions", "LossRule", "SplitAttention", "pack_rows", "use_loss_positions"]
