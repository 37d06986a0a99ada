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


def write(folder: Path, label: str, scores: list[float]) -> None:
    for seed, score in enumerate(scores):
        place = folder / "study" / "model" / "task" / label / f"seed{seed}"
        place.mkdir(parents=True)
        record = {"status": "finished", "data": {"metric": "accuracy"}, "measured": {"cpu_seconds_per_step": 1 + score}}
        record["metrics"] = {"after": {"accuracy": score, "loss": 1 - score}}
        (place / "run.json").write_text(json.dumps(record))


@pytest.mark.slow
def test_the_page_is_what_the_records_say(results: ModuleType) -> None:
    from claims.__main__ import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page(), "run: PYTHONPATH=benchmarks python -m claims"


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
    points = dict(results.points("study"))
    assert points == pytest.approx({"alone": 3.0, "near": 1.5, "good": 1.5, "bad": 0.0}, abs=0.51)
    assert points["near"] + points["good"] == 3.0, "equal but for rounding"
