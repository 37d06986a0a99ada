"""Errors. Each is one clear line: what is wrong, where, and what to do.

FrostlineError
  UserError            the input is wrong; the command line exits with status 2
    ConfigError        a setting, an option, a name
    PlanError          a plan or a schedule
      AdapterError     what PEFT is asked to do with an adapter; a ValueError too, as PEFT's own
    DataError          rows, or a file of them
    UnsupportedModel   a model
    CheckpointError    a delta, a checkpoint, a run or a record
  TrainingError        training could not go on; status 1
  CannotWrite          a disk is full; status 1
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FrostlineError(Exception):
    """Base of every error that frostline raises on purpose. The command line exits with status 1."""


class UserError(FrostlineError):
    """The input is wrong: a path, a name, a row, an option. The command line exits with status 2."""


class ConfigError(UserError):
    """A setting, an option, or the name of a strategy, a task or a signal is wrong."""


class PlanError(UserError):
    """A plan or a schedule is malformed, or does not fit the model or what is asked of it."""


class AdapterError(PlanError, ValueError):
    """An adapter cannot do what PEFT is asked to do with it. PEFT raises `ValueError` for the like, so this is one."""


class DataError(UserError):
    """Rows, their columns or labels, or a file or data set that holds them, cannot be used."""


class UnsupportedModel(UserError):
    """A model (or its tokenizer) cannot be loaded, or cannot be used so."""


class CheckpointError(UserError):
    """A delta, a checkpoint, a run or a record is not there, is damaged, or belongs to something else."""


class TrainingError(FrostlineError):
    """Training could not go on (a loss that is not a number, a disk that is full). Exit status 1."""


class CannotWrite(FrostlineError):
    """A file could not be written, since the disk is full or fails. Exit status 1."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short, on any device."""
    # torch's own class is recognised by its name, since torch may not have been imported.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


def a_noun(noun: str) -> str:
    """The noun with its article.

    >>> a_noun("encoder"), a_noun("decoder")
    ('an encoder', 'a decoder')
    """
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def unknown_name(kind: str, name: str, known: Iterable[str], likeness: float = 0.5) -> ConfigError:
    """The `ConfigError` for an unknown name, with the closest known name.

    Args:
        kind: what the name is of: "task", "strategy", ...
        name: the unknown name.
        known: the known names.
        likeness: how similar, from 0 to 1, the closest one has to be.

    >>> print(unknown_name("task", "rta", ["rte", "cb"]))
    unknown task 'rta': did you mean 'rte'? known: cb, rte
    """
    names = sorted(known)
    lowered = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower(), lowered, n=5, cutoff=likeness)
    same = [found for found in close if sorted(found) == sorted(name.lower())]  # letters in another order
    hint = f"did you mean '{lowered[(same or close)[0]]}'? " if close else ""
    return ConfigError(f"unknown {kind} {name!r}: {hint}known: {', '.join(names)}")
