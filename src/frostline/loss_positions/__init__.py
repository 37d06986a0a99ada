"""Compute only what the loss looks at: the head at labelled positions, the last block where it is read."""

from frostline.loss_positions._install import Reads, read_only_what_counts
from frostline.loss_positions._packing import SplitAttention, pack_rows
from frostline.loss_positions._positions import ReadRule

__all__ = ["ReadRule", "Reads", "SplitAttention", "pack_rows", "read_only_what_counts"]
