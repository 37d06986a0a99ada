"""One decision for all processes that train together.

Everything that processes decide together goes through one exchange: each gives a value, or the error that it met, and
each gets the values of all, or the error. So a process that fails before the exchange that the others wait in (the end
of a caching pass, for example) does not leave them waiting: its error comes out of that exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from itertools import islice
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from frostline.processes._errors import portable, tell, was_told, watching

T = TypeVar("T")
U = TypeVar("U")


class _Sends(IntEnum):
    """What a process brings to an exchange. The highest of all says what follows."""

    NOTHING = 0
    YES = 1
    VALUE = 2
    ERROR = 3


class Processes:
    """The processes that train together, seen from one of them. All of them make the same calls in the same order.

    Attributes:
        rank: of this process.
        count: how many there are.

    Args:
        rank, count: as above.
        device: where small tensors have to lie that are sent.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.count = rank, count
        self._device = device or torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def every(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks. Raises the error of a process that met one."""
        if self.count == 1:
            return [value]
        self._meet(_Sends.VALUE)
        return self._values(value)

    def same(self, value: T) -> T:
        """The value of the first process."""
        return self.every(value if self.first else cast(T, None))[0]

    def any(self, value: bool) -> bool:
        """Whether it is true in any process. It costs the exchange of one number."""
        if self.count == 1:
            return value
        highest = self._meet(_Sends.YES if value else _Sends.NOTHING)
        if highest is _Sends.ERROR:
            self._values(None)
        return highest is _Sends.YES

    def first_found(self, value: T | None) -> T | None:
        """The first value of any process that is not None."""
        return next((one for one in self.every(value) if one is not None), None)

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.any(False)

    def once(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, for all of them; or its error, in all of them."""
        with self.together():
            return self.same(make() if self.first else cast(T, None))

    @contextmanager
    def together(self) -> Iterator[None]:
        """All processes leave this context, or none: an error of one is raised in all.

        The others meet it where they next wait for each other, at the end of this context at the latest. What runs
        inside waits by the methods of this class only; a backward pass averages gradients in its own way, and has no
        place here.
        """
        try:
            yield
        except Exception as error:
            if self.count > 1 and not was_told(error):
                self._meet(_Sends.ERROR)
                self._values(None, error)
            raise
        self.wait()

    def divided(self, make: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
        """What `make` gives for each item, in their order, in all processes. Each process makes its share.

        Args:
            make: is called for every `count`-th item.
            items: the same in all processes.
        """
        if self.count == 1:
            yield from map(make, items)
            return
        left = iter(items)
        while some := list(islice(left, self.count)):
            with self.together():
                made = [make(one) for one in some[self.rank : self.rank + 1]]
                each = self.every(made)
            for own in each:
                yield from own

    def _meet(self, sends: _Sends) -> _Sends:
        """Tell what this process brings, and get the highest of all."""
        found = torch.tensor(int(sends), device=self._device)
        with watching():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return _Sends(int(found))

    def _values(self, value: T, error: Exception | None = None) -> list[T]:
        """The second part of an exchange, where any process brings a value or an error."""
        sent: list[Any] = [None] * self.count
        with watching():
            dist.all_gather_object(sent, (value, None if error is None else portable(error, self.rank)))
        for rank, (_, wrong) in enumerate(sent):
            if wrong is not None:
                raise tell(error if error is not None and rank == self.rank else wrong)
        return [one for one, _ in sent]


ALONE = Processes()
"""One process that trains alone."""
