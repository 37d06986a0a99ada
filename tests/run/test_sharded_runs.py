"""`frostline train` on processes that share the model (FSDP2 over gloo): the run, the record and the files of one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from frostline.checkpoints import export_lora, load, merge
from frostline.core.errors import CheckpointError
from frostline.cost import Workload, memory
from frostline.plan import Plan
from frostline.records import read_record
from frostline.run import evaluate_target, inspect_model, read_config, train
from several import HANGS, Done, in_processes, script_in_processes
from test_several_runs import settings, write_all

SAME = 1e-5
ADAM = ("optim=adamw_torch_fused", "learning_rate=1e-3")
QUICK: dict[str, tuple[str, ...]] = {"classification": (), "generation": ADAM}
"""Name of a task of `test_several_runs` -> more settings. The cache is on in the first, and bot50 has LoRA above."""
MORE: dict[str, tuple[str, ...]] = {
    "extraction": ADAM,
    "packing": ("gradient_accumulation_steps=2",),
    "generation hlpt": ("strategy=hlpt", "strategy_options={dropout: 0.0}", *ADAM),
    "generation all": ("strategy=all", "strategy_options={}", "activation_checkpointing=true", *ADAM),
    "classification off": ("activation_cache=off", *ADAM),
    "classification lisa": ("strategy=lisa", "activation_cache=auto", *ADAM),
}
RUN = """
    import sys
    from pathlib import Path
    import torch.distributed as dist
    from frostline.run import read_config, train
    from test_sharded_runs import MORE, QUICK, given

    folder = Path(sys.argv[1])
    for name in sys.argv[2].split("|"):
        record = train(read_config(None, given(folder, name, "two", 2)))
        print(name, record.model_dump_json())
    dist.destroy_process_group()
"""


def given(folder: Path, name: str, out: str, rows: int, *more: str) -> list[str]:
    """The settings of a run in which processes share the model, with so many rows in a batch of each."""
    own = (QUICK | MORE)[name]
    if "gradient_accumulation_steps=2" in own:
        rows //= 2
    shares = () if out == "one" else ("training.fsdp=true",)
    return settings(folder, name.split()[0], f"{name} {out}", rows, *own, *shares, *more)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "delta.safetensors")


def same(one: Path, two: Path, within: float = SAME) -> None:
    first, second = weights_of(one), weights_of(two)
    assert first.keys() == second.keys()
    for name, weights in first.items():
        torch.testing.assert_close(second[name], weights, atol=within, rtol=0, msg=name)


def check(folder: Path, name: str) -> None:
    """The run of two processes is that of one, and its files hold what it trained."""
    one, two = train(read_config(None, given(folder, name, "one", 4))), read_record(folder / f"{name} two")
    assert one.measured is not None and two.measured is not None
    assert one.metrics is not None and two.metrics is not None
    assert (one.measured.engine, two.measured.engine, two.measured.processes) == ("one process", "FSDP2", 2)
    assert two.metrics.before == one.metrics.before, "the same batches: exactly"
    assert two.metrics.after == pytest.approx(one.metrics.after, rel=1e-5, abs=1e-5)
    for what in ("loss", "eval_loss"):
        losses = [[entry[what] for entry in r.metrics.history if what in entry] for r in (one, two)]
        assert losses[0] and (
            losses[1] == pytest.approx(losses[0], abs=SAME) or (what, name) == ("eval_loss", "packing")
        )
    same(folder / f"{name} one", folder / f"{name} two")
    answers = [(folder / f"{name} {count}" / "predictions.jsonl").read_text() for count in ("one", "two")]
    assert answers[0] == answers[1]
    assert {path.name for path in (folder / f"{name} two").iterdir()} == {
        path.name for path in (folder / f"{name} one").iterdir()
    }
    assert evaluate_target(str(folder / f"{name} two")).metrics == two.metrics.after, "saved is evaluated, bit for bit"
    work = Workload.model_validate(two.predicted["assumes"])
    assert (work.devices, work.processes) == (2, 1)
    if one.changes == ():
        found = memory(Plan.read(two.plan), inspect_model(two.config["model"], task=two.config["task"]), work)
        assert two.predicted["peak_memory_bytes"] == found.peak


def stopped(run: Path, out: str, step: int = 2) -> Path:
    """A copy of a run as it would be if it had been killed after a step."""
    copied = run.parent / out
    shutil.copytree(run, copied)
    for path in copied.glob("checkpoint-*"):
        if int(path.name.rpartition("-")[2]) > step:
            shutil.rmtree(path)
    for name in ("delta.safetensors", "delta.json", "predictions.jsonl"):
        (copied / name).unlink()
    record = json.loads((copied / "run.json").read_text())
    (copied / "run.json").write_text(json.dumps({**record, "status": "running", "finished": None, "metrics": None}))
    return copied


RESUME = """
    import sys
    from pathlib import Path
    import torch.distributed as dist
    from frostline.run import read_config, train
    from test_sharded_runs import given

    folder, out, rows = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    train(read_config(None, given(folder, "classification", out, rows)), resume=True)
    dist.destroy_process_group()
