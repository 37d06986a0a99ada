"""benchmarks/signals_judged: rank correlations, verdicts, trainings of one block; the page that says what was found."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from architectures import tiny
from frostline.anatomy import find_anatomy
from frostline.surgery import apply

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "signals"


@pytest.fixture(scope="module")
def judged() -> Iterator[ModuleType]:
    """The package, with its modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        package = importlib.import_module("signals_judged")
        for name in ("pairs", "trials", "judging", "tables"):
            importlib.import_module(f"signals_judged.{name}")
        yield package
        for name in [name for name in sys.modules if name.partition(".")[0] == "signals_judged"]:
            del sys.modules[name]


def write(folder: Path, pair: str, seed: int, worth: list[float], signals: dict[str, list[float | None]]) -> None:
    place = folder / pair
    place.mkdir(parents=True, exist_ok=True)
    (place / f"signals-seed{seed}.json").write_text(json.dumps({"signals": signals}))
    for block, gain in enumerate(worth):
        found = {"blocks": [block], "before": 2.0, "after": 2.0 - gain, "steps": 10}
        (place / f"block{block}-seed{seed}.json").write_text(json.dumps(found))


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0, 5.0], [1.0, 1.0, 2.0, 2.0, 0.0], [2.0, 2.0, 2.0, 1.0]])
def test_rank_correlation(judged: ModuleType, values: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    other = [0.3, -0.1, 0.2, 0.2, 0.9][: len(values)]
    assert judged.judging.spearman(values, other) == pytest.approx(stats.spearmanr(values, other).statistic)
    assert judged.judging.ranks(values) == stats.rankdata(values).tolist()


def test_rank_correlation_without_ties_is_the_formula_of_differences(judged: ModuleType) -> None:
    one, other = [0.1, 0.5, 0.2, 0.9], [4.0, 1.0, 3.0, 2.0]
    squares = sum((a - b) ** 2 for a, b in zip([1, 3, 2, 4], [4, 1, 3, 2], strict=True))
    assert judged.judging.spearman(one, other) == pytest.approx(1 - 6 * squares / (4 * (16 - 1)))
    assert judged.judging.spearman([None, *one], [9.0, *other]) == judged.judging.spearman(
        one, other
    )  # a block without a number
    assert judged.judging.spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None


def test_verdicts(judged: ModuleType, tmp_path: Path) -> None:
    worth = [0.1, 0.4, 0.2, 0.8, 0.3]
    order = sorted(worth)
    for number, pair in enumerate(judged.pairs.PAIRS):
        for seed in judged.pairs.SEEDS:
            signals: dict[str, list[float | None]] = {
                "right": [2 * one for one in worth],
                "reversed": [-one for one in worth],
                "by model": [one if pair.model.endswith("base16") else -one for one in worth],
                "by task": [[one, -one][number % 2] for one in worth],
                "nothing": [order[(order.index(one) * 2 + 2 * seed) % 5] for one in worth],
                "no first": [None, *worth[1:]],
                "vds_log_gain": [*worth],
            }
            write(tmp_path, pair.name, seed, worth, signals)
    found = judged.judging.judged(judged.judging.cells_of(tmp_path))
    assert found["right"].verdict == found["no first"].verdict == "helps" and found["right"].interval == (1, 1)
    assert found["reversed"].verdict == "helps, reversed"
    assert found["by model"].verdict == found["by task"].verdict == "cannot be told"
    assert found["nothing"].verdict == "does not"
    assert "vds_log_gain" not in found and "depth" in found
    table = judged.tables.table(tmp_path)
    assert "| `right` | 1.00, 1.00 |" in table
    assert table.splitlines()[-2].startswith("| the worth with the other seed | 1.00 | 1.00 |")


def test_the_interval_is_over_pairs(judged: ModuleType) -> None:
    found = judged.judging.judge({"m/a": (0.5, 0.7), "m/b": (0.8,), "n/c": (0.7, 0.7)})
    means = torch.tensor([0.6, 0.8, 0.7], dtype=torch.float64)
    assert found.mean == pytest.approx(0.7) and found.spread == pytest.approx(0.10954451)
    half = 4.302653 * float(means.std()) / 3**0.5
    assert found.interval == pytest.approx((0.7 - half, 0.7 + half))
    assert judged.judging.judge({"m/a": (1.0, 1.0)}).verdict == "cannot be told", "one pair"
    assert judged.judging.judge({"m/a": (1.0,), "m/b": (1.0,)}).verdict == "cannot be told", "one model"
    assert judged.judging.judge({"m/a": (1.0,), "n/b": (1.0,)}).verdict == "helps"


def test_a_pair_that_learns_nothing_does_not_count(judged: ModuleType) -> None:
    """An order of differences of 0.002 is noise."""
    cell, signals = judged.judging.Cell, {"gradient_norm": (1.0, 2.0, 3.0)}
    cells = {"m/a": {0: cell((0.1, 0.2, 0.3), signals)}, "m/b": {0: cell((0.002, 0.001, 0.0), signals)}}
    assert judged.judging.judged(cells)["gradient_norm"].pairs == {"m/a": (1.0,)}


def test_what_is_missing_is_left_out(judged: ModuleType, tmp_path: Path) -> None:
    first, second, *_ = judged.pairs.PAIRS
    write(tmp_path, first.name, 0, [0.1, 0.2, 0.3], {"right": [1.0, 2.0, 3.0]})
    write(tmp_path, second.name, 0, [0.1, 0.2, 0.3], {"right": [1.0, 2.0, 3.0]})
    (tmp_path / second.name / "block1-seed0.json").unlink()
    assert {pair: list(seeds) for pair, seeds in judged.judging.cells_of(tmp_path).items()} == {first.name: [0]}
    assert "| `right` | 1.00 | 1.00 | – | – | cannot be told |" in judged.tables.table(tmp_path)


def test_what_is_there_is_not_measured_again(judged: ModuleType, tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"after": 1.5}

    path = tmp_path / "pair" / "block0-seed0.json"
    assert judged.trials.keep(path, make) == judged.trials.keep(path, make) == {"after": 1.5} and len(made) == 1


@pytest.mark.parametrize(("name", "tied"), [("bert", None), ("llama", True), ("llama", False)])
def test_only_the_block_and_the_head_train(judged: ModuleType, name: str, tied: bool | None) -> None:
    model = tiny(name, tied=tied)
    anatomy = find_anatomy(model)
    apply(judged.trials.plan_of(model, [2]), model)
    trained = {tensor for tensor, parameter in model.named_parameters() if parameter.requires_grad}
    block = {tensor.name for tensor in anatomy.blocks[2].tensors}
    around = {tensor.name for tensor in (*anatomy.final_norm, *anatomy.head)}
    assert block <= trained and trained - block <= around | {"lm_head.weight"}
    assert trained & {"classifier.weight", "lm_head.weight"}


def test_the_held_out_loss_is_the_mean_of_the_rows_own(
    judged: ModuleType, models_dir: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROSTLINE_MODELS", str(models_dir))
    monkeypatch.setenv("FROSTLINE_DATA", str(data_dir))
    pair = judged.pairs.Pair("frostline/base16", "webnlg", 4, 64, 1, 5, (1e-3, 2e-3, 4e-3))
    trial = judged.trials.Trial(pair, 0)
    model = trial.model("float32").eval()
    with torch.no_grad():
        losses = [float(model(**trial._batch([row])).loss) for row in trial.held_out]
    assert trial.before == pytest.approx(sum(losses) / len(losses), abs=2e-2)  # bf16 there, float32 here
    one, other = (trial.train([3], 1e-3, 2) for _ in range(2))
    assert one["after"] == other["after"] < one["before"] and one["blocks"] == [3]


def test_the_cut_that_a_signal_chooses(judged: ModuleType, tmp_path: Path) -> None:
    pair = judged.pairs.PAIRS[0].name
    write(
        tmp_path, pair, 0, [0.1] * 4, {"low": [9.0, 1.0, 1.0, 1.0], "high": [1.0, 1.0, 1.0, 9.0], "signed": [-1.0] * 4}
    )
    for cut, steps, gain in ((0, 10, 0.3), (2, 20, 0.5), (3, 40, 0.4)):
        found = {"blocks": list(range(cut, 4)), "before": 2.0, "after": 2.0 - gain, "steps": steps}
        (tmp_path / pair / f"cut{cut}-seed0.json").write_text(json.dumps(found))
    *_, line = judged.tables.cuts(tmp_path).splitlines()
    gains = "0: 0.300 (10 steps), 2: 0.500 (20 steps), 3: 0.400 (40 steps)"
    assert line == f"| {pair} | {gains} | 2 | 0: `worth`, `low`; 3: `high` |"


def test_the_page_gets_its_tables_from_the_findings(judged: ModuleType, tmp_path: Path) -> None:
    first, *_ = judged.pairs.PAIRS
    write(tmp_path, first.name, 0, [0.1, 0.2, 0.3], {"right": [1.0, 2.0, 3.0]})
    text = "A\n<!-- table -->\nbefore\n<!-- end of table -->\nB\n<!-- cuts -->\n<!-- end of cuts -->\nC\n"
    page = judged.tables.page(tmp_path, text)
    assert "| `right` | 1.00 |" in page and "before" not in page and "No cut was trained yet." in page
    assert judged.tables.page(tmp_path, page) == page and page.startswith("A\n") and page.endswith("C\n")
    with pytest.raises(SystemExit, match="the page has no place for the cuts"):
        judged.tables.page(tmp_path, text.partition("B")[0])


def test_the_page_says_what_the_findings_say(judged: ModuleType) -> None:
    for file in RESULTS.rglob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert "/" not in text and isinstance(json.loads(text), dict), f"{file.name} names a place"
    page = judged.tables.PAGE.read_text(encoding="utf-8")
    assert judged.tables.page(RESULTS, page) == page, (
        "run: PYTHONPATH=benchmarks python -m signals_judged page docs/results/signals"
    )
    cells = judged.judging.cells_of(RESULTS)
    for cell in (cell for seeds in cells.values() for cell in seeds.values()):
        assert {len(values) for values in cell.signals.values()} == {len(cell.worth)}
    verdicts = {one.verdict for one in judged.judging.judged(cells).values()}
    assert verdicts <= {"helps", "helps, reversed", "does not", "cannot be told"}
