"""The report as a page: it says what the records say, in its tables and where its marks stand, and nothing else."""

from __future__ import annotations

import html
import json
import re
import statistics
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from frostline.core.errors import UserError
from frostline.core.locks import own_folder
from frostline.records import RunRecord, write_record
from frostline.report import Failure, collect, tabulate, write_report
from frostline.report._costs import pareto
from frostline.report._runs import planned_runs
from made_records import run
from made_studies import BLOCKS, finished, write_study

SVG = "svg"


class Shown:
    """A figure of a page, as it was written."""

    def __init__(self, text: str) -> None:
        self.tree = ElementTree.fromstring(text.replace("&nbsp;", "\u00a0"))
        self.drawings = [svg for svg in self.tree.iter(SVG) if svg.get("role") == "img"]
        lines = [[("".join(cell.itertext()), cell.get("data-value")) for cell in row] for row in self.tree.iter("tr")]
        self.columns = [text for text, _ in lines[0]]
        self.rows = [
            {column: float(value) if value else text for column, (text, value) in zip(self.columns, line, strict=True)}
            for line in lines[1:]
        ]

    def of(self, strategy: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["strategy"] == strategy]

    def axis(self, drawing: int, upright: bool) -> Any:
        """From a place in a drawing to a number, by the ticks that are written there."""
        place, kind = ("y", "tick end") if upright else ("x", "tick mid")
        ticks = [mark for mark in self.drawings[drawing].iter("text") if mark.get("class") == kind]
        known = [(float(t.get(place, "")) - 4 * upright, float((t.text or "").replace(",", ""))) for t in ticks]
        (a, low), (b, high) = known[0], known[-1]
        return lambda at: low + (at - a) / (b - a) * (high - low)

    def marks(self, drawing: int, strategy: str, kind: str) -> list[str]:
        """The paths of a strategy's marks of a class."""
        found = (group for group in self.drawings[drawing].iter("g") if group.get("data-strategy") == strategy)
        paths = (path for group in found for path in group.iter("path"))
        return [path.get("d", "") for path in paths if kind in path.get("class", "").split()]


def figures(path: Path) -> dict[str, Shown]:
    return {
        name: Shown(text)
        for text, name in re.findall(r'(<figure id="([^"]+)".*?</figure>)', path.read_text(), flags=re.S)
    }


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def drawn(study: Path) -> dict[str, Shown]:
    return figures(study / "report.html")


@pytest.fixture(scope="module")
def records() -> dict[str, list[RunRecord]]:
    """The records of the first group, by strategy."""
    return {name: [finished(name, seed, "qnli") for seed in (42, 43)] for name in ("all", "bot50", "lora", "semantic")}


def measured(records: list[RunRecord], name: str) -> float:
    return statistics.fmean(getattr(record.measured, name) for record in records)


def test_every_figure_is_there(drawn: dict[str, Shown]) -> None:
    kinds = (
        *("time", "memory", "quality", "blocks", "schedule-0", "loss", "eval-loss", "predicted", "signals-0"),
        *("trials-0", "trials-1"),
    )
    assert set(drawn) == {f"{group}-{kind}" for group in ("g0", "g1") for kind in kinds} | {"ranking"}
    for name, figure in drawn.items():
        assert figure.drawings and figure.rows, name
        assert all(drawing.get("aria-label") for drawing in figure.drawings), name


