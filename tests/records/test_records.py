"""The run record: whole, versioned, strict JSON, and readable again."""

from __future__ import annotations

import errno
import json
import math
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from frostline.core.errors import FrostlineError, UserError
from frostline.records import (
    RECORD_FILE,
    DataFacts,
    Measured,
    ModelFacts,
    RunMetrics,
    RunRecord,
    now,
    read_record,
    write_record,
)


def sample(**changes: Any) -> RunRecord:
    """A finished run's record."""
    values: dict[str, Any] = {
        "status": "finished",
        "started": "2025-01-02T03:04:05+00:00",
        "finished": "2025-01-02T03:05:05+00:00",
        "config": {"model": "base", "strategy": "bot50", "learning_rate": 5e-5, "report_to": []},
        "plan": {"version": 1, "blocks": [{"index": 0, "mode": "full"}]},
        "model": ModelFacts(
            name="base", model_class="LlamaForCausalLM", model_type="llama", dtype="float32", blocks=1, fingerprint="a1"
        ),
        "data": DataFacts(
            task="rte",
            kind="classification",
            source="file.jsonl",
            train_rows=10,
            eval_rows=5,
            truncated_rows=0,
            mean_length=7.5,
            metric="accuracy",
            majority_share=None,
            fingerprint="b2",
        ),
        "seed": 42,
        "versions": {"frostline": "0.1.0"},
        "trainable_parameters": 3,
        "total_parameters": 9,
        "predicted": {"flops_ratio": 0.5, "time_ratio": None},
        "measured": Measured(
            train_seconds=1.5, seconds_per_step=0.1, caching_seconds=0.0, peak_memory_bytes=2**33, steps=15
        ),
        "metrics": RunMetrics(before={"accuracy": 0.4}, after={"accuracy": 0.8}, history=({"loss": 1.25, "step": 1},)),
        "notices": ("tied embeddings: größer",),
    }
    return RunRecord(**values | changes)


def strict_json(path: Path) -> Any:
    """What a program that knows no NaN reads."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.mark.parametrize(
    "record", [sample(), sample(status="running", finished=None, measured=None, metrics=None, notices=())]
)
def test_what_is_written_reads_back(tmp_path: Path, record: RunRecord) -> None:
    write_record(record, tmp_path / "run")
    assert [child.name for child in (tmp_path / "run").iterdir()] == ["run.json"]
    assert read_record(tmp_path / "run") == record
    assert read_record(tmp_path / "run" / RECORD_FILE) == record, "the file serves as well as its folder"
    assert strict_json(tmp_path / "run" / RECORD_FILE) == record.model_dump(mode="json")


def test_the_keys_that_others_read(tmp_path: Path) -> None:
    write_record(sample(), tmp_path)
    document = strict_json(tmp_path / RECORD_FILE)
    assert list(document) == [
        "version",
        "status",
        "started",
        "finished",
        "error",
        "config",
        "command",
        "chosen",
        "trials",
        "signals",
        "plan",
        "changes",
        "strip",
        "model",
        "data",
        "seed",
        "versions",
        "trainable_parameters",
        "total_parameters",
        "predicted",
        "measured",
        "split",
        "routers",
        "metrics",
        "notices",
        "places",
    ]
    assert {"train_seconds", "seconds_per_step", "caching_seconds", "peak_memory_bytes"} <= set(document["measured"])
    assert document["version"] == 1


def test_numbers_that_json_does_not_know(tmp_path: Path) -> None:
    metrics = RunMetrics(before={"loss": math.nan}, after={"loss": math.inf, "perplexity": -math.inf})
    write_record(sample(metrics=metrics), tmp_path)
    strict_json(tmp_path / RECORD_FILE)
    read = read_record(tmp_path).metrics
    assert read is not None
    assert math.isnan(read.before["loss"])
    assert read.after == {"loss": math.inf, "perplexity": -math.inf}


def test_a_full_disk_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(sample(status="running"), tmp_path)

    def full(self: Path, text: str, **_: Any) -> int:
        with self.open("w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(FrostlineError, match=r"no space left while writing .*run\.json"):
            write_record(sample(), tmp_path)
    assert read_record(tmp_path).status == "running"
    assert [child.name for child in tmp_path.iterdir()] == [RECORD_FILE]


def test_what_is_not_a_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError) as caught:
            read_record(path)
        assert str(caught.value) == f"{path} holds no run.json, so it is not a run: use the folder of a run (its `out`)"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 2}, "version: "),
        ({"surprise": 1}, "surprise: "),
        ({"status": "done"}, "status: "),
        ({"model": None}, "model: "),
        ({"model": {"name": "base"}}, "model.model_class: "),
        ({"metrics": {"before": {"accuracy": "high"}, "after": {}}}, "metrics.before.accuracy: "),
    ],
)
def test_another_version_or_other_keys(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    path = tmp_path / RECORD_FILE
    path.write_text(json.dumps(sample().model_dump(mode="json") | change))
    with pytest.raises(UserError) as caught:
        read_record(tmp_path)
    assert str(caught.value).startswith(f"{path}: not a run record of version 1: {complaint}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"version": 1}'])
def test_a_file_that_is_not_a_record(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD_FILE).write_text(text)
    with pytest.raises(UserError, match=r"not JSON|not a run record of version 1") as caught:
        read_record(tmp_path)
    assert str(tmp_path / RECORD_FILE) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_record_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        sample().status = "failed"


def test_the_time_is_in_utc_to_the_second() -> None:
    time = datetime.fromisoformat(now())
    assert time.utcoffset() == timedelta(0)
    assert time.microsecond == 0
    assert abs(datetime.now(UTC) - time) < timedelta(seconds=5)
