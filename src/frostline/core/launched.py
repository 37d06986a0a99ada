"""What a launcher of several processes (torchrun, accelerate launch) says to each of them."""

from __future__ import annotations

import os


def several() -> bool:
    """Whether a launcher has started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """The number of this process. The first, 0, writes and prints."""
    return int(os.environ.get("RANK", "0")) if several() else 0
