"""A run on a task with answers to extract keeps what a score is read from, case by case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frostline.core.errors import UserError
from frostline.run import evaluate_target, read_config, train
from frostline.tasks import Decoding


@pytest.fixture
def mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_dir: Path) -> Path:
    monkeypatch.setenv("FROSTLINE_MODELS", str(models_dir))
    monkeypatch.setenv("FROSTLINE_DATA", str(tmp_path))
    place = tmp_path / "math/split80_20"
    place.mkdir(parents=True)
    for name, offset in (("train", 0), ("test", 50)):
        rows = [
            {"instruction": f"Tom has {i} eggs.", "output": f"The answer is {i}.", "answer": str(i), "set": "SVAMP"}
            for i in range(offset, offset + 20)
        ]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_run_keeps_its_rows_and_every_case(mix: Path) -> None:
    settings = [
        "max_steps=1",
        "per_device_train_batch_size=2",
        "max_length=96",
        "threads=1",
        "max_new_tokens=4",
        "bf16=false",
    ]
    settings += ["data.max_train_rows=10", "data.generate_rows=3", "generation.num_beams=2"]
    config = read_config(None, settings, model="stories260K", task="svamp", strategy="top25", out=str(mix / "run"))
    record = train(config)
    assert record.metrics is not None and {"accuracy", "extracted", "loss"} <= set(record.metrics.after)
    assert record.config["generation"]["num_beams"] == 2
    assert "10 of 18 training rows drawn by seed 42" in record.notices
    rows = json.loads((config.folder / "rows.json").read_text())
    assert {name: len(ids) for name, ids in rows.items()} == {"train": 10, "eval": 2, "questions": 20}
    cases = [json.loads(line) for line in (config.folder / "predictions.jsonl").read_text().splitlines()]
    assert len(cases) == 3
    assert all(case["prompt"].endswith("### Response:\n") and "right" in case["marks"] for case in cases)
    again = evaluate_target(str(config.folder))
    assert [case.text for case in again.predictions] == [case["text"] for case in cases]
    # A number of new tokens that is asked for counts, whatever the preset's.
    short = evaluate_target(str(config.folder), max_new_tokens=1, decoding=Decoding(preset="llm-adapters"))
    assert all(len(case.text) < 12 for case in short.predictions)


def test_a_misspelt_decoding_option_is_told() -> None:
    with pytest.raises(UserError, match="generation: unknown key 'num_beam': did you mean 'num_beams'"):
        read_config(None, ["generation.num_beam=2"], model="m", task="t")
