"""`frostline train` on processes that share the model (FSDP2 over gloo): the run, the record and the files of one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_several_runs import LONG, settings, shortened, write_all, write_with_dropout

from frostline.checkpoints import export_lora, load, merge
from frostline.core.errors import CheckpointError, ConfigError
from frostline.cost import Workload, memory
from frostline.plan import Plan
from frostline.records import read_record
from frostline.run import evaluate_target, inspect_model, read_config, train
from several import HANGS, Done, in_processes, script_in_processes
from tiny_files import write_task

SAME = 1e-5
ADAM = ("optim=adamw_torch_fused", "learning_rate=1e-3")
QUICK: dict[str, tuple[str, ...]] = {"classification": (), "generation": ADAM}
"""Name of a task of `test_several_runs` -> more settings. The cache is on in the first, and bot50 has LoRA above."""
MORE: dict[str, tuple[str, ...]] = {
    "extraction": (),  # with AdamW, the biases of the head would follow rounding: their gradients are zero
    "generation lora": ("strategy=lora", "strategy_options={dropout: 0.0}", *ADAM),
    "packing": ("gradient_accumulation_steps=2",),
    "generation hlpt": ("strategy=hlpt", *ADAM),
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
    shares = () if out == "one" or out.startswith("ddp") else ("training.fsdp=true",)
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
        (copied / name).unlink(missing_ok=True)
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


@pytest.mark.slow
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
def test_a_run_goes_on_in_another_number_of_processes(tmp_path: Path) -> None:
    """Four share the model of two, and of one; two that have it each go on with one, and the other way round."""
    write_all(tmp_path)
    script_in_processes(RUN, tmp_path, "classification")
    train(read_config(None, given(tmp_path, "classification", "one", 4)))
    for count in ("two", "one"):
        whole = tmp_path / f"classification {count}"
        stopped(whole, f"classification four-{count}")
        script_in_processes(RESUME, tmp_path, f"four-{count}", "1", count=4)
        same(whole, tmp_path / f"classification four-{count}")
    whole = tmp_path / "classification one"
    stopped(whole, "classification ddp")
    script_in_processes(RESUME, tmp_path, "ddp", "2")
    same(whole, tmp_path / "classification ddp")
    stopped(tmp_path / "classification ddp", "classification ddp-one")
    train(read_config(None, given(tmp_path, "classification", "ddp-one", 4)), resume=True)
    same(whole, tmp_path / "classification ddp-one")


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_runs_that_share_the_model(tmp_path: Path, name: str) -> None:
    write_all(tmp_path)
    script_in_processes(RUN, tmp_path, name)
    check(tmp_path, name)
    if name == "generation lora":
        run, adapter = tmp_path / "generation lora two", tmp_path / "adapter"
        export_lora(run, adapter)
        trained = load(run)
        base = type(trained).from_pretrained(tmp_path / "llama")
        ordinary = PeftModel.from_pretrained(base, adapter)
        ids = torch.arange(4, 20)[None]
        with torch.no_grad():
            torch.testing.assert_close(ordinary(ids).logits, trained(ids).logits, atol=1e-5, rtol=0)


IN_FEWER_BITS = """
    import sys
    from pathlib import Path
    import torch.distributed as dist
    from frostline.run import read_config, train
    from test_sharded_runs import given

    train(read_config(None, given(Path(sys.argv[1]), "generation", "bf16", 2, "bf16=true")))
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_run_in_fewer_bits_is_evaluated_with_its_own_weights(tmp_path: Path) -> None:
    """And not with what steps gather, which is in bfloat16."""
    write_all(tmp_path)
    script_in_processes(IN_FEWER_BITS, tmp_path)
    run = tmp_path / "generation bf16"
    record = read_record(run)
    assert record.metrics is not None
    assert evaluate_target(str(run)).metrics == record.metrics.after
    stopped(run, "generation alone")
    with pytest.raises(CheckpointError, match="with bf16, fsdp computes norms and states in bfloat16"):
        train(read_config(None, given(tmp_path, "generation", "alone", 4, "training={}", "bf16=true")), resume=True)


