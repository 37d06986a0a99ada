"""Atomic files: each is written beside its place and then renamed, so that it is complete or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from frostline.core.documents import parse_json
from frostline.core.errors import (
    CannotWrite,
    CheckpointError,
    ConfigError,
    FrostlineError,
    UserError,
    first_line,
    is_out_of_memory,
)

UNFINISHED = ".unfinished."
"""Prefix of the names of files and folders that are being written or removed. A process that is killed leaves them."""


def sweep(folder: Path, name: str = "", older_than: float = 0.0) -> int:
    """Remove what killed processes left in `folder`. Returns the bytes freed.

    Args:
        folder: where to look.
        name: only what was to become the file or folder of this name; empty: everything.
        older_than: leave what is younger than this, in seconds: another process may be writing it.
    """
    freed = 0
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.name.startswith(f"{UNFINISHED}{name and _stem(name)}"):
            continue
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > older_than:
                freed += sum(inner.stat().st_size for inner in (path, *path.rglob("*")) if inner.is_file())
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    return freed


@contextmanager
def private() -> Iterator[None]:
    """Inside this context, only the user can read files and folders that this process makes.

    A umask that keeps strangers out already (027: the group may read; 007: and write) stays as it is.
    """
    mask = _umask()
    os.umask(mask if mask & 0o007 == 0o007 else 0o077)
    try:
        yield
    finally:
        os.umask(mask)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. On success it replaces `path`, on failure it is removed.

    Raises `CannotWrite` when the disk is full. An old file at `path` then stays as it was.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_unfinished(path), dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`. On success it replaces `path`, on failure it is removed.

    Raises `CannotWrite` when the disk is full. An old folder at `path` then stays as it was.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_unfinished(path), dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            if path.exists():
                _exchange(path, temporary)
            else:
                temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: Path, what: str, error: type[UserError] = ConfigError) -> str:
    """The text of a file.

    Args:
        path: the file.
        what: what the file is, for messages.
        error: the error to raise when the file is missing, a folder, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise error(f"{what} not found: {path}") from None
    except IsADirectoryError:
        raise error(f"{what} is a folder: {path}: use the path of a file") from None
    except UnicodeDecodeError as reason:
        raise error(f"{what} is not UTF-8 text: {path}: {reason}") from None


def read_json(path: Path, what: str) -> Any:
    """The JSON value in `path`, a file of frostline's own.

    Raises `CheckpointError` when it is missing or not JSON. `what` is what the file is, for the message.
    """
    try:
        return parse_json(read_text(path, what, CheckpointError))
    except ValueError as error:
        raise CheckpointError(f"{what} is not JSON: {path}: {error}") from None


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn any error about the values in a file of frostline's own into a `CheckpointError`, but for want of memory.

    Args:
        path: the file, or the folder of the files.
        what: what they hold, for the message.
    """
    try:
        yield
    except FrostlineError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise CheckpointError(
            f"{path}: its {what} is damaged ({reason}): use another checkpoint, or a new out"
        ) from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk while `path` is written into a `CannotWrite` of one line."""
    try:
        yield
    except Exception as error:
        if _is_full_disk(error):
            raise CannotWrite(
                f"no space left while writing {path}, which stays as it was: free some space and run again"
            ) from error
        raise


# safetensors wraps the system's error and keeps its text. torch's writer names only its own file and line.
_FULL_DISK = ("no space left", "storagefull", "inline_container.cc", "iostream error")


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error).lower()
    return any(sign in text for sign in _FULL_DISK)


def _exchange(path: Path, new: Path) -> None:
    """Replace `path` by `new` and remove the old folder. Put the old one back if `new` cannot be moved."""
    aside = Path(tempfile.mkdtemp(prefix=_unfinished(path), dir=path.parent))
    try:
        path.replace(aside / "was")
        try:
            new.replace(path)
        except BaseException:
            (aside / "was").replace(path)
            raise
    finally:
        shutil.rmtree(aside)


def _unfinished(path: Path) -> str:
    return f"{UNFINISHED}{_stem(path.name)}"


def _stem(name: str) -> str:
    return f"{name[:40]}."  # a name has at most 255 bytes, and a character up to 4


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
