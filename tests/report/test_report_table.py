from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from frostline.core.errors import UserError
from frostline.records import write_record
from frostline.report import Mean, collect, csv_text, document, markdown, study_baseline, tabulate, view
from made_records import run


def test_mean_and_sample_deviation_over_seeds() -> None:
    accuracies = [0.5, 0.6, 0.8]
    table = tabulate([run("bot50", seed, accuracy=value) for seed, value in enumerate(accuracies)])
    mean = table.groups[0].rows[0].metrics["accuracy"]
    by_hand = sum(accuracies) / 3
    assert mean.n == 3
    assert mean.mean == pytest.approx(by_hand)
    assert mean.std == pytest.approx(math.sqrt(sum((a - by_hand) ** 2 for a in accuracies) / 2))


def test_one_seed_has_no_deviation() -> None:
    assert tabulate([run()]).groups[0].rows[0].metrics["accuracy"] == Mean(0.5, None, 1)


def test_ratios_are_means_over_paired_seeds() -> None:
    runs = [
        run("bot50", 1, seconds=5, memory=500, step=0.02),
        run("bot50", 2, seconds=30, memory=900, step=0.3),
        run("bot50", 3, seconds=1e6, memory=10**9),  # the baseline has no seed 3
        run("all", 1, seconds=10, memory=1000, step=0.1),
        run("all", 2, seconds=40, memory=1000, step=0.1),
    ]
    group = tabulate(runs).groups[0]
    assert [row.strategy for row in group.rows] == ["all", "bot50"]
    all_row, bot50 = group.rows
    assert bot50.time_ratio is not None and bot50.memory_ratio is not None and bot50.step_ratio is not None
    assert (bot50.time_ratio.mean, bot50.time_ratio.n) == (pytest.approx((0.5 + 0.75) / 2), 2)
    assert bot50.memory_ratio.mean == pytest.approx(0.7)
    assert bot50.step_ratio.mean == pytest.approx((0.2 + 3) / 2)
    assert all_row.time_ratio is not None and all_row.time_ratio.mean == 1.0
    assert bot50.trainable_share == 0.25
    assert (bot50.predicted_flops_ratio, bot50.predicted_memory_ratio) == (pytest.approx(0.6), None)


def test_without_a_baseline_or_a_measurement_ratios_are_missing() -> None:
    group = tabulate([run("bot50"), run("lora")]).groups[0]
    assert group.baseline is None
    assert all(row.time_ratio is None for row in group.rows)
    group = tabulate([run("all", step=None), run("lora", step=0.2)]).groups[0]
    assert group.rows[1].step_ratio is None and group.rows[0].seconds_per_step is None
    assert group.rows[1].time_ratio is not None
    assert "–" in markdown(tabulate([run("all", step=None)]))


def test_another_baseline() -> None:
    group = tabulate([run("all", seconds=10), run("lora", seconds=8)], baseline="lora").groups[0]
    assert group.rows[0].strategy == "lora"
    assert group.rows[1].time_ratio == Mean(1.25, None, 1)
    assert tabulate([run("all")], baseline=None).groups[0].baseline is None


def test_a_group_for_each_model_and_task() -> None:
    runs = [run(task="rte"), run(task="cb"), run(model="models/other"), run("lora", task="cb", seconds=20)]
    groups = tabulate(runs).groups
    assert [(group.model, group.task) for group in groups] == [("base16", "rte"), ("base16", "cb"), ("other", "rte")]
    assert groups[1].rows[1].time_ratio == Mean(2.0, None, 1)


def test_models_of_one_name_keep_their_path() -> None:
    groups = tabulate([run(model="a/base"), run(model="b/base")]).groups
    assert [group.model for group in groups] == ["a/base", "b/base"]


def test_runs_set_up_differently_are_not_averaged() -> None:
    runs = [
        run("lora", 1, config={"learning_rate": 1e-4, "data": {"max_train_rows": 10}, "logging_steps": 1}),
        run("lora", 2, config={"learning_rate": 1e-4, "data": {"max_train_rows": 10}, "logging_steps": 5}),
        run("lora", 1, config={"learning_rate": 1e-3, "data": {"max_train_rows": 20}}),
        run("all", 1),
    ]
    rows = tabulate(runs).groups[0].rows
    assert [(row.strategy, len(row.seeds)) for row in rows] == [
        ("all", 1),
        ("lora (data.max_train_rows=10, learning_rate=0.0001)", 2),
        ("lora (data.max_train_rows=20, learning_rate=0.001)", 1),
    ]


def test_runs_without_a_result_are_named_and_not_counted() -> None:
    runs = [run("all"), run("lora", status="failed", error="the loss is nan"), run("lora", 7, status="running")]
    table = tabulate(runs)
    assert [row.strategy for row in table.groups[0].rows] == ["all"]
    assert [(f.strategy, f.seed, f.error) for f in table.failures] == [
        ("lora", 42, "the loss is nan"),
        ("lora", 7, "interrupted"),
    ]
    assert "the loss is nan" in markdown(table)


