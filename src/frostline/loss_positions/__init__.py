"""Compute the head and the last block only at the loss positions: those whose outputs the loss reads."""

from frostline.loss_positions._install import LossPositions, hook_above, use_loss_positions
from frostline.loss_positions._packing import SplitAttention, pack_rows
from frostline.loss_positions._positions import LossRule

__all__ = ["LossPositions", "LossRule", "SplitAttention", "hook_above", "pack_rows", "use_loss_positions"]
