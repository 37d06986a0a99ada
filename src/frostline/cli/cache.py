"""`frostline cache`: the caches of activations and of rows in `$FROSTLINE_CACHE` or `~/.cache/frostline`."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frostline.cli.answer import Answer, Json, progress_console
from frostline.cli.train import split_settings
from frostline.core import cache
from frostline.core.errors import ConfigError, unknown_name
from frostline.core.row_files import fault_of
from frostline.core.shards import drop
from frostline.core.shards import fault as fault_of_shard
from frostline.core.sizes import parse_duration, parse_size, size_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from frostline.run import Filled


def list_stores(as_json: Json = False) -> Answer:
    """Show the caches of activations and of rows, the one used last first."""
    root = cache.asked_root()
    entries = cache.entries(root)
    document = {"root": str(root), "stores": [_document(entry) for entry in entries]}
    return Answer(document, lambda: _view(root, entries), as_json)


def verify(as_json: Json = False) -> Answer:
    """Read every file and remove damaged ones (their rows are computed again); exit status 1 if there were any."""
    root = cache.asked_root()
    checked = 0
    damaged = []
    for folder in cache.store_folders(root):
        cache.tidy(folder)
        for shard in cache.shards(folder):
            with suppress(FileNotFoundError):  # removed meanwhile
                fault = fault_of_shard(shard)
                checked += 1
                if fault is not None:
                    drop(shard)
                    damaged.append({"store": folder.name, "shard": shard.name, "fault": fault})
    for folder in cache.row_folders(root):
        cache.tidy(folder)
        if (folder / cache.CONTENT).is_file():
            fault = fault_of(folder)
            checked += 1
            if fault is not None:
                drop(folder / cache.CONTENT)  # without it the files count as not there
                damaged.append({"store": folder.name, "shard": cache.CONTENT, "fault": fault})
    lines = [f"removed {found['shard']} of {found['store']}: {found['fault']}" for found in damaged]
    lines.append(f"{checked} shards read, {len(damaged)} of them damaged")
    document = {"root": str(root), "shards": checked, "damaged": damaged}
    return Answer(document, lambda: lines, as_json, status=1 if damaged else 0)


def prune(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Caches to remove, as `frostline cache list` names them.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove every cache.")] = False,
    older_than: Annotated[str | None, typer.Option(help="Remove what was not used for this time: 12h, 30d.")] = None,
    max_size: Annotated[
        str | None, typer.Option(help="Remove what was used least recently, until this size is left: 20GB.")
    ] = None,
    as_json: Json = False,
) -> Answer:
    """Remove caches. One that a running process is filling is kept."""
    if (bool(names), everything, bool(older_than or max_size)).count(True) != 1:
        raise ConfigError(
            "frostline cache prune: say in one way what to remove: names (see: frostline cache list), or --all, or "
            "--older-than 30d and --max-size 20GB"
        )
    age = parse_duration(older_than, "--older-than") if older_than else None
    size = parse_size(max_size, "--max-size") if max_size else None
    root = cache.asked_root()
    entries = cache.entries(root)
    chosen = _named(entries, names) if names else entries if everything else _unused(entries, age)
    places = (root, root / "activations", root / cache.ROWS)
    folders = (*places, *cache.store_folders(root), *cache.row_folders(root))
    swept = sum(cache.tidy(folder) for folder in folders)
    removed, in_use = _remove(entries, chosen, size)
    freed = swept + sum(entry.bytes for entry in removed)
    left = sum(entry.bytes for entry in entries if entry not in removed)
    lines = [f"removed {entry.name}: {size_text(entry.bytes)}" for entry in removed]
    lines += [f"kept {entry.name}: a running process holds its lock" for entry in in_use]
    lines.append(f"freed {size_text(freed)}; {size_text(left)} left in {root}")
    document = {
        "root": str(root),
        "removed": [_document(entry) for entry in removed],
        "in_use": [_document(entry) for entry in in_use],
        "freed_bytes": freed,
        "left_bytes": left,
    }
    return Answer(document, lambda: lines, as_json, status=1 if in_use else 0)


def fill(
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG.yaml [KEY=VALUE]...",
            help="A run's config, as for `frostline train`, and settings that replace its own.",
        ),
    ],
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only the rows I, I + N, I + 2 N, ..., with I from 0.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="All rows, by actors on a Ray cluster: auto, local, or its address."),
    ] = None,
    as_json: Json = False,
) -> Answer:
    """Run the caching pass of a training without training. Any number of jobs may do this at once."""
    path, overrides = split_settings(settings)
    first, count = _shard(shard)
    if ray is not None and shard is not None:
        raise ConfigError("--shard and --ray: Ray divides the rows itself: leave --shard out")

    from frostline.run import fill_cache, fill_with_ray, read_config

    config, console = read_config(path, overrides), progress_console()
    filled = fill_cache(config, first, count, console) if ray is None else fill_with_ray(config, ray, console)
    return Answer(asdict(filled), lambda: _filled(filled), as_json)


HELP = "The caches of activations and rows on this machine: show, verify, remove, fill."
COMMANDS = {"list": list_stores, "verify": verify, "prune": prune, "fill": fill}


def _shard(text: str | None) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text or "0/1", re.ASCII)
    if match is None or not int(match[1]) < int(match[2]):
        raise ConfigError(f"--shard: '{text}' is no shard: use I/N with I from 0 to N - 1, such as 0/4 to 3/4")
    return int(match[1]), int(match[2])


def _filled(filled: Filled) -> list[str]:
    rows = (
        f"rows {filled.shard.replace('/', '::')} of {filled.all_rows:,}"
        if filled.rows < filled.all_rows
        else "all rows"
    )
    lines = [
        f"{rows}: {filled.rows:,} are in the cache {Path(filled.cache).name[:12]}, {size_text(filled.bytes)}; "
        f"{filled.passed:,} of them passed the frozen bottom now, in {filled.seconds:.3g} s"
    ]
    if filled.missing:
        lines.append(f"{filled.missing:,} rows of other shards are not there yet")
    return lines


def _named(entries: Sequence[cache.Entry], names: Sequence[str]) -> list[cache.Entry]:
    """The entries with these names, or beginnings of names. Raises `ConfigError` for one that fits none or several."""
    chosen: list[cache.Entry] = []
    for name in names:
        found = [entry for entry in entries if entry.folder.name.startswith(name)]
        if not found:
            raise unknown_name("activation cache", name, [entry.name for entry in entries])
        if len(found) > 1:
            raise ConfigError(
                f"'{name}' is the beginning of several names: use one of {', '.join(e.name for e in found)}"
            )
        chosen += [entry for entry in found if entry not in chosen]
    return chosen


def _unused(entries: Sequence[cache.Entry], age: float | None) -> list[cache.Entry]:
    return [] if age is None else [entry for entry in entries if time.time() - entry.last_used > age]


def _remove(
    entries: Sequence[cache.Entry], chosen: Sequence[cache.Entry], size: int | None
) -> tuple[list[cache.Entry], list[cache.Entry]]:
    """Remove the `chosen` entries, then those used least recently, until at most `size` bytes are left.

    Returns the entries that were removed, and those that were kept because a process holds their lock.
    """
    removed: list[cache.Entry] = []
    in_use: list[cache.Entry] = []
    left = sum(entry.bytes for entry in entries)
    for entry in [*chosen, *(entry for entry in reversed(entries) if entry not in chosen)]:
        if entry not in chosen and (size is None or left <= size):
            break
        if cache.remove(entry.folder):
            removed.append(entry)
            left -= entry.bytes
        else:
            in_use.append(entry)
    return removed, in_use


def _document(entry: cache.Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "folder": str(entry.folder),
        "model": entry.label,
        "identity": entry.identity,
        "rows": entry.rows,
        "bytes": entry.bytes,
        "last_used": datetime.fromtimestamp(entry.last_used, UTC).isoformat(timespec="seconds"),
    }


def _view(root: Path, entries: Sequence[cache.Entry]) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    if not entries:
        return [f"no activation caches in {root}"]
    table = Table("cache", "model", box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("boundary", "rows", "size", "last used"):
        table.add_column(heading, justify="right")
    for entry in entries:
        boundary = str(entry.identity.get("boundary", ""))
        used = f"{datetime.fromtimestamp(entry.last_used):%Y-%m-%d %H:%M}"
        table.add_row(entry.name, Text(entry.label), boundary, f"{entry.rows:,}", size_text(entry.bytes), used)
    return [table, f"{size_text(sum(entry.bytes for entry in entries))} in {root}"]
