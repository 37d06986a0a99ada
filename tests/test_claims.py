"""docs/claims.md is what the records say."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from claims import results

    yield results
    for name in [name for name in sys.modules if name.partition(".")[0] == "claims"]:
        del sys.modules[name]


def write(
    folder: Path,
    label: str,
    scores: list[float],
    study: str = "study",
    first: int = 0,
    data: dict[str, object] | None = None,
) -> None:
    for seed, score in enumerate(scores, first):
        place = folder / study / "model" / "task" / label / f"seed{seed}"
        place.mkdir(parents=True)
        record = {"status": "finished", "data": data or {"metric": "accuracy"}}
        record["measured"] = {"cpu_seconds_per_step": 1 + score, "steps": 10}
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
    assert line == "good over bad: task +0.100 ± 0.010", "0.10, 0.11, 0.09 by seed"
    from claims import records

    step = records.measured("cpu_seconds_per_step")
    share = results.ratio("study", "bad", "good", step, 0.9, 1.0)
    assert (share.verdict, share.line) == ("holds", "bad 0.94 of good (from 0.94 to 0.95)")
    points = {label: own[0] for label, own in results.points("study").items()}
    assert points == {"alone": 3.0, "good": 2.0, "bad": 0.5, "near": 0.5}, "with the first seed"


def test_a_doubt_is_that_of_students_t(results: ModuleType) -> None:
    """0.1, 0.2, 0.3: mean 0.2, standard error 0.1 / sqrt(3); t of 2 degrees of freedom is 4.303, of 1 it is 12.706."""
    assert results.doubt_of([0.1, 0.2, 0.3]) == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)
    assert results.judge([0.1, 0.2, 0.3]) == "cannot be told" and results.judge([0.15, 0.2, 0.25]) == "holds"
    assert results.judge([0.15, 0.2, 0.25], comparisons=6) == "cannot be told", "a wider interval for each of six"
    assert results.judge([0.19, 0.21]) == "holds" and results.judge([0.15, 0.25]) == "cannot be told"


def test_the_level_of_guessing(results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 rows with a majority of 0.5: two standard errors are 0.1."""
    monkeypatch.setattr(results.read, "__defaults__", (tmp_path,))
    data = {"metric": "accuracy", "majority_share": 0.5, "eval_rows": 100}
    write(tmp_path, "learned", [0.70, 0.71, 0.72], data=data)
    write(tmp_path, "low", [0.50, 0.51, 0.52], data=data)
    write(tmp_path, "lower", [0.40, 0.41, 0.42], data=data)
    found = results.ahead("study", "low", "lower")
    assert (found.verdict, "both at guessing" in found.line) == ("cannot be told", True)
    assert results.ahead("study", "learned", "lower").verdict == "holds", "one side has learned"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value"),
        ("[1]", "list indices"),
        ('{"error": null}', "'status'"),
        ('{"status": "finished", "metrics": null, "measured": {}}', "'NoneType'"),
        ('{"status": "finished", "metrics": {"after": {"loss": NaN}}, "measured": {}}', "a number is NaN"),
        ('{"status": "finished", "metrics": {"after": {"loss": "1"}}, "measured": {}}', "no numbers"),
        ('{"status": "finished", "metrics": {"after": {"loss": 1}}, "measured": null}', "no numbers"),
        ('{"status": "finished", "metrics": {"after": {}}, "measured": {}, "seed": 43}', "its seed is 43"),
    ],
)
def test_a_damaged_record_is_one_line_with_its_place(results: ModuleType, tmp_path: Path, text: str, says: str) -> None:
    place = tmp_path / "study" / "model" / "task" / "label" / "seed42" / "run.json"
    place.parent.mkdir(parents=True)
    place.write_text(text)
    with pytest.raises(SystemExit, match=f"^{place}: not a record of a run: .*{says}"):
        results.read("study", tmp_path)


