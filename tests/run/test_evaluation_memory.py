"""What a run says of the memory of its evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from frostline.run import RunConfig, train
from frostline.run._opening import evaluation_notice, opening_record
from frostline.run._prepare import Prepared, prepare, read_data
from frostline.strategies import Budget
from tiny_files import write_model


def test_an_evaluation_above_the_budget_is_said() -> None:
    predicted = {"evaluation_memory_bytes": 900 * 2**20}
    small, large, share = (
        RunConfig(model="m", task="t", budget=Budget(memory=memory)) for memory in ("700MB", "2GB", 0.5)
    )
    (line,) = evaluation_notice(small, small, predicted)
    assert "900 MiB" in line and "memory=700MB" in line and "per_device_eval_batch_size" in line
    assert evaluation_notice(large, large, predicted) == evaluation_notice(share, share, predicted) == []


def test_a_record_has_the_memory_of_evaluations(tmp_path: Path) -> None:
    model, task = write_model(tmp_path / "model"), tmp_path / "task"
    task.mkdir()
    for split in ("train", "dev"):
        rows = [{"prompt": f"the w{i} day", "completion": "is warm"} for i in range(8)]
        (task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {"model": str(model), "task": str(task), "strategy": "bot50", "max_steps": 2, "bf16": False}
    records = [
        train(RunConfig(**shared, out=str(tmp_path / f"run{count}"), generate_rows=count, max_new_tokens=100))
        for count in (0, 4)
    ]
    without, writing = (record.predicted["evaluation_memory_bytes"] for record in records)
    assert without < writing  # keys and values of four texts
    for record in records:
        assert record.measured is not None and record.measured.run_peak_memory_bytes is not None
        # The memory after reading is what the steps count from: the whole counts from before.
        assert record.measured.run_peak_memory_bytes >= record.measured.peak_memory_bytes
        assert record.config["per_device_eval_batch_size"] is None


def test_as_many_rows_are_evaluated_together_as_fit_in_the_budget(tmp_path: Path) -> None:
    model, task = write_model(tmp_path / "model"), tmp_path / "task"
    task.mkdir()
    for split in ("train", "dev"):
        rows = [{"prompt": f"the w{i} day", "completion": "is warm"} for i in range(40)]
        (task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def prepared(memory: int, **given: Any) -> tuple[Prepared, int, list[str]]:
        shared = {"model": str(model), "task": str(task), "max_steps": 2, "per_device_train_batch_size": 1}
        shared |= {"out": str(tmp_path / "run"), "bf16": False, "generate_rows": 40, "max_new_tokens": 100}
        config = RunConfig(**shared, budget=Budget(memory=f"{memory}B"), **given)
        found = prepare(config, read_data(config))
        record = opening_record(found)
        notices = [line for line in record.notices if line.startswith("evaluation")]
        return found, record.predicted["evaluation_memory_bytes"], notices

    usual, needs, notices = prepared(10**9)
    assert usual.config.per_device_eval_batch_size is None and not notices
    assert usual.trainer.args.per_device_eval_batch_size == 32
    limit = needs * 3 // 4
    fewer, less, (notice,) = prepared(limit)
    rows = fewer.config.per_device_eval_batch_size
    assert rows is not None and 1 < rows < 32 and less <= limit
    assert fewer.trainer.args.per_device_eval_batch_size == rows
    assert notice.startswith(f"evaluation in batches of {rows}, so that")
    assert fewer.asked.per_device_eval_batch_size is None
    _, more, _ = prepared(limit, per_device_eval_batch_size=rows + 1)
    assert more > limit, "one row more does not fit"
    given, _, (notice,) = prepared(limit, per_device_eval_batch_size=32)
    assert given.config.per_device_eval_batch_size == 32 and "is predicted to need" in notice
