"""The errors' family and the did-you-mean line."""

from __future__ import annotations

import pytest

from frostline.core.errors import FrostlineError, TrainingError, UserError, unknown_name


def test_only_the_users_faults_are_user_errors() -> None:
    assert issubclass(UserError, FrostlineError)
    assert issubclass(TrainingError, FrostlineError)
    assert not issubclass(TrainingError, UserError)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("rta", "unknown task 'rta': did you mean 'rte'? known: cb, rte, webnlg"),
        ("webnl", "unknown task 'webnl': did you mean 'webnlg'? known: cb, rte, webnlg"),
        ("RTE", "unknown task 'RTE': did you mean 'rte'? known: cb, rte, webnlg"),
        ("zzz", "unknown task 'zzz': known: cb, rte, webnlg"),
        ("", "unknown task '': known: cb, rte, webnlg"),
        ("r\nte", r"unknown task 'r\nte': did you mean 'rte'? known: cb, rte, webnlg"),
    ],
)
def test_unknown_name(name: str, line: str) -> None:
    error = unknown_name("task", name, ["webnlg", "rte", "cb"])
    assert isinstance(error, UserError)
    assert str(error) == line
