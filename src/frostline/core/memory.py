"""Return freed memory to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def give_back_free_memory() -> None:
    """Ask the C library to return freed memory to the system. Without this, glibc keeps it in the process."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
