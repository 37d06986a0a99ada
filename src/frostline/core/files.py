"""Atomic files: each is written beside its place and then renamed, so that it is complete or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from frostline.core.errors import CannotWrite, CheckpointError, ConfigError, UserError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. On success it replaces `path`, on failure it is removed.

    Raises `CannotWrite` when the disk is full. An old file at `path` then stays as it was.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
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
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
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
        return path.read_text(encoding="utf-8")
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
        return json.loads(read_text(path, what, CheckpointError))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{what} is not JSON: {path}: {error}") from None


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
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    try:
        path.replace(aside / "was")
        try:
            new.replace(path)
        except BaseException:
            (aside / "was").replace(path)
            raise
    finally:
        shutil.rmtree(aside)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
