"""The registry of named things, such as strategies and tasks, with one line per entry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Generic, TypeVar

from frostline.core.errors import ConfigError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Names and their entries. Installed packages can add entries through an entry point.

    Such a package has ``[project.entry-points."frostline.<group>"]`` in its pyproject.toml, and below it one line
    ``name = "module:object"``. The object is loaded when the name is first used.

    Args:
        kind: what the names are of, for messages.
        group: the group of entry points.
        entries: the built-in entries.
        entry_type: the class that an entry of a package has to have; None accepts any.
    """

    def __init__(self, kind: str, group: str, entries: Mapping[str, T], entry_type: type[T] | None = None) -> None:
        self.kind = kind
        self._group = group
        self._entries = dict(entries)
        self._entry_type = entry_type

    def get(self, name: str) -> T:
        """The entry called `name`.

        Raises `ConfigError` for an unknown name, with the closest known one, and when a package's entry cannot be
        loaded.
        """
        if name not in self._entries:
            if name not in self:
                raise unknown_name(self.kind, name, self)
            self._entries[name] = self._load(self._points()[name])
        return self._entries[name]

    def _points(self) -> EntryPoints:
        return entry_points(group=self._group)

    def _load(self, point: EntryPoint) -> T:
        package = point.dist.name if point.dist else "?"
        what = f"{self.kind} '{point.name}' of package '{package}'"
        try:
            loaded: T = point.load()
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{what} cannot be loaded ({point.value}): {type(error).__name__}: {reason}") from error
        if self._entry_type is not None and not isinstance(loaded, self._entry_type):
            raise ConfigError(f"{what}: {point.value} is not a {self._entry_type.__name__} but {type(loaded).__name__}")
        return loaded

    def __iter__(self) -> Iterator[str]:
        yield from sorted({*self._entries, *self._points().names})

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._points().names