"""


def test_runs_that_share_the_model_are_those_of_one_process(tmp_path: Path) -> None:
    write_all(tmp_path)
    first, second = script_in_processes(RUN, tmp_path, "|".join(QUICK))
    assert first.out == second.out, "the record is that of all"
    for name in QUICK:
        check(tmp_path, name)
    run, merged = tmp_path / "generation two", tmp_path / "merged"
    merge(run, merged)
    trained, ordinary = load(run), type(load(run)).from_pretrained(merged)
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(ordinary(ids).logits, trained(ids).logits, atol=1e-5, rtol=0)
    # Killed and resumed: in as many processes, and in one, with the same rows in a step.
    whole = tmp_path / "classification two"
    stopped(whole, "classification again")
    script_in_processes(RESUME, tmp_path, "again", "2")
    same(whole, tmp_path / "classification again", within=0)
    stopped(whole, "classification one-again")
    with pytest.raises(CheckpointError, match="a step had 4 rows, and would have 2: use another per_device_train_"):
        train(read_config(None, given(tmp_path, "classification", "one-again", 2, "training={}")), resume=True)
    record = train(read_config(None, given(tmp_path, "classification", "one-again", 4, "training={}")), resume=True)
    assert record.measured is not None
    assert (record.measured.engine, record.measured.resumed_at_step) == ("one process", 2)
    same(whole, tmp_path / "classification one-again")


@pytest.mark.slow
def test_a_run_goes_on_in_four_processes(tmp_path: Path) -> None:
    """From two that shared the model, and from one process."""
    write_all(tmp_path)
    script_in_processes(RUN, tmp_path, "classification")
    train(read_config(None, given(tmp_path, "classification", "one", 4)))
    for count in ("two", "one"):
        whole = tmp_path / f"classification {count}"
        stopped(whole, f"classification four-{count}")
        script_in_processes(RESUME, tmp_path, f"four-{count}", "1", count=4)
        same(whole, tmp_path / f"classification four-{count}")


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_runs_that_share_the_model(tmp_path: Path, name: str) -> None:
    write_all(tmp_path)
    script_in_processes(RUN, tmp_path, name)
    check(tmp_path, name)
    if name == "extraction":
        run, adapter = tmp_path / "extraction two", tmp_path / "adapter"
        export_lora(run, adapter)
        trained = load(run)
        base = type(trained).from_pretrained(tmp_path / "bert")
        ordinary = PeftModel.from_pretrained(base, adapter)
        ids = torch.arange(4, 20)[None]
        with torch.no_grad():
            torch.testing.assert_close(ordinary(ids).start_logits, trained(ids).start_logits, atol=1e-5, rtol=0)