@pytest.mark.parametrize(("kind", "column", "unit"), [("time", "time", 1.0), ("memory", "peak memory", 2.0**30)])
def test_quality_against_cost(
    kind: str, column: str, unit: float, drawn: dict[str, Shown], records: dict[str, list[RunRecord]]
) -> None:
    figure = drawn[f"g0-{kind}"]
    across, up = figure.axis(0, upright=False), figure.axis(0, upright=True)
    for name, runs in records.items():
        (row,) = figure.of(name)
        cost = measured(runs, "peak_memory_bytes")
        if kind == "time":
            cost = measured(runs, "train_seconds") + measured(runs, "selection_seconds")
        accuracies = [record.metrics.after["accuracy"] for record in runs if record.metrics]
        assert row[column] == pytest.approx(cost)
        assert row["accuracy"] == pytest.approx(statistics.fmean(accuracies))
        assert row["deviation"] == pytest.approx(statistics.stdev(accuracies))
        (mark,) = figure.marks(0, name, "mark")
        (whisker,) = figure.marks(0, name, "whisker")
        x, low, high = map(float, re.findall(r"-?[\d.]+", whisker))
        assert across(x) * unit == pytest.approx(cost, rel=0.01)
        assert (up(low) + up(high)) / 2 == pytest.approx(statistics.fmean(accuracies), abs=5e-4), mark
        assert abs(up(low) - up(high)) / 2 == pytest.approx(statistics.stdev(accuracies), abs=5e-4)


def test_the_pareto_front(drawn: dict[str, Shown]) -> None:
    rows = drawn["g0-time"].rows
    for row in rows:
        beaten = [
            other
            for other in rows
            if other["time"] <= row["time"] and other["accuracy"] >= row["accuracy"] and other is not row
        ]
        assert row["on the Pareto front"] == ("no" if beaten else "yes")
    assert pareto([(1, 0.5), (2, 0.4), (3, 0.6), (3, 0.7)], falling=False) == [0, 3]
    assert pareto([(1, 0.5), (2, 0.4), (3, 0.6)], falling=True) == [0, 1]


def test_bars_with_the_baselines_deviation(drawn: dict[str, Shown], records: dict[str, list[RunRecord]]) -> None:
    figure = drawn["g0-quality"]
    across = figure.axis(0, upright=False)
    means = {
        name: statistics.fmean(r.metrics.after["accuracy"] for r in runs if r.metrics) for name, runs in records.items()
    }
    bars = {b.get("data-strategy", ""): b for b in figure.drawings[0].iter("rect") if "bar" in b.get("class", "")}
    for name, mean in means.items():
        assert figure.of(name)[0]["accuracy"] == pytest.approx(mean)
        right = float(bars[name].get("x", "")) + float(bars[name].get("width", ""))
        assert across(right) == pytest.approx(mean, abs=2e-3)
        assert across(float(bars[name].get("x", ""))) == pytest.approx(0, abs=2e-3), "bars begin at 0"
    (band,) = (b for b in figure.drawings[0].iter("rect") if b.get("class") == "band")
    (line,) = (m for m in figure.drawings[0].iter("line") if m.get("class") == "mean")
    assert across(float(line.get("x1", ""))) == pytest.approx(means["all"], abs=2e-3)
    deviation = statistics.stdev(r.metrics.after["accuracy"] for r in records["all"] if r.metrics)
    wide = across(float(band.get("x", "")) + float(band.get("width", ""))) - across(float(band.get("x", "")))
    assert wide == pytest.approx(2 * deviation, abs=2e-3)


def test_ranking_score_is_that_of_the_papers(drawn: dict[str, Shown]) -> None:
    scores = {row["strategy"]: row["ranking score"] for row in drawn["ranking"].rows}
    points: dict[str, list[int]] = {}
    for group in ("g0", "g1"):
        ordered = sorted(drawn[f"{group}-quality"].rows, key=lambda row: row["accuracy"])
        for place, row in enumerate(ordered):
            points.setdefault(row["strategy"], []).append(place)
    assert scores == {name: pytest.approx(statistics.fmean(own)) for name, own in points.items()}


def test_loss_by_step_and_by_time(drawn: dict[str, Shown], records: dict[str, list[RunRecord]]) -> None:
    figure = drawn["g0-loss"]
    for name, runs in records.items():
        logs = [[e for e in r.metrics.history if "loss" in e] for r in runs if r.metrics]
        expected = [
            tuple(statistics.fmean(entry[key] for entry in entries) for key in ("step", "seconds", "loss"))
            for entries in zip(*logs, strict=True)
        ]
        rows = [(row["step"], row["time"], row["loss"]) for row in figure.of(name)]
        assert rows == [pytest.approx(point) for point in expected]
        for drawing, across in enumerate(("step", "seconds")):
            x, y = figure.axis(drawing, upright=False), figure.axis(drawing, upright=True)
            (line,) = figure.marks(drawing, name, "line")
            for (left, top), point in zip(points(line), expected, strict=True):
                assert x(left) == pytest.approx(point[0 if across == "step" else 1], abs=0.05)
                assert y(top) == pytest.approx(point[2], abs=0.005)