def shown(table: Any, *metrics: str, width: int = 200) -> str:
    console = Console(width=width, force_terminal=False, highlight=False)
    with console.capture() as capture:
        for part in view(table, metrics):
            console.print(part)
    return capture.get()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_a_narrow_terminal_shows_whole_columns_and_names_the_others(width: int) -> None:
    runs = [run("all", seed, accuracy=0.7 + seed / 100, seconds=3_700) for seed in (1, 2)]
    runs += [run("hierarchical-residual", 1, selection=61.5, memory=10**10)]
    text = shown(tabulate(runs), width=width)
    lines = text.splitlines()
    header = next(line for line in lines if line.startswith("strategy")).split()
    left = " ".join(lines).split("columns for ")[1].split(": use")[0].split(", ") if "No room in" in text else []
    columns = ["CPU×", "FLOPs", "memory", "mem×", "pred.", "share", "time", "time×", "trained"]
    assert sorted([*header, *(name.strip() for name in left)]) == sorted(
        ["strategy", "runs", "accuracy", "select", *columns]
    )
    assert (width >= 120) == (not left) and all(len(line) <= width for line in lines)


def test_text_and_markdown_show_the_same_figures() -> None:
    runs = [run("all", seed, accuracy=0.7 + seed / 100, seconds=10) for seed in (1, 2)]
    runs += [run("bot50", seed, accuracy=0.6, seconds=5, memory=600) for seed in (1, 2)]
    table = tabulate(runs)
    text, mark = shown(table, "loss"), markdown(table, ["loss"])
    for figure in ("0.715 ± 0.007", "0.600 ± 0.000", "0.50", "0.60", "25.0%", "majority class 0.520", "loss"):
        assert figure in text, figure
        assert figure in mark, figure
    lines = [line for line in mark.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 4
    assert "loss" not in markdown(table)


def test_document_is_plain_json() -> None:
    table = tabulate([run("all", 1), run("bot50", 1, seconds=5)])
    group = json.loads(json.dumps(document(table)))["groups"][0]
    assert group["rows"][1]["time_ratio"] == {"mean": 0.5, "std": None, "n": 1}
    assert group["rows"][1]["folders"] == ["runs/bot50/seed1"]


def test_collect_labels_by_a_studys_folders(tmp_path: Path) -> None:
    plain, labelled = run("lora", 1), run("lora", 2)
    write_record(plain.record, tmp_path / "somewhere")
    write_record(labelled.record, tmp_path / "base16" / "rte" / "lora-slow" / "seed2")
    assert [(r.label, r.record.seed) for r in collect(tmp_path).runs] == [("lora", 1), ("lora-slow", 2)]
    assert study_baseline(tmp_path) == "all"
    (tmp_path / "study.yaml").write_text("models: [a]\nbaseline: null\n")
    assert study_baseline(tmp_path) is None


def test_studies_in_one_folder_have_tables_of_their_own(tmp_path: Path) -> None:
    """Two studies of one model and task, with other settings: means and ratios do not mix them."""
    for name, base, scores in (("short", "all", (0.5, 0.6)), ("long", "lora", (0.8, 0.9))):
        for strategy, accuracy in zip(("all", "lora"), scores, strict=True):
            record = run(strategy, 1, accuracy=accuracy).record
            write_record(record, tmp_path / name / "base16" / "rte" / strategy / "seed1")
        (tmp_path / name / "study.yaml").write_text(f"baseline: {base}\n")
    write_record(run("bot50", 1, accuracy=0.7).record, tmp_path / "alone")
    table = tabulate(collect(tmp_path).runs, study_baseline(tmp_path))
    assert {group.name for group in table.groups} == {"short: base16 on rte", "long: base16 on rte", "base16 on rte"}
    short = next(group for group in table.groups if group.study == "short")
    assert [row.metrics["accuracy"].mean for row in short.rows] == [0.5, 0.6]
    assert "**short: base16 on rte: accuracy" in markdown(table)
    assert "short" in csv_text(table) and document(table)["groups"][0]["study"] in ("", "short", "long")
    own = tabulate(collect(tmp_path).runs, "none")
    assert {group.study: group.baseline for group in own.groups} == {"short": "all", "long": "lora", "": None}
    (only,) = tabulate(collect(tmp_path / "long").runs, "all").groups
    assert (only.study, only.name) == ("", "base16 on rte"), "one study needs no name"


def test_every_run_below_a_folder_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    for seed, name in enumerate(["b/run", "a/2", "a/10/deep/er", "c"]):
        write_record(run(seed=seed).record, tmp_path / name)
    (tmp_path / "a" / "notes.json").write_text("{}")
    found = collect(tmp_path)
    assert [(str(one.folder.relative_to(tmp_path)), one.record.seed) for one in found.runs] == [
        ("b/run", 0),
        ("a/2", 1),
        ("a/10/deep/er", 2),
        ("c", 3),
    ]
    (only,) = collect(tmp_path / "a" / "2").runs
    assert (only.folder, only.record) == (tmp_path / "a" / "2", run(seed=1).record)


def test_records_that_cannot_be_read_are_told_beside_the_others(tmp_path: Path) -> None:
    write_record(run().record, tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("[1]")
    found = collect(tmp_path)
    assert [one.folder.name for one in found.runs] == ["good"]
    (bad,) = found.unreadable
    assert bad.folder == tmp_path / "bad" and "not a run record of version 1" in bad.error
    table = tabulate(found.runs, unreadable=found.unreadable)
    assert [(failure.state, failure.folder) for failure in table.failures] == [("unreadable", str(tmp_path / "bad"))]
    assert f"no result: {bad.error}" in shown(table)
    (tmp_path / "good" / "run.json").unlink()
    with pytest.raises(UserError, match="not a run record of version 1"):
        collect(tmp_path)


def test_collect_refuses_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run below"):
        collect(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        collect(tmp_path / "absent")


def test_report_imports_no_torch() -> None:
    code = "import sys, frostline.report; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ranks_average_ties_and_groups() -> None:
    figures = {"all": (0.9, 0.5), "bot50": (0.8, 0.7), "lora": (0.8, 0.6)}
    runs = [
        run(name, accuracy=accuracy, task=task)
        for name, both in figures.items()
        for task, accuracy in zip(("rte", "qnli"), both, strict=True)
    ]
    table = tabulate([*runs, run("head", accuracy=0.1, task="rte")])
    places = [{row.strategy: row.rank for row in group.rows} for group in table.groups]
    assert places == [{"all": 1, "bot50": 2.5, "lora": 2.5, "head": 4}, {"all": 3, "bot50": 1, "lora": 2}]
    assert [(rank.strategy, rank.rank) for rank in table.ranks] == [("bot50", 1.75), ("all", 2), ("lora", 2.25)]
    assert "Mean rank over 2 pairs of model and task (1 is best): bot50 1.75, all 2, lora 2.25" in markdown(table)


def test_selection_time_is_shown_where_a_strategy_took_some() -> None:
    plain = markdown(tabulate([run("all"), run("bot50")]))
    assert "select" not in plain
    chosen = markdown(tabulate([run("all"), run("semantic", selection=2.5)]))
    assert "| select |" in chosen and "| 2.5 s |" in chosen


def test_where_no_texts_were_generated_the_loss_is_the_metric() -> None:
    made = [run(name, accuracy=accuracy) for name, accuracy in (("all", 0.2), ("bot50", 0.1))]
    data = made[0].record.data.model_copy(update={"kind": "generation", "metric": "bleu"})
    runs = [replace(one, record=one.record.model_copy(update={"data": data})) for one in made]
    group = tabulate(runs).groups[0]
    assert (group.metric, [row.rank for row in group.rows]) == ("loss", [1.5, 1.5])


def test_the_time_of_a_run_with_trials_counts_them_all() -> None:
    made = run("auto", seconds=3.0)
    assert made.record.measured is not None
    spent = {"reading": 1.0, "trials": 20.0, "caching": 2.0, "training": 5.0, "evaluation": 9.0}
    measured = made.record.measured.model_copy(update={"seconds": spent, "resumed_at_step": 10})
    row = tabulate([replace(made, record=made.record.model_copy(update={"measured": measured}))]).groups[0].rows[0]
    assert row.train_seconds == Mean(3.0, None, 1), "it went on from its own trial"
    assert row.run_seconds == Mean(27.0, None, 1)
    row = tabulate([run("semantic", seconds=3.0, selection=0.5)]).groups[0].rows[0]
    assert row.run_seconds == Mean(3.5, None, 1)


def test_ranking_scores() -> None:
    runs = [run(name, accuracy=acc) for name, acc in (("all", 0.5), ("bot50", 0.7), ("lora", 0.5), ("head", 0.1))]
    assert [(rank.strategy, rank.score) for rank in tabulate(runs).ranks] == [
        ("bot50", 3),
        ("all", 1.5),
        ("lora", 1.5),
        ("head", 0),
    ]


def test_csv_has_every_figure_and_no_formula() -> None:
    runs = [run("all", seed, accuracy=0.5 + seed / 10) for seed in (1, 2)] + [run("=cmd|x", 1), run("-lora", 2)]
    table = tabulate([*runs, run("head", status="failed", error="@no, it\nfailed")])
    lines = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert [line["strategy"] for line in lines] == ["all", "'=cmd|x", "'-lora", "head"]
    assert (float(lines[0]["accuracy"]), lines[0]["accuracy_n"]) == (pytest.approx(0.65), "2")
    assert float(lines[0]["accuracy_std"]) == pytest.approx(0.1 / math.sqrt(2))
    assert (lines[3]["state"], lines[3]["error"], lines[3]["accuracy"]) == ("failed", "'@no, it failed", "")
    assert lines[0]["seeds"] == "1 2" and lines[0]["time_ratio"] == "1.0"
