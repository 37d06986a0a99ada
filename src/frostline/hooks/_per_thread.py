"""What belongs to the calls of one thread, and a lock between threads, for objects that are copied with a model."""

from __future__ import annotations

import threading
from typing import Any


class PerThread(threading.local):
    """Attributes that each thread has for itself. A subclass gives their first values in `__init__`.

    A copy starts anew, as does one that was pickled: what a thread is about to compute belongs to the original.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return type(self)()

    def __reduce__(self) -> Any:
        return type(self), ()


class Turns:
    """A lock that its thread may take several times. A copy has a lock of its own."""

    def __init__(self) -> None:
        lock = threading.RLock()
        self.take, self.give_back = lock.acquire, lock.release

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return type(self)()

    def __reduce__(self) -> Any:
        return type(self), ()