def test_what_trained(drawn: dict[str, Shown]) -> None:
    (row,) = drawn["g0-blocks"].of("bot50")
    assert (row["embeddings"], row["blocks"], row["final norm"]) == ("frozen", "0-5 frozen, 6-11 full", "full")
    (row,) = drawn["g0-blocks"].of("lora")
    assert (row["blocks"], row["final norm"], row["head"]) == ("0-11 lora", "frozen", "full")
    group = next(g for g in drawn["g0-blocks"].drawings[0].iter("g") if g.get("data-strategy") == "bot50")
    cells = [cell.get("class") for cell in group.iter("rect")]
    assert cells == ["cell m-frozen"] * 7 + ["cell m-full"] * 8
    assert [t.text for t in group.iter("text")][1:] == ["F"] * 8, "no colour alone"
    assert not drawn["g0-blocks"].of("lisa"), "its plan changed: it has a figure of its own"
    over_time = {row["part"]: row["columns of steps"] for row in drawn["g0-schedule-0"].rows}
    assert over_time["block 1"] == "0-9 frozen, 10-19 full" and over_time["block 2"] == "0-19 frozen"
    assert len(over_time) == BLOCKS + 3


def test_signals_trials_and_predictions(drawn: dict[str, Shown], records: dict[str, list[RunRecord]]) -> None:
    signals = records["semantic"][0].signals
    assert signals is not None
    for row, entry, gain in zip(
        drawn["g0-signals-0"].rows, signals["signals"]["vds"], signals["signals"]["gain"], strict=True
    ):
        assert (row["vds"], row["vds, error"]) == (pytest.approx(entry["value"]), entry["error"])
        assert row["gain"] == ("–" if gain["value"] is None else pytest.approx(gain["value"]))
    trials = [(r["learning rate"], r["result"], r["step"], r["held-out loss"]) for r in drawn["g0-trials-0"].rows]
    assert trials == [
        (1e-4, "lost", 10, 0.9),
        (3e-4, "won", 10, 0.8),
        (3e-4, "won", 20, 0.7),
        (1e-3, "diverged", "–", "–"),
    ]
    for name, runs in records.items():
        (row,) = drawn["g0-predicted"].of(name)
        assert row["memory predicted"] == statistics.fmean(r.predicted["peak_memory_bytes"] for r in runs)
        assert row["memory measured"] == measured(runs, "peak_memory_bytes")
        assert row["time predicted"] == pytest.approx(runs[0].predicted["run_flops_ratio"])
        assert row["time measured"] == pytest.approx(
            measured(runs, "train_seconds") / measured(records["all"], "train_seconds")
        )


def test_the_table_the_advice_and_the_commands(study: Path, records: dict[str, list[RunRecord]]) -> None:
    page = (study / "report.html").read_text()
    assert "Use <strong>all</strong> for the best accuracy" in page
    assert "for the least time within 2% of it" in page
    for runs in records.values():
        assert all(record.command in page and record.notices[0] in page for record in runs)
    assert re.search(r">torch</th><td class=\"text\">2.1\d.0 \(14 runs\), 2.1\d.0 \(14 runs\)", page)
    assert page.count('<section id="g') == 2


def test_nothing_is_fetched(study: Path) -> None:
    page = (study / "report.html").read_text()
    assert not re.findall(r"""\b(?:src|href|action|srcset|poster)="(?!#|data:)[^"]*|url\(|@import""", page)
    assert "default-src 'none'" in html.unescape(page) and len(page) < 3_000_000
    assert "not drawn" not in page


