"""A run of a study that is interrupted while it is still importing."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from command_line import frostline


class Interrupted:
    """Stands in for the finders of modules: the import of the study is interrupted."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "frostline.study":
            raise KeyboardInterrupt


def test_an_interrupted_import_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("frostline.study", "frostline.study.lifeline"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("FROSTLINE_LIFELINE", "99")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    ended = frostline("train")
    assert (ended.status, ended.error) == (1, "interrupted")