def test_a_record_with_other_settings_than_its_recipe_does_not_count(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from claims import __main__ as page
    from claims import records

    kept = next((records.RESULTS / "004-splits").glob("*/**/run.json"))
    place = tmp_path / kept.relative_to(records.RESULTS)
    record = json.loads(kept.read_text(encoding="utf-8"))
    record["config"]["max_steps"] = 7
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(record))
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="run with max_steps=7, and the study asks for 60"):
        page._left()


def test_what_is_no_study_is_not_kept(results: ModuleType, tmp_path: Path) -> None:
    from claims.__main__ import keep

    with pytest.raises(SystemExit, match=r"there is no study\.yaml$"):
        keep(tmp_path, "nothing")


def test_labels_that_claims_name_are_in_recipes(results: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label that no recipe has would be "not run yet" for ever."""
    from claims import equal, judges, records
    from claims.advice import ADVICE
    from claims.claims import CLAIMS

    from frostline.study import cells, read_study

    @functools.cache
    def planned(name: str, folder: Path = records.RESULTS) -> object:
        place = "papers" if not name.startswith("equal-time") else ""
        path = ROOT / "recipes" / place / f"{name}.yaml"
        grid = cells(read_study(path), tmp) if path.exists() else []
        found: dict[tuple[str, str, str], Any] = {}
        for cell in grid:
            *_, model, task, label, seed = cell.folder.parts
            record = {
                "data": {"metric": "accuracy"},
                "metrics": {"after": dict.fromkeys(("accuracy", "loss", "bleu", "rougeL", "rouge1"), 1.0)},
                "measured": {"cpu_seconds_per_step": 1.0, "peak_memory_bytes": 1.0, "steps": 10},
                "predicted": {"flops_ratio": 1.0},
                "plan": {"blocks": [{"mode": "frozen"}]},
                "notices": [],
            }
            one = found.setdefault((model, task, label), results.Cell(model, task, label))
            one.runs[int(seed.removeprefix("seed"))] = record
        return records.Study(name, tuple(found.values()))

    tmp = Path("/planned")
    for module in (results, judges, equal):
        monkeypatch.setattr(module, "read", planned)
    monkeypatch.setattr(equal, "names", lambda: [path.stem for path in (ROOT / "recipes").glob("equal-time-*.yaml")])
    for claim in CLAIMS:
        if claim.study not in ("004-inference", "own-frozen-bottom"):
            assert claim.judge().verdict != "not run yet", claim.says
    for advice in ADVICE:
        assert advice.evidence().verdict != "not run yet", advice.says


def test_plans_in_the_same_time(results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from claims import equal

    monkeypatch.setattr(equal, "RESULTS", tmp_path)
    monkeypatch.setattr(results.read, "__defaults__", (tmp_path,))
    for label, scores in (
        ("all_0.4_0.001", [0.50]),
        ("all_0.4_0.002", [0.60, 0.61, 0.62]),
        ("bot50_0.4_0.001", [0.70, 0.72, 0.74]),
        ("bot75_0.4_0.001", [0.65, 0.99]),
        ("auto_0.4", [0.71, 0.73, 0.73]),
        ("all_1_0.001", [0.80, 0.81]),
    ):
        write(tmp_path, label, scores, "equal-time-one", 42)
    best = equal.best(results.read("equal-time-one"))
    assert {key: cell.label for key, cell in best.items()}["all", 0.4] == "all_0.4_0.002", "the rate of the first seed"
    found = equal.ahead(["bot50", "bot75"], ["all"], 0.4)
    line = "one +0.115 ± 0.007 (bot50, 1 rate over all, 2 rates)"
    assert found.line == line, "less loss by 0.11 and 0.12 with the seeds that chose nothing"
    assert (found.verdict, found.seeds, found.part) == ("holds", (2,), "1 of 7 tasks")
    assert equal.ahead(["auto"], ["bot50"], 0.4).verdict == "cannot be told", "+0.01 and -0.01"
    assert equal.ahead(["bot50"], ["all"], 0.4, whole=True).verdict == "does not hold"
    assert equal.ahead(["bot50"], ["all"], 0.2).verdict == "not run yet"
    assert equal.step("bot50", 2.0).verdict == "holds" and equal.step("bot50", 1.0).verdict == "does not hold"
