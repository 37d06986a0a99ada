"""Where files of a run lie: kept so that they are found from any working folder, and when they moved with the run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

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
