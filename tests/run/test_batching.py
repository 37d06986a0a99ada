"""How rows become batches in a run, and the optimizer's step in backward: recorded, resumable, refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frostline.core.errors import UserError
from frostline.run import RunConfig, read_config, train


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, models_dir: Path) -> None:
    monkeypatch.setenv("FROSTLINE_MODELS", str(models_dir))


def config(folder: Path, *overrides: str, label: bool = False) -> RunConfig:
    rows = [
        {"text": f"Tom saw {'a big ' * (i % 9)}dog", **({"label": "ab"[i % 2]} if label else {})} for i in range(48)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        "num_train_epochs=1",
        "per_device_train_batch_size=4",
        "learning_rate=1e-3",
        "bf16=false",
        "threads=1",
        *overrides,
    ]
    return read_config(None, settings, model="stories260K", task=str(path), out=str(folder / "run"))


def test_less_padding_the_same_training(tmp_path: Path) -> None:
    losses, lengths = {}, {}
    order = {
        "random": "train_sampling_strategy=random",
        "grouped": "train_sampling_strategy=group_by_length",
        "packed": "packing=true",
    }
    for batching, setting in order.items():
        record = train(config(tmp_path, setting, f"out={tmp_path / batching}"))
        assert record.metrics is not None
        losses[batching] = record.metrics.after["loss"]
        lengths[batching] = record.predicted["assumes"]["length"]
        assert record.metrics.after["loss"] < record.metrics.before["loss"] - 0.5
    assert losses["packed"] == pytest.approx(losses["random"], rel=1e-4), "the same rows in each batch"
    assert lengths["packed"] <= lengths["grouped"] < lengths["random"]


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for overrides, label, message in (
        (
            ["packing=true"],
            True,
            r"train on packed rows \(this is a decoder on a classification task\): use train_sampling_strategy",
        ),
        (["packing=true", "pad_to_max_length=true"], False, "packed rows have no padding"),
        (["optimizer_in_backward=true"], False, "use max_grad_norm=0"),
    ):
        with pytest.raises(UserError, match=message):
            train(config(tmp_path, *overrides, label=label))
    assert not (tmp_path / "run").exists()


def test_the_step_in_backward_gives_the_same_run(tmp_path: Path) -> None:
    weights = []
    for flag in ("false", "true"):
        train(config(tmp_path, "max_grad_norm=0", f"optimizer_in_backward={flag}", f"out={tmp_path / flag}"))
        weights.append((tmp_path / flag / "delta.safetensors").read_bytes())
    assert weights[0] == weights[1]
