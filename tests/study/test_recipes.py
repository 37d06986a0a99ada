"""Every study and plan that is shipped can be read and run."""

from __future__ import annotations

from pathlib import Path

import pytest

from frostline.plan import load_plan
from frostline.run.demo import STUDY
from frostline.study import StudyConfig, cells, read_study

ROOT = Path(__file__).resolve().parents[2]
PAPERS = sorted((ROOT / "recipes" / "papers").glob("*.yaml"))
STUDIES = [*sorted((ROOT / "recipes").glob("*.yaml")), *PAPERS]
PLANS = sorted((ROOT / "recipes" / "plans").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_shipped_study_has_cells(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = read_study(path)
    grid = cells(study, tmp_path)
    runs = sum(len(study.seeds_of(strategy)) for strategy in study.strategies)
    assert len(grid) == len(study.models) * len(study.tasks) * runs
    if path in PAPERS or path.stem.startswith("equal-time"):  # there the length may be what is compared
        assert all(cell.config.max_steps or cell.config.budget.time for cell in grid)
    else:
        work = {(c.config.max_steps, c.config.per_device_train_batch_size, c.config.max_length) for c in grid}
        assert len(work) == 1 and grid[0].config.max_steps


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_shipped_plan_is_read(path: Path) -> None:
    assert load_plan(path).blocks


def test_the_demo_is_a_study(tmp_path: Path) -> None:
    study = StudyConfig.read({**STUDY, "models": ["m"], "tasks": ["t.jsonl"], "seeds": [0]})
    assert [cell.label for cell in cells(study, tmp_path)] == ["all", "bot50", "lora", "head"]
