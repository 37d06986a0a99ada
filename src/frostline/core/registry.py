"""One registry for everything that has a name: strategies, tasks. One line per entry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from frostline.core.errors import UserError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to entries, with a did-you-mean error, extended by installed packages through an entry point.

    A third party writes, in its pyproject.toml, ``[project.entry-points."frostline.<group>"]`` and one line
    ``name = "module:object"``; the object is loaded when the name is first asked for.
    """

    def __init__(self, kind: str, group: str, entries: Mapping[str, T]) -> None:
        self.kind = kind
        self._group = group
        self._entries = dict(entries)

    def get(self, name: str) -> T:
        """The entry called `name`. Raises `UserError` naming the closest known ones."""
        if name in self._entries:
            return self._entries[name]
        for point in entry_points(group=self._group):
            if point.name == name:
                try:
                    loaded: T = point.load()
                except Exception as error:
                    raise UserError(
                        f"{self.kind} '{name}' of package '{point.dist.name if point.dist else '?'}' "
                        f"cannot be loaded ({point.value}): {error}"
                    ) from error
                self._entries[name] = loaded
                return loaded
        raise unknown_name(self.kind, name, self)

    def __iter__(self) -> Iterator[str]:
        yield from sorted({*self._entries, *(point.name for point in entry_points(group=self._group))})

    def __contains__(self, name: object) -> bool:
        return name in set(self)
