"""Rows that were read or tokenized before, as files of the cache. Imports no torch.

ROOT/rows/<digest of the description>/
    identity.json    everything that the files depend on; its time is that of the last use
    *.arrow          the rows
    content.json     written last: the size and CRC-32 of each file, and what else is known of the rows
    lock             held while they are written
"""

from __future__ import annotations

import atexit
import json
import logging
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from frostline.core import cache
from frostline.core.errors import CannotWrite, first_line
from frostline.core.files import disk_errors, private, sweep, write_json

BLOCK = 1 << 20
_log = logging.getLogger(__name__)

Make = Callable[[Path], Mapping[str, Any]]
"""Writes files to a folder, and gives what else is to be known of them, a JSON value."""


def kept_rows(description: Mapping[str, Any], make: Make) -> tuple[Path, Mapping[str, Any]]:
    """The folder with the files that `make` writes, and what it gave: from the cache where they are sound there.

    Of several processes one makes them, and the others wait. Where the cache cannot be written, they lie in a temporary
    folder until the process ends, and a log line says so. Errors of `make` about the rows themselves are passed on, and
    nothing is kept.

    Args:
        description: all that the files depend on, a JSON value. Its label does not count.
        make: writes them.
    """
    root = cache.default_root()
    folder = root / cache.ROWS / cache.digest_of(description)
    if (facts := _sound(folder)) is not None:
        cache.describe(folder, description)
        return folder, facts
    try:
        with private(), cache.lock(folder):
            facts = _sound(folder)
            if facts is None:
                facts = _fill(folder, description, make)
        return folder, facts
    except (CannotWrite, OSError) as error:
        place = scratch()
        _log.warning("rows are not kept in %s (%s): they lie in %s until the end", root, first_line(error), place)
        with disk_errors(place):
            return place, make(place)


def scratch() -> Path:
    """A temporary folder for rows, which is removed when the process ends."""
    place = Path(tempfile.mkdtemp(prefix="frostline-rows-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


def _fill(folder: Path, description: Mapping[str, Any], make: Make) -> Mapping[str, Any]:
    """Make the files, while the lock is held. What a killed process left is removed first."""
    sweep(folder)
    try:
        with disk_errors(folder), cache.unfinished(folder) as place:
            facts = json.loads(json.dumps(make(place)))
            files = sorted(place.iterdir())
            sums = {path.name: _sum(path) for path in files}
            for path in files:
                path.replace(folder / path.name)
            cache.describe(folder, description)
            write_json(folder / cache.CONTENT, {"files": sums, "facts": facts})
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return dict(facts)


def _sound(folder: Path) -> Mapping[str, Any] | None:
    """What is known of the rows in a folder; None where it has none, or a file is not as it was written."""
    content = cache.read_or_none(folder / cache.CONTENT)
    if not isinstance(content, dict):
        return None
    fault = fault_of(folder)
    if fault is None:
        return dict(content["facts"])
    _log.warning("rows in the cache %s: %s: they are read again", folder, fault)
    with suppress(OSError):
        (folder / cache.CONTENT).unlink()
    return None


def fault_of(folder: Path) -> str | None:
    """What is wrong with the files in a folder of rows, or None. Reads all of their bytes."""
    content = cache.read_or_none(folder / cache.CONTENT)
    try:
        sums = {name: list(found) for name, found in content["files"].items()}
        facts = content["facts"]
    except (TypeError, KeyError, AttributeError):
        return f"{cache.CONTENT} is damaged"
    if not isinstance(facts, dict):
        return f"{cache.CONTENT} is damaged"
    for name, expected in sums.items():
        path = folder / Path(name).name
        try:
            if _sum(path) != expected:
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
    return None


def _sum(path: Path) -> list[int]:
    """The size of a file and the CRC-32 of its bytes, about 1 GB in a second."""
    size, found = 0, 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            size, found = size + len(block), zlib.crc32(block, found)
    return [size, found]
