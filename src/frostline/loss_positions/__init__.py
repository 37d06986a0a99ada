"""Compute only what the loss looks at: the head at labelled positions, the last block where it is read."""

from frostline.loss_positions._install import Reads, compute_at_loss_positions
from frostline.loss_positions._packing import SplitAttention, pack_rows
from frostline.loss_positions._positions import LossRule

__all__ = ["LossRule", "Reads", "SplitAttention", "compute_at_loss_positions", "pack_rows"]
