"""The activation cache: boundary states on disk, found by what produced them, verified before they are used."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from frostline.bottom._shards import Rows, Shard, Stream, open_shard, write_shard
from frostline.core import cache
from frostline.core.errors import UserError
from frostline.core.sizes import size_text

FORMAT = 1

log = logging.getLogger(__name__)


class ActivationCache:
    """The boundary states of rows, for one identity: all that they depend on except the row.

    `ActivationCache.open` makes one. Rows are found by a key, a hash of their content. Several processes may read and
    write one store at once; each hands out only what it has itself verified, or written.
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
        self._taken_in: set[str] = set()
        self._places: dict[str, tuple[Shard, int]] = {}

    @classmethod
    def open(
        cls, root: Path, identity: Mapping[str, Any], streams: Mapping[str, Stream], label: str = ""
    ) -> ActivationCache:
        """The store below `root` of `identity` (a JSON value) and `streams`; its folder is made with its first rows.
        `label` is for people to read: two stores that differ in it alone are one.

        Every shard is read once to verify it. One that is torn or altered is removed, with a warning in the log, and
        its rows are missing.
        """
        store = cls(root, identity, streams, label)
        if store.folder.is_dir():
            cache.describe(store.folder, store._description)  # it is used now
        store.refresh()
        return store

    def __reduce__(self) -> Any:
        # Another process verifies for itself.
        return (ActivationCache.open, self._opened_with)

    def refresh(self) -> None:
        """Verify and take in the shards that other processes have written since."""
        for path in cache.shards(self.folder):
            if path.name in self._taken_in:
                continue
            with suppress(FileNotFoundError):  # another process pruned it
                fault = cache.fault(path)
                if fault is None:
                    self._take_in(path)
                else:
                    cache.drop(path)
                    log.warning(
                        "removed the shard %s of the activation cache %s: %s", path.stem, self.folder.name, fault
                    )

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that are not in the store: in order, each once."""
        return [key for key in dict.fromkeys(keys) if key not in self._places]

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def write(self, rows: Rows) -> None:
        """Keep `rows`, per key and stream [n, width], as one shard: whole, or not at all.

        Raises `FrostlineError` when the disk is full, `ValueError` for states that are not as the streams say.
        """
        if rows:
            cache.describe(self.folder, self._description)  # it may have been pruned
            self._take_in(write_shard(self.folder, self._streams, rows))

    def read(self, key: str) -> dict[str, Tensor]:
        """The states of a row per stream, [n, width]: views of the mapped file. Writing into them never changes it.

        Raises `KeyError` when the row is missing.
        """
        shard, index = self._places[key]
        return shard.row(index)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold this store alone among processes, as a caching pass does; the system frees it when the process ends.

        What others wrote while this one waited is taken in.
        """
        with cache.lock(self.folder):
            cache.describe(self.folder, self._description)  # it may have been pruned
            self.refresh()
            yield

    def bytes_on_disk(self) -> int:
        """The size of the store's shards."""
        return cache.bytes_on_disk(self.folder)

    def _take_in(self, verified: Path) -> None:
        shard = open_shard(verified, self._streams)
        self._taken_in.add(verified.name)
        self._places.update((key, (shard, index)) for index, key in enumerate(shard.keys))


def check_room(root: Path, wanted: int, limit: int | None = None) -> None:
    """Check that `wanted` bytes more fit the disk, and `limit`: what all activation caches below `root` may take
    together.

    Raises `UserError` that says how much is wanted, allowed, taken and free, and what to do.
    """
    taken = sum(cache.bytes_on_disk(folder) for folder in cache.store_folders(root))
    needs = f"the activation cache needs {size_text(wanted)}"
    if limit is not None and taken + wanted > limit:
        raise UserError(
            f"{needs}, {size_text(limit)} are allowed and {size_text(taken)} of them taken: raise "
            f"activation_cache_limit, or free some with `frostline cache prune`"
        )
    place = next(path for path in (root.absolute(), *root.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if wanted > free:
        raise UserError(
            f"{needs}, {size_text(free)} are free on the disk of {root}: free some with `frostline cache prune`, "
            f"or set FROSTLINE_CACHE to a folder on a larger disk"
        )
