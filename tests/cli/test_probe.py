"""`frostline probe`: its table, its document, its figure, its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from frostline.cli.main import main
from frostline.cli.probe import _text
from frostline.signals import Measurement, Probe
from tiny_files import write_model, write_task


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    write_model(folder / "model")
    write_task(folder / "days", rows=40)
    prompts = [{"prompt": f"the day w{i}", "completion": f"is warm w{i % 7}"} for i in range(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    return folder


@pytest.fixture
def probe(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COLUMNS", "200")

    def run(task: str, *arguments: str | Path, status: int = 0) -> Any:
        """What was printed; of a `--json` answer the document, of an error the one line."""
        given = ("probe", place / "model", "--task", place / task, *arguments)
        assert main([str(argument) for argument in given]) == status
        printed = capsys.readouterr()
        if status:
            assert not printed.out and printed.err.count("\n") == 1
            return printed.err
        return json.loads(printed.out) if "--json" in arguments else printed.out

    return run


def test_generation(probe: Any) -> None:
    document = probe("prompts.jsonl", "--rows", "12", "--json")
    assert document["rows"] == 12 and document["deviation"] == "vds"
    assert document["read"] == "the token that predicts the first labelled one"
    names = ["vds", "vds_gain", "vds_log_gain", "shift", "shift_gain", "shift_log_gain", "similarity"]
    assert list(document["signals"]) == names
    gains = [gain["value"] for gain in document["signals"]["vds_gain"]]
    assert document["cut"] == min(gains.index(max(gains)) + 1, 3)
    assert Probe.read_document(document).cut() == document["cut"]


def test_classification_for_people(probe: Any, tmp_path: Path) -> None:
    shown = probe("days", "--figure", tmp_path / "signals.png")
    heading, *_, cut, drawn = shown.splitlines()
    assert "40 rows, read at the last input token" in heading
    assert cut.startswith("semantic cut: the largest gain of shift is at block")
    assert drawn.startswith("figure written to ")
    rows = [line for line in shown.splitlines() if line[:1].isdigit()]
    symbols = [line.split()[1][0] for line in rows]
    assert symbols == sorted(symbols, key="░█".index) and set(symbols) == {"░", "█"} and len(rows) == 4
    assert (tmp_path / "signals.png").read_bytes().startswith(b"\x89PNG")


def test_what_takes_no_deviation(probe: Any) -> None:
    document = probe("days", "--signals", "gradient_norm, snr", "--rows", "8", "--json")
    assert document["cut"] is None and document["deviation"] is None
    assert {"gradient_norm", "snr", "snr.mlp.down_proj"} <= set(document["signals"])
    assert all(one["value"] > 0 for one in document["signals"]["gradient_norm"])
    assert "cut" not in probe("days", "--signals", "gradient_norm, snr", "--rows", "8")


def test_gradients_of_each_row_and_what_a_low_rank_can_follow(probe: Any) -> None:
    names = ["final_similarity", "projected_residual", "fisher"]
    for task in ("days", "prompts.jsonl"):
        document = probe(task, "--signals", ",".join(names), "--rows", "8", "--json")
        assert set(document["signals"]) == set(names) and document["cut"] is None
        assert all(one["value"] > 0 and one["error"] > 0 for one in document["signals"]["fisher"])
        assert all(one["value"] > 0 and one["error"] is None for one in document["signals"]["projected_residual"])
        assert document["signals"]["final_similarity"][-1]["value"] == pytest.approx(1, abs=1e-5)


def test_the_same_block_by_block(probe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("prompts.jsonl", "--signals", "vds,shift,similarity,final_similarity,snr", "--json")
    whole = probe(*arguments)
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path))
    streamed = probe(*arguments, "--streaming")
    assert len(list((tmp_path / "signals").iterdir())) == 1
    for name, values in whole["signals"].items():
        for one, other in zip(values, streamed["signals"][name], strict=True):
            assert other["value"] == (one["value"] and pytest.approx(one["value"], rel=1e-5, abs=1e-6))


def test_another_seed_draws_other_rows(probe: Any) -> None:
    first, same, other = (probe("days", "--rows", "6", "--seed", seed, "--json") for seed in ("1", "1", "2"))
    assert first == same and first["signals"] != other["signals"]


@pytest.mark.parametrize(
    ("task", "arguments", "line"),
    [
        ("days", ["--signals", "vds"], "vds: LlamaForSequenceClassification has no language-model head: use shift"),
        ("days", ["--signals", "similarty"], "unknown signal 'similarty': did you mean 'similarity'?"),
        ("days", ["--figure", "signals.gif"], "signals.gif: unknown figure format: use a file name that ends in png"),
        ("days", ["--streaming", "--signals", "gradient_norm"], "gradient_norm: gradients need the whole model"),
        ("days", ["--streaming", "--signals", "shift,fisher"], "fisher: gradients need the whole model in memory"),
        ("days", ["--streaming", "--signals", "projected_residual"], "projected_residual: gradients need the whole"),
        ("days", ["--max-length", "1000"], "max_length: 1000 is more than the 256 positions"),
        ("days", ["--signals", ","], "--signals names no signal: leave it out, or use some of vds, shift"),
        ("weeks", [], "unknown task"),
    ],
)
def test_errors_in_one_line(probe: Any, task: str, arguments: list[str], line: str) -> None:
    assert line in probe(task, *arguments, status=2)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.1234, 0.02, "0.12 ± 0.02"),
        (12345.6, 3.0, "12346 ± 3"),
        (0.000123, 0.00002, "0.00012 ± 0.00002"),
        (1.37e-7, 2.1e-8, "1.4e-07 ± 2e-08"),
        (0.91, 2.1e-8, "0.91000000 ± 0.00000002"),
        (0.0, 2.1e-3, "0.000 ± 0.002"),
        (1.37e-7, None, "1.37e-07"),
    ],
)
def test_a_value_and_its_error(value: float, error: float | None, text: str) -> None:
    assert _text(Measurement(value, error)) == text
