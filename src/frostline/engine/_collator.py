"""A collator that tells the activation cache which rows a batch was made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from frostline.bottom import CacheSession

Collate = Callable[[Sequence[Any]], Mapping[str, Any]]


class AnnouncingCollator:
    """Collates as `collate` does. A loader collates a batch before the one in front of it is trained on, so that the
    states of its rows are read meanwhile. In another process it is the bare collator."""

    def __init__(self, collate: Collate, session: CacheSession) -> None:
        self._collate, self._session = collate, session

    def __call__(self, rows: Sequence[Any]) -> Mapping[str, Any]:
        batch = self._collate(rows)
        self._session.expect(rows, batch)
        return batch

    def __reduce__(self) -> Any:
        return _itself, (self._collate,)


def _itself(collate: Collate) -> Collate:
    return collate
