"""On which rows a trainer tries its shortcuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

import frostline as fl
from allocator import live_bytes_at_peak
from frostline.engine import _shortcuts
from frostline.tasks import pad_rows

WIDTH = 30_000
LENGTHS = (120, 100, 110, 12, 80, 7, 60, 9)


def trainer(tmp_path: Path, **given: Any) -> fl.Trainer:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WIDTH, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    ids = [torch.randint(0, WIDTH, (length,)).tolist() for length in LENGTHS]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        remove_unused_columns=False,
    )
    return fl.Trainer(
        LlamaForCausalLM(config),
        arguments,
        plan="bot50",
        train_dataset=[{"input_ids": row, "labels": [-100] * (len(row) - 4) + row[-4:]} for row in ids],
        data_collator=lambda rows: pad_rows(rows, 0),
        **given,
    )


@pytest.mark.parametrize(
    ("limit", "lengths"),
    [(10**12, [120, 100, 110]), (12 * WIDTH * 3 * 12, [7, 9, 12]), (12 * WIDTH * 3 * 11, [7, 9]), (0, [7, 9])],
)
def test_short_rows_where_logits_would_be_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, lengths: list[int]
) -> None:
    monkeypatch.setattr(_shortcuts, "LOGIT_BYTES", limit)
    few = _shortcuts.few_rows(trainer(tmp_path))
    assert [len(row["input_ids"]) for row in few.rows] == lengths
    assert few.batch["input_ids"].shape == (len(lengths), max(lengths))


def test_checks_take_no_more_than_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows of 120 tokens would take 130 MB of logits; a step has 8 loss positions."""
    peaks = []
    for limit in (10**12, 0):
        monkeypatch.setattr(_shortcuts, "LOGIT_BYTES", limit)
        begun = trainer(tmp_path, activation_cache="off")
        peaks.append(live_bytes_at_peak(begun.train))
        assert not begun.notices
    assert peaks[0] > 2 * 4 * WIDTH * 3 * 120
    assert peaks[1] < peaks[0] - 2 * 4 * WIDTH * 3 * 100


def test_rows_without_a_label_for_each_position_are_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shortcuts, "LOGIT_BYTES", 0)
    rows = [{"input_ids": [1] * length, "labels": 1} for length in LENGTHS]
    few = _shortcuts._not_too_large(rows, trainer(tmp_path).model)
    assert few == rows[:3]
