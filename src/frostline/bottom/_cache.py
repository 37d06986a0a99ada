"""The activation cache: boundary states on disk, identified by what produced them, and verified as they are read."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from frostline.bottom._shards import Rows, Shard, Stream, row_bytes, write_shard
from frostline.core import cache
from frostline.core import shards as shard_files
from frostline.core.errors import ConfigError, FrostlineError
from frostline.core.sizes import size_text

FORMAT = 3

log = logging.getLogger(__name__)


class DamagedRow(FrostlineError):
    """The stored states of a row are no longer those that were written."""


class ActivationCache:
    """The boundary states of rows, for one identity: everything that the states depend on besides the row.

    Use `ActivationCache.open` to get one. A row is found by its key, a hash of its content. Several processes may
    read and write one cache at the same time; each returns only states that it has verified.

    Args:
        root: the folder in which all activation caches lie.
        identity: what the states depend on, as a JSON value.
        streams: the width and dtype of each stream of states.
        label: a name for people to read.
    """

    def __init__(self, root: Path, identity: Mapping[str, Any], streams: Mapping[str, Stream], label: str = "") -> None:
        self._opened_with = (root, identity, streams, label)
        self._streams = dict(streams)
        self._description = {
            "format": FORMAT,
            cache.LABEL: label,
            "identity": dict(identity),
            "streams": {
                name: {"width": stream.width, "dtype": str(stream.dtype).removeprefix("torch.")}
                for name, stream in streams.items()
            },
        }
        self.folder = cache.store_folder(root, self._description)
        self._added: set[str] = set()
        self._rows: dict[str, tuple[Shard, int]] = {}

    @classmethod
    def open(
        cls, root: Path, identity: Mapping[str, Any], streams: Mapping[str, Stream], label: str = ""
    ) -> ActivationCache:
        """Open the cache with this `identity` and these `streams`. Its folder is made when the first rows are written.

        The header of every shard is read and verified, and each row when it is read. A damaged shard is removed, with
        a warning in the log, and its rows count as missing.

        Args:
            root: the folder in which all activation caches lie.
            identity: what the states depend on, as a JSON value.
            streams: the width and dtype of each stream of states.
            label: a name for people to read; it is no part of the identity.
        """
        opened = cls(root, identity, streams, label)
        if opened.folder.is_dir():
            cache.describe(opened.folder, opened._description)  # also notes the time of use
        opened.refresh()
        return opened

    def __reduce__(self) -> Any:
        # An unpickled copy verifies the shards itself.
        return (ActivationCache.open, self._opened_with)

    def refresh(self) -> None:
        """Add the shards that other processes have written since."""
        for path in cache.shards(self.folder):
            if path.name in self._added:
                continue
            with suppress(FileNotFoundError):  # another process pruned it
                try:
                    self._add(path)
                except shard_files.DamagedShard as damage:
                    shard_files.drop(path)
                    log.warning(
                        "removed the shard %s of the activation cache %s: %s", path.stem, self.folder.name, damage
                    )

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that are not in the cache: in order, each once."""
        return [key for key in dict.fromkeys(keys) if key not in self._rows]

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def write(self, rows: Rows) -> None:
        """Write `rows` (key -> stream -> [n, width]) as one shard. The shard is written completely or not at all.

        Raises `FrostlineError` when the disk is full, `ValueError` for states of another width or dtype than their
        stream.
        """
        if rows:
            cache.describe(self.folder, self._description)  # it may have been pruned
            self._add(write_shard(self.folder, self._streams, rows))

    def read(self, key: str) -> dict[str, Tensor]:
        """The states of a row, stream -> [n, width]. They are compared with their checksum as they are read.

        Raises `KeyError` when the row is missing, `DamagedRow` when its states are damaged. Such a row is missing from
        then on, and its shard is removed, with a warning in the log: rows that are open can still be read.
        """
        shard, index = self._rows[key]
        states = shard.row(index)
        if states is None:
            self._rows.pop(key, None)
            damage = f"{shard.file.path} was overwritten or cut off"
            if shard.file.path.name in self._added:
                self._added.remove(shard.file.path.name)  # it may be written anew
                shard.file.drop()
                log.warning("activation cache: %s: the bottom runs again for its damaged rows", damage)
            raise DamagedRow(f"activation cache: {damage}: train again, and its rows are computed anew")
        return states

    def check(self, keys: Iterable[str]) -> None:
        """Read those of `keys` that are in the cache. Where one is damaged, all rows of its shard are missing then."""
        for key in keys:
            if key in self._rows:
                shard, _ = self._rows[key]
                try:
                    self.read(key)
                except DamagedRow:
                    self._rows = {own: place for own, place in self._rows.items() if place[0] is not shard}

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Inside this context, nobody removes this cache. Other processes may fill it too."""
        with cache.filling(self.folder):
            cache.describe(self.folder, self._description)  # it may have been pruned
            yield

    @contextmanager
    def claimed(self, part: str, *, wait: bool) -> Iterator[bool]:
        """Inside this context, no other process fills a part of the cache. Gives False where one does.

        Shards that other processes wrote before are added.

        Args:
            part: a name that all processes give to the same rows.
            wait: until the other process is done with it, or has ended.
        """
        with cache.claimed(self.folder, part, wait=wait) as own:
            if own:
                self.refresh()
            yield own

    def bytes_of(self, tokens: int) -> int:
        """The bytes of so many tokens of each stream."""
        return row_bytes(self._streams, dict.fromkeys(self._streams, tokens))

    def bytes_on_disk(self) -> int:
        """The size of all shards of this cache."""
        return cache.bytes_on_disk(self.folder)

    def _add(self, path: Path) -> None:
        shard = Shard(path, self._streams)
        self._added.add(path.name)
        self._rows.update((key, (shard, index)) for index, key in enumerate(shard.file.keys))


def check_room(root: Path, needed: int, limit: int | None = None) -> None:
    """Check that there is room for `needed` more bytes. Raises `ConfigError` that says what to do where there is not.

    Args:
        root: the folder in which all activation caches lie.
        needed: bytes that will be written.
        limit: bytes that all caches below `root` may use together; None: only the disk limits them.
    """
    if not needed:
        return
    used = sum(cache.bytes_on_disk(folder) for folder in cache.store_folders(root))
    needs = f"the activation cache needs {size_text(needed)}"
    if limit is not None and used + needed > limit:
        raise ConfigError(
            f"{needs}, but all caches together may use {size_text(limit)} and already use {size_text(used)}: use a "
            f"larger activation_cache_limit, or free space with `frostline cache prune`"
        )
    place = next(path for path in (root.absolute(), *root.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ConfigError(
            f"{needs}, but only {size_text(free)} are free on the disk of {root}: free space with `frostline cache "
            f"prune`, or set FROSTLINE_CACHE to a folder on a larger disk"
        )
