"""Locks on folders. The system frees a lock when its process ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from frostline.core.errors import CheckpointError, ConfigError
from frostline.core.files import atomic_folder, sweep
from frostline.core.places import check_folder_name

LOCK_FILE = ".lock"
"""In the folder of a run or a study, or in that which a checkpoint is written to, while a process works there."""


def take(path: Path, seconds: float = 0.0) -> AbstractContextManager[object] | None:
    """Lock the file `path`, which is made with its folder. Leaving the context that is returned frees it.

    None where another process still has it after `seconds`; -1: wait as long as it takes.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(path, thread_local=False).acquire(timeout=seconds)
        except Timeout:
            return None
        except FileNotFoundError:  # the folder was removed in the meantime
            continue


def share(path: Path) -> AbstractContextManager[object]:
    """Lock the file `path` together with others that share it; wait while one has it alone (`take`).

    The file is made with its folder. Leaving the context that is returned frees it.
    """
    from fcntl import LOCK_SH, flock  # not on every system, where `take` works

    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError), ExitStack() as stack:
            file = stack.enter_context(path.open("a"))
            flock(file, LOCK_SH)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # else removed while it was waited for
                return stack.pop_all()


def is_held(folder: Path) -> bool:
    """Whether a process works in the folder of a run or a study now. Nothing is made there."""
    if not (folder / LOCK_FILE).is_file():
        return False
    lock = take(folder / LOCK_FILE)
    if lock is None:
        return True
    with lock:
        return False


@contextmanager
def own_folder(folder: Path, seconds: float = 0.0) -> Iterator[None]:
    """Inside this context, no other process works in `folder`. It is made; if it stays empty it is removed again.

    What processes that were killed left there is removed first.

    Args:
        folder: of a run or a study, or for a new checkpoint.
        seconds: how long to wait for another process.

    Raises `CheckpointError` when another process works there, and `ConfigError` when it is a file, or has a name that
    no folder can have.
    """
    check_folder_name(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"out: {folder} is a file: use the path of a folder")
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    lock = take(folder / LOCK_FILE, seconds)
    if lock is None:
        raise CheckpointError(
            f"another process works in {folder}: wait until it has ended (or end it), or use another folder"
        )
    with lock:
        sweep(folder)
        try:
            yield
        finally:
            # Removed while it is held: who waits for it finds that its file has no name any more, and makes a new one.
            (folder / LOCK_FILE).unlink(missing_ok=True)
            with suppress(OSError):  # not empty
                for place in made:
                    place.rmdir()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` on success, as `atomic_folder` does.

    Raises `CheckpointError` when `path` holds files, and as `own_folder` does.
    """
    with own_folder(path):
        if any(inner.name != LOCK_FILE for inner in path.iterdir()):
            raise CheckpointError(f"{path} exists and is not empty: use a new folder")
        sweep(path.parent, path.name)
        with atomic_folder(path) as staging:
            yield staging
