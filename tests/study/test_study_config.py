from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from frostline.core.errors import UserError
from frostline.study import StudyConfig, cells, read_study

STUDY: dict[str, Any] = {"models": ["org/base"], "tasks": ["rte"], "strategies": ["all", "bot50"]}


def read(**changes: Any) -> StudyConfig:
    return StudyConfig.read({**STUDY, **changes})


def test_the_grid_with_settings_from_study_and_strategy(tmp_path: Path) -> None:
    study = read(
        tasks=["rte", "data/mine.jsonl"],
        strategies=["all", {"name": "lora", "label": "lora-fast", "learning_rate": 1e-3, "data": {"max_eval_rows": 5}}],
        seeds=[1, 2],
        config={"learning_rate": "1e-4", "max_steps": 7, "data": {"max_train_rows": 9}},
    )
    grid = cells(study, tmp_path)
    assert [str(cell.folder.relative_to(tmp_path)) for cell in grid] == [
        "base/rte/all/seed1",
        "base/rte/lora-fast/seed1",
        "base/rte/all/seed2",
        "base/rte/lora-fast/seed2",
        "base/mine/all/seed1",
        "base/mine/lora-fast/seed1",
        "base/mine/all/seed2",
        "base/mine/lora-fast/seed2",
    ]
    plain, lora = grid[0].config, grid[1].config
    assert (plain.model, plain.task, plain.strategy, plain.seed) == ("org/base", "rte", "all", 1)
    assert (plain.learning_rate, plain.max_steps, plain.data.max_train_rows) == (1e-4, 7, 9)
    assert (lora.strategy, lora.learning_rate, lora.max_steps) == ("lora", 1e-3, 7)
    assert (lora.data.max_train_rows, lora.data.max_eval_rows) == (9, 5)


def test_models_of_one_name_get_folders_of_their_own(tmp_path: Path) -> None:
    grid = cells(read(models=["a/base", "b/base"]), tmp_path)
    assert len({cell.folder for cell in grid}) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategies": ["all", "loar"]}, "did you mean 'lora'"),
        ({"strategies": ["all", "plans/absent.yaml"]}, "plan file not found"),
        ({"config": {"learning_rat": 1}}, "learning_rat"),
        ({"strategies": ["all", {"name": "lora", "r": 4}]}, "unknown key 'r'"),
        ({"config": {"seed": 1}}, "config: the study itself sets 'seed'"),
        ({"strategies": ["all", {"name": "lora", "out": "x"}]}, "strategy 'lora': the study itself sets 'out'"),
    ],
)
def test_a_wrong_cell_is_an_error_before_anything_runs(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cells(read(**changes), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": []}, "models"),
        ({"strategies": []}, "strategies"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds: '1' is given twice"),
        ({"tasks": ["rte", "rte"]}, "tasks: 'rte' is given twice"),
        ({"strategies": ["all", "lora", {"name": "lora"}]}, "'lora' is given twice; use a different label for each"),
        ({"strategies": ["all", {"name": "lora", "seeds": []}]}, "seeds"),
        ({"strategies": ["all", {"name": "lora", "seeds": [2, 2]}]}, "'2' is given twice"),
        ({"strategies": ["lora"]}, "baseline 'all' is not among the strategies"),
        ({"strategies": ["all", {"name": "lora", "label": "a/b"}]}, "label"),
        ({"strategys": ["all"]}, "strategys"),
    ],
)
def test_a_wrong_study_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(**changes)


def test_a_strategy_may_have_its_own_seeds(tmp_path: Path) -> None:
    study = read(strategies=["all", {"name": "lora", "seeds": [2, 7]}, {"name": "bot50", "seeds": [2]}], seeds=[1, 2])
    grid = cells(study, tmp_path)
    expected = [(1, "all"), (2, "all"), (2, "lora"), (2, "bot50"), (7, "lora")]
    assert [(cell.config.seed, cell.label) for cell in grid] == expected
    assert StudyConfig.read(yaml.safe_load(study.to_yaml())) == study


def test_null_is_no_baseline() -> None:
    assert read(strategies=["lora"], baseline=None).baseline is None


def test_a_study_survives_yaml(tmp_path: Path) -> None:
    study = read(strategies=["all", {"name": "lora", "learning_rate": 1e-3}], seeds=[3, 4])
    path = tmp_path / "study.yaml"
    path.write_text(study.to_yaml())
    assert read_study(path) == study


def test_settings_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(read().to_yaml())
    study = read_study(path, ["models=[x, y]", "config.max_steps=3"])
    assert (study.models, study.config) == (("x", "y"), {"max_steps": 3})
    with pytest.raises(UserError, match="key=value"):
        read_study(path, ["models"])


@pytest.mark.parametrize(("text", "message"), [("a: [", "study.yaml:"), ("- 1", "mapping"), ("", "mapping")])
def test_a_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_study(path)
    with pytest.raises(UserError, match="study file not found"):
        read_study(tmp_path / "absent.yaml")