def test_sixty_runs_in_five_seconds(tmp_path: Path) -> None:
    assert len(write_study(tmp_path, strategies=10, seeds=(1, 2, 3))) == 60
    begun = time.process_time()
    path = write_report(tmp_path)
    assert time.process_time() - begun < 5
    assert path.stat().st_size < 3_000_000


def state_of(folder: Path) -> dict[str, str]:
    """What the page says of the runs without a result: their text, by state."""
    section = re.search(r'<section id="problems".*?</section>', write_report(folder).read_text(), flags=re.S)
    rows = re.findall(r"<tr>(.*?)</tr>", section[0] if section else "", flags=re.S)[1:]
    texts = [" ".join(re.sub("<[^>]+>", " ", row).split()) for row in rows]
    return {
        state: " ".join(text for text in texts if text.startswith(state)) for state in {t.split()[0] for t in texts}
    }


def test_runs_are_shown_as_what_they_are(tmp_path: Path) -> None:
    write_record(finished("all", 42), tmp_path / "all")
    write_record(run("lora", status="failed", error="the loss is nan").record, tmp_path / "lora")
    write_record(run("head", status="running").record, tmp_path / "head")
    write_record(run("bot50", status="running").record, tmp_path / "bot50")
    write_record(run("top50").record, tmp_path / "damaged")
    (tmp_path / "damaged" / "run.json").write_text("{")
    with own_folder(tmp_path / "bot50"):
        states = state_of(tmp_path)
    assert states.keys() == {"failed", "running", "interrupted", "unreadable"}
    assert "lora, seed 42" in states["failed"] and "the loss is nan" in states["failed"]
    assert "bot50" in states["running"] and "head" in states["interrupted"]
    assert "run record is not JSON" in states["unreadable"]
    assert "bot50" in state_of(tmp_path)["interrupted"], "nobody works there now"


def test_a_copy_of_a_run_counts_once(tmp_path: Path) -> None:
    for name in ("one", "copy"):
        write_record(finished("all", 42), tmp_path / name)
    write_record(finished("all", 43), tmp_path / "other")
    assert f"the same run as {tmp_path / 'copy'}: it counts once" in state_of(tmp_path)["unreadable"]
    assert [len(row.seeds) for group in tabulate(collect(tmp_path).runs).groups for row in group.rows] == [2]


def test_a_damaged_record_is_named_and_the_others_are_drawn(tmp_path: Path) -> None:
    write_record(finished("all", 42), tmp_path / "all")
    record = finished("bot50", 42).model_dump(mode="json")
    record["plan"]["blocks"] = 7
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text(json.dumps(record))
    path = write_report(tmp_path)
    text = html.unescape(path.read_text())
    assert "strips: drawn without a damaged record (TypeError: 'int' object is not iterable): " in text
    assert f"look at {tmp_path / 'bad'}" in text
    assert [row["strategy"] for row in figures(path)["g0-blocks"].rows] == ["all"]


def test_runs_that_a_study_plans(tmp_path: Path) -> None:
    study = {
        "models": ["m"],
        "tasks": ["a", "b"],
        "seeds": [1, 2],
        "strategies": ["all", {"name": "lora", "seeds": [1, 2, 3]}],
    }
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    assert planned_runs(tmp_path) == 2 * (2 + 3)


def test_records_of_another_version(tmp_path: Path) -> None:
    write_record(finished("all", 42), tmp_path / "new")
    for name, version in (("later", 2), ("older", 0)):
        write_record(run("lora").record, tmp_path / name)
        path = tmp_path / name / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "version": version}))
    page = write_report(tmp_path).read_text()
    for name in ("later", "older"):
        assert f"{name}/run.json: not a run record of version 1: version" in page


