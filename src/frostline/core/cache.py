"""Caches as folders and files: names, checksums, locks, removal. Reads no tensor and imports no torch.

ROOT/activations/<digest of the identity>/
    identity.json             everything that the boundary states of any row depend on; its time is that of the last use
    <sha256>.safetensors      a shard (core/shards.py)
    lock                      shared by the processes that fill the cache; who removes it has it alone
    <part>.claim              held by the process that fills this part of it
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline.core.documents import parse_json
from frostline.core.errors import CannotWrite, ConfigError, first_line
from frostline.core.files import UNFINISHED, private, sweep, write_json
from frostline.core.locks import share, take
from frostline.core.shards import DamagedShard, ShardFile

IDENTITY = "identity.json"
LABEL = "label"
"""The entry of a description that is for people. It is not part of the cache's identity."""
SHARDS = "*.safetensors"
CLAIM = ".claim"
ROWS = "rows"
"""The folder of rows that were read or tokenized (core/row_files.py), beside `activations`."""
CONTENT = "content.json"
"""In a folder of rows: the size and CRC-32 of each file, and what else is known of the rows."""
ABANDONED = 3600.0
"""Seconds after which nobody still writes a file that is not finished."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A cache on disk, of activations or of rows. `rows` is the number that its files state; they are not verified."""

    folder: Path
    label: str
    identity: Mapping[str, Any]
    rows: int
    bytes: int
    last_used: float

    @property
    def name(self) -> str:
        return self.folder.name[:12]


def default_root() -> Path:
    """`$FROSTLINE_CACHE`, or `~/.cache/frostline`."""
    given = os.environ.get("FROSTLINE_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "frostline"


def asked_root() -> Path:
    """`default_root`, where a cache was asked for. Raises `ConfigError` when it is a file."""
    root = default_root()
    if root.exists() and not root.is_dir():
        raise ConfigError(f"FROSTLINE_CACHE: {root} is a file: use the path of a folder")
    return root


def keep(path: Path, value: Any) -> None:
    """Write what was measured to a file of the cache, as JSON. Where that fails, warn: it is measured again later."""
    try:
        with private():
            write_json(path, value)
    except (CannotWrite, OSError) as error:
        log.warning("%s is not kept, and will be measured again: %s", path, first_line(error))


def store_folder(root: Path, description: Mapping[str, Any]) -> Path:
    """The folder of the activation cache with this description, a JSON value. Its label does not count."""
    return root / "activations" / digest_of(description)


def digest_of(description: Mapping[str, Any]) -> str:
    """The name of the folder of a cache with this description."""
    counts = {key: value for key, value in description.items() if key != LABEL}
    canonical = json.dumps(counts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def describe(folder: Path, description: Mapping[str, Any]) -> None:
    """Make the cache's folder where there is none, and note that it is used now."""
    path = folder / IDENTITY
    if read_or_none(path) != json.loads(json.dumps(description)):
        with private():
            write_json(path, description)
    with suppress(OSError):  # a cache that another user owns, or on a disk that is read-only, can still be read
        os.utime(path)


def entries(root: Path) -> list[Entry]:
    """The caches below `root`, of activations and of rows, the most recently used one first."""
    found = []
    for folder in (*store_folders(root), *row_folders(root)):
        with suppress(FileNotFoundError):  # removed in the meantime
            found.append(_entry(folder))
    return sorted(found, key=lambda entry: -entry.last_used)


def store_folders(root: Path) -> list[Path]:
    """The folders of the activation caches below `root`."""
    return _folders(root / "activations")


def row_folders(root: Path) -> list[Path]:
    """The folders of rows below `root`."""
    return _folders(root / ROWS)


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if _is_store(path)) if place.is_dir() else []


def shards(folder: Path) -> list[Path]:
    """The finished shards in a cache's folder, in the order of their names."""
    return sorted(folder.glob(SHARDS))


def bytes_on_disk(folder: Path) -> int:
    """The size of a cache's shards, in bytes."""
    return sum(_size(path) for path in shards(folder))


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`, for a file that will be renamed into `folder`. Removed at the end."""
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as place:
        yield Path(place)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Have the cache alone; wait for it where another process has it. The system frees it when the process ends."""
    held = _take(folder / "lock")
    if held is None:
        log.warning("cache %s: waiting for another process that fills it", folder.name[:12])
        held = _take(folder / "lock", -1)
        assert held is not None
    with held:
        yield


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Inside this context, the cache is not removed. Any number of processes may fill it at once."""
    with private():
        held = share(folder / "lock")
    with held:
        yield


@contextmanager
def claimed(folder: Path, part: str, *, wait: bool) -> Iterator[bool]:
    """Inside this context, no other process fills the part of this name. Gives False where one does.

    Args:
        folder: of the cache.
        part: a name that all processes give to the same rows.
        wait: until the other process is done with it, or has ended; then it gives True.
    """
    path = folder / f"{part}{CLAIM}"
    held = _take(path, -1 if wait else 0)
    if held is None:
        yield False
        return
    with held:
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)  # while it is held: who waits for it makes a new one


def tidy(folder: Path) -> int:
    """Remove what killed processes left in a cache, or beside caches. Returns the bytes freed."""
    for path in folder.glob(f"*{CLAIM}"):
        held = _take(path)
        if held is not None:  # nobody works at it
            with held:
                path.unlink(missing_ok=True)
    return sweep(folder, older_than=ABANDONED)


def remove(folder: Path) -> bool:
    """Remove a cache, unless a process holds its lock. Returns whether it was removed.

    A process that has opened its shards can still read them.
    """
    held = _take(folder / "lock")
    if held is None:
        return False
    with held:
        # Renamed first, so that nobody finds half a cache, and a new one can start in its place at once.
        aside = folder.with_name(f"{UNFINISHED}{folder.name}.{os.getpid()}")
        folder.replace(aside)
        with suppress(FileNotFoundError):  # another process removes it too
            shutil.rmtree(aside)
    return True


def _take(path: Path, seconds: float = 0.0) -> AbstractContextManager[object] | None:
    with private():
        return take(path, seconds)


def _entry(folder: Path) -> Entry:
    read = read_or_none(folder / IDENTITY)
    description = read if isinstance(read, dict) else {}
    identity = description.get("identity")
    keys = {key for shard in shards(folder) for key in _keys(shard)}
    content = read_or_none(folder / CONTENT)
    facts = content.get("facts") if isinstance(content, dict) else None
    rows = facts.get(ROWS, 0) if isinstance(facts, dict) else 0
    return Entry(
        folder=folder,
        label=str(description.get(LABEL, "")),
        identity=identity if isinstance(identity, dict) else {},
        rows=len(keys) + (rows if isinstance(rows, int) else 0),
        bytes=bytes_on_disk(folder) + sum(map(_size, folder.glob("*.arrow"))),
        last_used=(folder / IDENTITY if description else folder).stat().st_mtime,
    )


def _keys(shard: Path) -> tuple[str, ...]:
    try:
        return ShardFile(shard).keys
    except DamagedShard:
        return ()


def read_or_none(path: Path) -> Any:
    """The JSON value in a file; None where there is none."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _is_store(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