REFUSED = """
    import os, sys
    from pathlib import Path
    import pytest
    import torch.distributed as dist
    from frostline.core.errors import UserError
    from frostline.processes import is_of_all, start
    from frostline.run import read_config, train
    from test_sharded_runs import given

    folder = Path(sys.argv[1])
    group = start(120)

    def refused(match, *more):
        group.wait()
        with pytest.raises(UserError, match=match) as caught:
            train(read_config(None, given(folder, "classification", "refused", 2, *more)))
        assert is_of_all(caught.value), caught.value
        assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 300
        assert group.rank or not list((folder / "classification refused").glob("*"))

    refused("calibrate: it times whole blocks", "calibrate=true", "budget.time=0.9")
    refused("budget.memory: with fsdp a size cannot be kept", "budget.memory=8GB")
    refused("streaming: it works in one process", "streaming=true")
    refused("optim=flora: it works in one process", "optim=flora")
    refused("fsdp_config: unknown option 'reshard': use version, ", "training.fsdp_config.reshard=true")
    refused("fsdp cannot be used with cpu_offload", "training.fsdp_config.cpu_offload=true")
    refused("fsdp: version 1 is not supported: use version 2", "training.fsdp_config.version=1")
    refused("optim: Adafactor reads whole tensors", "optim=adafactor")
    refused("frozen_bits: quantized weights cannot be divided", "frozen_bits=8", "activation_cache=auto")
    refused("'autofreeze' changes its plan, and it measures the model", "strategy=autofreeze", "activation_cache=auto")
    refused("LayerDrop and AdapterDrop leave units out", "strategy=layerdrop", "activation_cache=auto")
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}
    refused("fsdp: version 1 is not supported: use version 2", "training.fsdp=false")
    print("all refused")
    dist.destroy_process_group()
"""


def test_what_cannot_share_the_model_is_refused_by_all(tmp_path: Path) -> None:
    write_all(tmp_path)
    done = script_in_processes(REFUSED, tmp_path, seconds=300)
    assert all("all refused" in one.out for one in done)
    with pytest.raises(ConfigError, match="fsdp: it divides a model among processes, and no launcher started any"):
        train(read_config(None, given(tmp_path, "classification", "alone", 4)))


def launched(folder: Path, out: str, *more: str, **options: Any) -> list[Done]:
    return in_processes(["-m", "frostline", "train", *given(folder, "classification", out, 2), *more], **options)


@pytest.mark.slow
def test_the_launcher_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `accelerate launch --use_fsdp --fsdp_version 2` does, whose default is that the first process alone reads."""
    write_all(tmp_path)
    one = train(read_config(None, given(tmp_path, "classification", "one", 4)))
    asked = {"USE_FSDP": "ACCELERATE_", "VERSION": "FSDP_", "CPU_RAM_EFFICIENT_LOADING": "FSDP_"}
    for name, prefix in asked.items():
        monkeypatch.setenv(f"{prefix}{name}", "2" if name == "VERSION" else "true")
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "BertLayer")
    how = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "frostline", "train"]
    own = [*given(tmp_path, "classification", "two", 2), "training={}", "--json"]
    (done,) = in_processes([*how, *own], 1, launched=False)
    assert done.status == 0, done.err
    record = json.loads(done.out)
    assert (record["measured"]["engine"], record["measured"]["processes"]) == ("FSDP2", 2)
    assert one.metrics is not None and record["metrics"]["before"] == one.metrics.before
    assert any("auto_wrap_policy, transformer_cls_to_wrap has no effect" in line for line in record["notices"])
    same(tmp_path / "classification one", tmp_path / "classification two")


@pytest.mark.slow
def test_trials_that_share_the_model_make_one_choice(tmp_path: Path) -> None:
    write_all(tmp_path)
    write_task(tmp_path / "many", 170)
    own = [setting for setting in settings(tmp_path, "trials", "chosen", 2) if not setting.startswith("max_steps")]
    more = ["strategy=auto", "budget.time=0.9", "budget.memory=0.9", "num_train_epochs=20", "training.fsdp=true"]
    first, second = in_processes(["-m", "frostline", "train", *own, *more, "--json"], seconds=400)
    assert (first.status, second.status) == (0, 0), first.err + second.err
    record = json.loads(first.out)
    assert record["trials"] and record["status"] == "finished" and record["measured"]["engine"] == "FSDP2"
    assert evaluate_target(str(tmp_path / "chosen")).metrics == record["metrics"]["after"]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_is_resumed(tmp_path: Path, killed: int) -> None:
    write_with_dropout(tmp_path)
    folder = tmp_path / "classification killed"
    done = launched(tmp_path, "killed", *LONG, kill=(killed, folder / "checkpoint-3" / "rng_1.json"))
    assert done[killed].status == -9 and done[1 - killed].status == 1, done[1 - killed]
    assert HANGS not in (one.status for one in done)
    assert "another process of this training has ended" in done[1 - killed].err
    last = shortened(folder)
    more = (*LONG, f"max_steps={last + 3}")
    with pytest.raises(CheckpointError, match="it was saved by 2 processes, and these are 1, so training would go on"):
        alone = stopped(folder, "classification alone", last)
        train(read_config(None, given(tmp_path, "classification", "alone", 4, *more, "training={}")), resume=True)
    shutil.rmtree(alone)
    resumed = launched(tmp_path, "killed", *more, "--resume")
    assert [one.status for one in resumed] == [0, 0], resumed[0].err
    whole = launched(tmp_path, "whole", *more)
    assert [one.status for one in whole] == [0, 0]
    same(folder, tmp_path / "classification whole", within=0)
