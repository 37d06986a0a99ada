"""Errors that are the user's to mend: one clear line saying what, where, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FrostlineError(Exception):
    """Base of every error that frostline raises on purpose. The command line exits with status 1."""


class UserError(FrostlineError):
    """The input is wrong: a path, a name, a row, an option. The command line exits with status 2."""


class TrainingError(FrostlineError):
    """Training could not go on (a loss that is not a number, a disk that is full). Exit status 1."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """A `UserError` for a name that matches nothing, with the closest known ones first.

    >>> print(unknown_name("task", "rta", ["rte", "cb"]))
    unknown task 'rta': did you mean 'rte'? known: cb, rte
    """
    names = sorted(known)
    lowered = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    hint = f"did you mean '{lowered[close[0]]}'? " if close else ""
    return UserError(f"unknown {kind} {name!r}: {hint}known: {', '.join(names)}")
