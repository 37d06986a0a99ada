"""Keep the memory of a CPU process small: few compiled kernels, and freed memory returned to the system."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys

KERNELS = "64"
_CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def keep_few_kernels() -> None:
    """Let torch keep 64 compiled kernels of a CPU, where the user has not set another number.

    oneDNN compiles a kernel for every shape of a matrix product in bfloat16, and the sizes of batches differ in every
    step. It keeps up to 1,024, and so does torch's own layer above it (`LRU_CACHE_CAPACITY`): about 0.4 MiB each. A
    step uses 30 to 60. Both read these variables once, so this does nothing after torch was imported.
    """
    if "torch" not in sys.modules:
        for name in _CAPACITIES:
            os.environ.setdefault(name, KERNELS)


def give_back_free_memory(*, collect: bool = True) -> None:
    """Ask the C library to return freed memory to the system. Without this, glibc keeps it in the process.

    Args:
        collect: first free objects that only refer to each other. It looks at every object of the process (0.2 s).
    """
    if collect:
        gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
