"""Compute only what the loss reads: the head at labelled positions, the last block where it is looked at."""

from frostline.engine.reads._install import Reads, read_only_what_counts
from frostline.engine.reads._positions import ReadRule

__all__ = ["ReadRule", "Reads", "read_only_what_counts"]
