"""docs/claims.md is what the records say."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from claims import results

    yield results
    for name in [name for name in sys.modules if name.partition(".")[0] == "claims"]:
        del sys.modules[name]


def write(folder: Path, label: str, scores: list[float], study: str = "study", first: int = 0) -> None:
    for seed, score in enumerate(scores, first):
        place = folder / study / "model" / "task" / label / f"seed{seed}"
        place.mkdir(parents=True)
        record = {"status": "finished", "data": {"metric": "accuracy"}, "measured": {"cpu_seconds_per_step": 1 + score}}
        record["metrics"] = {"after": {"accuracy": score, "loss": 1 - score}}
        (place / "run.json").write_text(json.dumps(record))


@pytest.mark.slow
def test_the_page_is_what_the_records_say(results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from claims import figures
    from claims.__main__ import PAGE, page

    monkeypatch.setattr(figures, "FOLDER", tmp_path / "figures")
    assert PAGE.read_text(encoding="utf-8") == page(), "run: PYTHONPATH=benchmarks python -m claims"
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert drawn.keys() == {path.name for path in (ROOT / "docs" / "figures").glob("claims-*.svg")}
    page()
    assert drawn == {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}, "the same bytes"


def test_verdicts(results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results.read, "__defaults__", (tmp_path,))
    write(tmp_path, "good", [0.80, 0.82, 0.81])
    write(tmp_path, "bad", [0.70, 0.71, 0.72])
    write(tmp_path, "near", [0.70, 0.83, 0.90])
    write(tmp_path, "alone", [0.9])
    found = {one: results.ahead("study", *one.split()).verdict for one in ("good bad", "bad good", "near good")}
    assert found == {"good bad": "holds", "bad good": "does not hold", "near good": "cannot be told"}
    assert results.ahead("study", "alone", "good").verdict == "cannot be told", "one seed"
    assert results.ahead("study", "absent", "good").verdict == "not run yet"
    assert results.ahead("study", "bad", "good", results.metric("loss")).verdict == "does not hold", "less is better"
    assert results.ahead("study", "bad", "good", least=-0.2).verdict == "holds", "not behind by more than 0.2"
    line = results.ahead("study", "good", "bad").line
    assert line == "task +0.100 ± 0.010", "0.10, 0.11, 0.09 by seed"
    step = results.measured("cpu_seconds_per_step")
    share = results.ratio("study", "bad", "good", step, 0.9, 1.0)
    assert (share.verdict, share.line) == ("holds", "0.94 of good (from 0.94 to 0.95, 3 pairs of runs)")
    assert dict(results.points("study")) == {"alone": 3.0, "good": 2.0, "bad": 0.5, "near": 0.5}, "with the first seed"


def test_plans_in_the_same_time(results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from claims import equal

    monkeypatch.setattr(equal, "RESULTS", tmp_path)
    monkeypatch.setattr(results.read, "__defaults__", (tmp_path,))
    for label, scores in (
        ("all_0.4_0.001", [0.50]),
        ("all_0.4_0.002", [0.60, 0.61]),
        ("bot50_0.4_0.001", [0.70, 0.72]),
        ("bot75_0.4_0.001", [0.65, 0.99]),
        ("auto_0.4", [0.71, 0.71]),
        ("all_1_0.001", [0.80, 0.81]),
    ):
        write(tmp_path, label, scores, "equal-time-one", 42)
    best = equal.best(results.read("equal-time-one"))
    assert {key: cell.label for key, cell in best.items()}["all", 0.4] == "all_0.4_0.002", "the rate of the first seed"
    found = equal.ahead(["bot50", "bot75"], ["all"], 0.4)
    assert found.line == "one +0.105 ± 0.007 (bot50 over all)", "less loss by 0.10 and 0.11"
    assert (found.verdict, found.seeds) == ("holds", 2)
    assert equal.ahead(["auto"], ["bot50"], 0.4).verdict == "cannot be told", "+0.01 and -0.01"
    assert equal.ahead(["bot50"], ["all"], 0.4, whole=True).verdict == "does not hold"
    assert equal.ahead(["bot50"], ["all"], 0.2).verdict == "not run yet"
    assert equal.step("bot50", 2.0).verdict == "holds" and equal.step("bot50", 1.0).verdict == "does not hold"
