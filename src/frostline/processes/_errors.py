"""Errors that processes tell each other, and what a process sees of one that has ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from frostline.core.errors import FrostlineError, TrainingError, first_line

_OF_ALL = "_frostline_of_all_processes"
_ENDED = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "ncclRemoteError")


def portable(error: Exception, rank: int) -> Exception:
    """The error as it is sent to other processes: of the same class where all programs know that class."""
    if type(error).__module__.startswith("frostline."):
        return type(error)(*error.args)
    if isinstance(error, OSError):
        return OSError(*error.args, *([error.filename] if error.filename is not None else []))
    return FrostlineError(f"process {rank}: {type(error).__name__}: {first_line(error)}")


def tell(error: BaseException) -> BaseException:
    """The error, marked as one that all processes have met."""
    setattr(error, _OF_ALL, True)
    return error


def was_told(error: BaseException) -> bool:
    """Whether all processes have met just this error."""
    return hasattr(error, _OF_ALL)


def is_of_all(error: BaseException | None) -> bool:
    """Whether all processes have met this error, or the one that led to it."""
    return error is not None and (was_told(error) or is_of_all(error.__cause__ or error.__context__))


@contextmanager
def watching() -> Iterator[None]:
    """Inside this context, a lost connection is a `TrainingError` that says that another process has ended."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or any(mark in str(error) for mark in _ENDED)
        if not (lost and dist.is_available() and dist.is_initialized()):
            raise
        raise TrainingError(
            "another process of this training has ended, so it cannot go on: see what that process says, then resume "
            "from the last checkpoint"
        ) from error
