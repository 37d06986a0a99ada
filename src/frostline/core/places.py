"""Where files of a run lie: names that every system takes, and paths that are found when they moved with the run."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from frostline.core.errors import ConfigError

LONGEST_NAME, LONGEST_PATH = 200, 3500
"""Bytes of a folder's name and of its whole path: file systems take 255 and 4,096, and the names inside need some."""

Places = tuple[str, ...]
"""The absolute path of a file or folder, and its path relative to the run's folder; empty for what is not on disk."""


def places_of(path: str, folder: Path) -> Places:
    """Where `path` is now, for a run in `folder`; empty where there is no such file or folder."""
    if not path or not Path(path).exists():
        return ()
    # Links are followed, but not the last name: a model may be a link that moves with the run.
    absolute = Path(path).absolute()
    absolute = absolute.parent.resolve() / absolute.name
    try:
        return str(absolute), os.path.relpath(absolute, folder.resolve())
    except ValueError:  # another drive
        return (str(absolute),)


def found_places(places: Sequence[str], folder: Path) -> list[str]:
    """The places at which something lies now, best first; `folder` is where the run is now."""
    candidates = (str(folder.resolve() / place) for place in places)  # an absolute path stays as it is
    return list(dict.fromkeys(os.path.normpath(one) for one in candidates if Path(one).exists()))


def check_folder_name(folder: Path) -> None:
    """Raises `ConfigError` where no folder can be made at `folder`, since a name is too long or has a zero byte."""
    if "\0" in str(folder):
        raise ConfigError(f"out: the path {str(folder)[:60]!r} holds a zero byte: use another name")
    longest = max(folder.parts, key=lambda part: len(os.fsencode(part)), default="")
    for what, text, most in (("name", longest, LONGEST_NAME), ("path", str(folder.absolute()), LONGEST_PATH)):
        if (size := len(os.fsencode(text))) > most:
            raise ConfigError(f"out: the {what} {text[:60]}... has {size} bytes: use at most {most}")


def portable(name: str) -> bool:
    """Whether a folder may have this name on every system, Windows included."""
    return (
        name not in ("", ".", "..")
        and re.search(r'[\x00-\x1f\x7f<>:"/\\|?*]', name) is None
        and not name.endswith((".", " "))
        and re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE) is None
        and len(os.fsencode(name)) <= LONGEST_NAME
    )


def portable_name(text: str) -> str:
    """A name like `text` that a folder may have on every system. Texts that differ in what is cut keep apart.

    >>> portable_name("a/b: c"), portable_name("con"), portable_name("bot50+lora")
    ('a-b-c', '_con', 'bot50+lora')
    """
    name = re.sub(r"[^\w.+-]+", "-", text).strip("-.")
    if len(os.fsencode(name)) > LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(text)).hexdigest()[:8]
        name = f"{os.fsencode(name)[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"
    return name if portable(name) else f"_{name}"