def test_a_record_from_before_times_and_commands(tmp_path: Path) -> None:
    record = finished("bot50", 42).model_dump(mode="json")
    for entry in record["metrics"]["history"]:
        entry.pop("seconds")
    for key in ("command", "signals"):
        record.pop(key)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").write_text(json.dumps(record))
    write_record(finished("all", 42), tmp_path / "new")
    path = write_report(tmp_path)
    loss = figures(path)["g0-loss"]
    assert {row["time"] for row in loss.of("bot50")} == {"–"} and isinstance(loss.of("all")[0]["time"], float)
    assert "Without times, since their records are of an earlier version: bot50." in path.read_text()
    assert "not recorded: the record is of an earlier version" in path.read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"plan": {"blocks": 3}},
        {"plan": {"blocks": [3, None, {"mode": ["x"]}], "head": 4}},
        {"signals": {"signals": 3}},
        {"signals": {"signals": {"vds": [{"value": "x"}]}}},
        {"trials": ({"result": "won"},)},
        {"trials": ({"option": 1, "what": 2, "learning_rate": "x", "result": [], "curve": [[1]]},)},
        {"strip": ("", "x")},
        {"strip": ("head ", "norm ")},
        {"changes": ({},), "chosen": {"clock": 3}},
    ],
)
def test_damage_inside_a_record_costs_no_more_than_its_figure(change: dict[str, Any], tmp_path: Path) -> None:
    write_record(finished("all", 42), tmp_path / "all")
    write_record(finished("bot50", 42).model_copy(update=change), tmp_path / "bot50")
    path = write_report(tmp_path)
    assert {"g0-time", "g0-quality", "g0-loss", "g0-predicted"} <= figures(path).keys()


def test_names_only_show_themselves(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }} \x1b[2J\u202e"
    record = finished("all", 42)
    data = record.data.model_copy(update={"task": evil, "metric": evil})
    metrics = record.metrics.model_copy(update={"after": {evil: 0.5}}) if record.metrics else None
    config = {**record.config, "strategy": evil}
    changes = {"data": data, "metrics": metrics, "config": config, "notices": (evil,), "command": evil}
    write_record(record.model_copy(update={**changes, "versions": {evil: evil}}), tmp_path / "a")
    write_record(record.model_copy(update={"status": "failed", "error": evil, "data": data}), tmp_path / "b")
    page = write_report(tmp_path).read_text()
    assert "<img" not in page and page.count("</script>") == 1 and "{{ 7*7 }}" in page
    assert "\x1b" not in page and "\u202e" not in page


def test_a_single_run(tmp_path: Path) -> None:
    write_record(finished("bot50", 42), tmp_path)
    path = write_report(tmp_path)
    assert {"g0-blocks", "g0-loss"} <= figures(path).keys() and "g0-time" not in figures(path)
    assert "bot50: accuracy 0.8" in path.read_text() and "Nothing to compare" in path.read_text()


def test_failures_without_a_record(tmp_path: Path) -> None:
    lost = Failure("base16", "rte", "lora", 7, "killed by signal 9", folder=str(tmp_path / "lora"))
    page = write_report(tmp_path, failures=[lost]).read_text()
    assert "No run has a result yet" in page and "killed by signal 9" in page
    write_record(run("lora", 7, status="failed", error="the loss is nan").record, tmp_path / "lora")
    page = write_report(tmp_path, failures=[lost]).read_text()
    assert "the loss is nan" in page and "killed by signal 9" not in page, "once, as its record has it"


def test_no_run_has_a_result_yet(tmp_path: Path) -> None:
    write_record(run(status="failed", error="no").record, tmp_path / "a")
    assert "No run has a result yet" in write_report(tmp_path).read_text()
    with pytest.raises(UserError, match="no run below"):
        write_report(tmp_path.parent / "nothing" if (tmp_path.parent / "nothing").mkdir() is None else tmp_path)


def test_written_again_it_is_the_same(study: Path) -> None:
    before = (study / "report.html").read_bytes()
    assert write_report(study).read_bytes() == before


def test_a_study_says_how_many_runs_it_will_have(tmp_path: Path) -> None:
    write_study(tmp_path, strategies=2, tasks=("rte",), seeds=(1,))
    (tmp_path / "study.yaml").write_text("models: [a]\ntasks: [rte]\nstrategies: [all, bot50]\nseeds: [1, 2]\n")
    page = write_report(tmp_path).read_text()
    assert "2 finished of 4" in page and f"frostline study {tmp_path}/study.yaml --out {tmp_path}" in page
