"""Names of folders: refused or made safe before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import frostline
from frostline.core.errors import ConfigError
from frostline.core.locks import new_folder, own_folder
from frostline.core.places import LONGEST_NAME, portable, portable_name
from frostline.run import RunConfig
from frostline.study import StudyConfig
from frostline.study._grid import cells


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "a:b", "a?", "a\nb", "a.", "a ", "CON", "nul.txt", "x" * 201]
)
def test_a_name_that_some_system_refuses(name: str) -> None:
    assert not portable(name)
    assert portable(portable_name(name))


@pytest.mark.parametrize("name", ["bot50", "bot50+lora", "webnlg", "a b", "naïve", "x" * 200, "console"])
def test_a_name_that_every_system_takes(name: str) -> None:
    assert portable(name)


def test_long_names_that_differ_only_in_what_is_cut_keep_apart() -> None:
    first, second = (portable_name("ü" * 200 + end) for end in "ab")
    assert first != second and len(first.encode()) <= LONGEST_NAME
    folder = RunConfig(model="m" * 300, task="rte", strategy="bot50").folder
    assert portable(folder.name) and folder.parent == Path("runs")


@pytest.mark.parametrize("name", ["x" * 250, "x" * 300, "ü" * 101, "a\0b", "/".join(["x" * 190] * 20)])
def test_a_folder_that_cannot_be_made_is_refused_first(tmp_path: Path, name: str) -> None:
    for use in (own_folder, new_folder):
        with pytest.raises(ConfigError, match=r"^out: the (name|path) .*use (at most|another)"), use(tmp_path / name):
            pass
    assert not any(tmp_path.iterdir())


def test_a_run_with_too_long_a_name_reads_no_data(tmp_path: Path) -> None:
    ended = frostline("train", "--model", "none", "--task", "rte", "--out", tmp_path / ("x" * 250))
    assert ended.status == 2 and ended.error.startswith("error: out: the name xxx")
    assert ended.error.endswith("has 250 bytes: use at most 200")


@pytest.mark.parametrize("label", ["..", ".", "a/b", "con", "a.", "x" * 201])
def test_a_label_that_names_no_folder(label: str) -> None:
    study = {"models": ["m"], "tasks": ["rte"], "strategies": [{"name": "all", "label": label}]}
    with pytest.raises(ConfigError, match="label"):
        StudyConfig.read(study)


def test_labels_that_one_folder_would_serve() -> None:
    study = {"models": ["m"], "tasks": ["rte"], "baseline": None}
    with pytest.raises(ConfigError, match="is given twice; use a different label for each"):
        StudyConfig.read({**study, "strategies": [{"name": "all", "label": "A"}, {"name": "bot50", "label": "a"}]})


@pytest.mark.parametrize("tasks", [["a/x.jsonl", "a/x.csv"], ["a/X.jsonl", "b-x"], ["..", "rte"], ["a:b", "a?b"]])
def test_two_tasks_never_share_a_folder(tmp_path: Path, tasks: list[str]) -> None:
    study = StudyConfig.read({"models": ["m"], "tasks": tasks, "strategies": ["all"]})
    try:
        found = cells(study, tmp_path)
    except ConfigError as error:
        assert "would share a folder: rename one of them" in str(error)
        return
    folders = {str(cell.folder).casefold() for cell in found}
    assert len(folders) == len(tasks)
    assert all(
        cell.folder.resolve().is_relative_to(tmp_path / "m") and cell.folder.parents[1] != tmp_path for cell in found
    )


def test_a_study_below_a_path_that_is_too_long(tmp_path: Path) -> None:
    study = StudyConfig.read({"models": ["m"], "tasks": ["rte"], "strategies": ["all"]})
    with pytest.raises(ConfigError, match=r"^out: the name"):
        cells(study, tmp_path / ("x" * 250))
