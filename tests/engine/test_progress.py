"""The bar that shows what the start of a training waits for."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import transformers
from rich.console import Console

import frostline as fl
from cache_cases import arguments, collate, rows_for
from frostline.engine import start_bar
from heads import model_of


def test_the_bar_names_each_stage_and_counts_rows() -> None:
    shown = io.StringIO()
    with start_bar(Console(file=shown, force_terminal=True, width=80)) as bar:
        bar.stage("reading the rows")
        bar.stage("caching pass")
        bar.rows(3, 12)
        bar._progress.refresh()
    assert "caching pass" in shown.getvalue() and "3/12 rows" in shown.getvalue()


def test_without_a_console_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with start_bar(None) as bar:
        bar.stage("reading the rows")
        bar.rows(1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("attached", [False, True])
def test_a_trainer_shows_it_unless_its_bars_are_off(
    tmp_path: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch, attached: bool
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(
        "frostline.engine._shortcuts.PlainConsole", lambda **_: Console(file=shown, force_terminal=True, width=80)
    )
    for off in (True, False):
        monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / f"cache {off}"))
        model = model_of("llama", "causal")
        args = arguments(tmp_path / str(off), disable_tqdm=off)
        if attached:
            plain = transformers.Trainer(model, args, train_dataset=rows_for(model), data_collator=collate)
            fl.attach(plain, "bot50").train()
        else:
            given = {"train_dataset": rows_for(model), "data_collator": collate, "activation_cache": "on"}
            fl.Trainer(model, args, plan="bot50", **given).train()
        assert ("caching pass" in shown.getvalue()) == (not off)
        assert ("checks after the caching pass" in shown.getvalue()) == (not off and not attached)
