"""A collator that tells the activation cache which rows are in a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from frostline.bottom import CacheSession

Collate = Callable[[Sequence[Any]], Mapping[str, Any]]


class AnnouncingCollator:
    """Collates with `collate`, and announces each batch to `session`.

    A data loader collates a batch while the model trains on the one before, so the states of its rows are read in the
    meantime. A copy in a worker process is the plain collator.
    """

    def __init__(self, collate: Collate, session: CacheSession) -> None:
        self._collate, self._session = collate, session

    def __call__(self, rows: Sequence[Any]) -> Mapping[str, Any]:
        batch = self._collate(rows)
        self._session.expect(rows, batch)
        return batch

    def __reduce__(self) -> Any:
        return _plain, (self._collate,)


def _plain(collate: Collate) -> Collate:
    return collate
