"""`frostline train` and `fl.train` on two processes (gloo): one run, one record, one decision, the metrics of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from architectures import tiny
from frostline.records import read_record
from frostline.run import read_config, train
from several import HANGS, Done, in_processes, script_in_processes
from tiny_files import WORDS, write_model, write_task

EXTRACTED = [
    {
        "context": f"the {WORDS[i % 2]} {WORDS[2 + i % 3]} is w{i} a day",
        "question": f"what is w{i}",
        "answers": {"text": [WORDS[2 + i % 3]], "answer_start": [len(f"the {WORDS[i % 2]} ")]},
    }
    for i in range(13)
]
TEXTS = [{"prompt": f"the {WORDS[i % 6]} w{i}", "completion": f"{WORDS[i % 4]} is w{i % 3}"} for i in range(13)]


def write_all(folder: Path) -> None:
    """Two models, and three tasks whose evaluation rows do not divide by two."""
    write_model(folder / "llama")
    write_model(folder / "bert", "bert")
    write_task(folder / "labels", 12)
    for name, rows in (("texts", TEXTS), ("spans", EXTRACTED)):
        (folder / name).mkdir()
        for split, some in (("train", rows[:8]), ("dev", rows[6:])):
            lines = "".join(json.dumps(row) + "\n" for row in some)
            (folder / name / f"{split}.jsonl").write_text(lines)


RUNS: dict[str, tuple[str, ...]] = {
    "classification": ("model=bert", "task=labels", "strategy=bot50", "activation_cache=on", "data.max_eval_rows=7"),
    "generation": (
        "model=llama",
        "task=texts",
        "strategy=bot50+lora",
        "strategy_options.lora.dropout=0",
        "generate_rows=5",
        "max_new_tokens=4",
    ),
    "extraction": ("model=bert", "task=spans", "strategy=lora", "strategy_options.dropout=0"),
    "packing": ("model=llama", "task=texts", "strategy=bot50", "packing=true", "generate_rows=0"),
}

CHOSEN = {"trials": ("model=bert", "task=many", "activation_cache=auto")}


def settings(folder: Path, name: str, out: str, rows: int, *more: str) -> list[str]:
    """The settings of a run with so many rows in a batch of a process."""
    own = [
        f"{key}={folder / value if key in ('model', 'task') else value}"
        for key, _, value in (setting.partition("=") for setting in (RUNS | CHOSEN)[name])
    ]
    return [
        *own,
        f"out={folder / out}",
        f"per_device_train_batch_size={rows}",
        "per_device_eval_batch_size=2",
        "max_steps=6",
        "max_length=24",
        "optim=sgd",
        "learning_rate=0.05",
        "eval_steps=3",
        "save_steps=2",
        "save_total_limit=9",
        "logging_steps=1",
        "bf16=false",
        "threads=1",
        *more,
    ]


RUN = """
    import sys
    from pathlib import Path
    import torch.distributed as dist
    from frostline.run import read_config, train
    from test_several_runs import settings

    folder = Path(sys.argv[1])
    for name in sys.argv[2].split("|"):
        record = train(read_config(None, settings(folder, name, f"{name} two", 2)))
        print(name, record.model_dump_json())
    dist.destroy_process_group()
"""


def test_a_run_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    write_all(tmp_path)
    first, second = script_in_processes(RUN, tmp_path, "|".join(RUNS))
    assert first.out == second.out, "the record is that of all"
    for name in RUNS:
        two = read_record(tmp_path / f"{name} two")
        one = train(read_config(None, settings(tmp_path, name, f"{name} one", 4)))
        assert f"{name} {two.model_dump_json()}\n" in first.out
        assert two.measured is not None and one.measured is not None
        assert two.metrics is not None and one.metrics is not None
        assert (one.measured.processes, two.measured.processes) == (1, 2)
        assert two.metrics.before == one.metrics.before, "the same batches: exactly"
        assert two.metrics.after == pytest.approx(one.metrics.after, rel=1e-5, abs=1e-5)
        losses = [[entry["eval_loss"] for entry in r.metrics.history if "eval_loss" in entry] for r in (one, two)]
        assert len(losses[0]) == 2
        assert losses[1] == pytest.approx(losses[0], rel=1e-5) or name == "packing"  # its rows are one sequence
        answers = [(tmp_path / f"{name} {count}" / "predictions.jsonl").read_text() for count in ("one", "two")]
        assert answers[0] == answers[1]
        tokens = [r.measured.tokens_per_second * r.measured.seconds_per_step for r in (one, two)]
        assert tokens[1] == pytest.approx(tokens[0], rel=0.2), "those of both processes"
        if name == "extraction":  # without a cache, which the first run has filled for the second
            assert two.predicted["run_flops"] == pytest.approx(one.predicted["run_flops"], rel=0.1)
        saved = {path.name for path in (tmp_path / f"{name} two" / "checkpoint-2").iterdir()}
        assert {"rng_0.json", "rng_1.json"} <= saved
        alone = {path.name for path in (tmp_path / f"{name} one").iterdir()}
        assert {path.name for path in (tmp_path / f"{name} two").iterdir()} == alone


REFUSED = """
    import os, sys
    from pathlib import Path
    import pytest, torch
    import torch.distributed as dist
    import frostline as fl
    from frostline.bottom import _session
    from frostline.core import files
    from frostline.core.errors import ConfigError, DataError, FrostlineError, CannotWrite, UserError
    from frostline.core.locks import own_folder
    from frostline.processes import is_of_all, start
    from frostline.run import _folder, _prepare, _training, read_config, train
    from test_several_runs import settings

    rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
    group = start(120)

    def refused(match, *more, kind=UserError, name="classification"):
        group.wait()
        with pytest.raises(kind, match=match) as caught:
            train(read_config(None, settings(folder, name, "refused", 2, *more)))
        assert is_of_all(caught.value), caught.value
        assert len(str(caught.value).splitlines()) == 1

    refused("streaming: it works in one process, but the launcher started 2: use streaming=false", "streaming=true")
    refused("optimizer_in_backward: it works in one", "optimizer_in_backward=true", "max_grad_norm=0")
    refused("optim=flora: it works in one", "optim=flora")
    refused("splitlora: it works in one", "strategy=splitlora", name="generation")
    refused("unknown strategy", "strategy=nothing")
    if rank == 0:
        (folder / "refused").mkdir()
        held = own_folder(folder / "refused")
        held.__enter__()
    refused("another process works in")
    if rank == 0:
        held.__exit__(None, None, None)
    group.wait()

    def one_refuses(patch, where, name, error):
        "`name` in `where` fails in process 1."
        real = getattr(where, name)
        def fails(*given, **options):
            if rank == 1:
                raise error
            return real(*given, **options)
        patch.setattr(where, name, fails)

    no_room = ConfigError("activation_cache_limit: no room here: use a larger one")
    with pytest.MonkeyPatch.context() as patch:
        one_refuses(patch, _session, "check_room", no_room)
        refused("no room here")
        record = train(read_config(None, settings(folder, "classification", "auto", 2, "activation_cache=auto",
                                                  "max_steps=12")))
        assert any("no activation cache: activation_cache_limit: no room here" in line for line in record.notices)
    with pytest.MonkeyPatch.context() as patch:
        one_refuses(patch, _session, "mismatch", _session._CheckFailed("another computation here"))
        record = train(read_config(None, settings(folder, "classification", "checked", 2)))
        assert any("no activation cache: another computation here" in line for line in record.notices)
    for where, name, error in (
        (_prepare, "load_model", ConfigError("not in this place")),
        (_training, "read_data", DataError("not in this place")),
        (_folder, "checkpoint_to_resume", OSError(2, "not in this place", "x")),
        (_training, "evaluate", RuntimeError("not in this place")),
        (_training, "save_delta", CannotWrite("not in this place")),
    ):
        group.wait()
        with pytest.MonkeyPatch.context() as patch:
            if name == "save_delta":  # which the first alone does
                patch.setattr(_training, name, lambda *_, **__: (_ for _ in ()).throw(error))
            else:
                one_refuses(patch, _training if name == "checkpoint_to_resume" else where, name, error)
            with pytest.raises((FrostlineError, OSError, RuntimeError), match="not in this place") as caught:
                train(read_config(None, settings(folder, "classification", f"fails {name}", 2)))
            assert is_of_all(caught.value), name

    # What differs between the processes.
    from cache_cases import collate, rows_for
    from architectures import tiny
    from transformers import TrainingArguments
    def trainer(rows, **options):
        arguments = TrainingArguments(str(folder / "args"), use_cpu=True, report_to="none", max_steps=2,
                                      disable_tqdm=True, save_strategy="no")
        return fl.Trainer(tiny("llama"), arguments, train_dataset=rows, data_collator=collate, **options)
    rows = rows_for(tiny("llama"))
    with pytest.raises(DataError, match="process 0 has 12 rows and process 1 11"):
        trainer(rows[rank:], plan="bot50").train()
    with pytest.raises(ConfigError, match="processes 0 and 1 have different plans"):
        trainer(rows, plan=fl.make_plan(tiny("llama"), ("bot50", "top50")[rank])).train()
    measured = trainer(rows, plan=lambda model: fl.make_plan(model, ("bot50", "top50")[rank]))
    assert measured.applied.plan.strategy == "bot50"
    measured.train()
    assert measured.state.global_step == 2

    # A loss that is no number in one process ends training in all.
    class Breaks(fl.Trainer):
        def compute_loss(self, *given, **options):
            loss = super().compute_loss(*given, **options)
            return loss * float("nan") if rank == 1 and self.state.global_step == 1 else loss
    arguments = TrainingArguments(str(folder / "nan"), use_cpu=True, report_to="none", max_steps=3, disable_tqdm=True)
    broken = Breaks(tiny("llama"), arguments, train_dataset=rows, data_collator=collate, plan="bot50")
    with pytest.raises(FrostlineError, match="the loss is nan at step 2"):
        broken.train()
    print("all refused")
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_refusal_of_one_process_is_that_of_all(tmp_path: Path) -> None:
    write_all(tmp_path)
    done = script_in_processes(REFUSED, tmp_path, seconds=300)
    assert all("all refused" in one.out for one in done)


CHOOSES = """
    import json, os, sys, time
    from pathlib import Path
    import torch.distributed as dist
    import frostline as fl
    from frostline.run import _calibrate, _judge, read_config, train
    from test_several_runs import settings

    rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
    _calibrate.measure.__kwdefaults__["seconds"] = 0.3
    if rank == 1:  # whose clock runs at another speed, and whose measurements are others
        real, cpu = time.perf_counter, time.process_time
        time.perf_counter = lambda: 3.7 * real()
        time.process_time = lambda: 0.2 * cpu()
    if sys.argv[2] == "calibrate":
        own = ["calibrate=true", "strategy=auto", "strategy_options.trials=0", "budget.time=1.0"]
        record = train(read_config(None, settings(folder, "classification", "chosen", 2, *own)))
    else:
        own = ["strategy=auto", "budget.time=0.9", "num_train_epochs=20", "max_steps=-1"]
        record = train(read_config(None, settings(folder, "trials", "chosen", 2, *own)))
    print(record.model_dump_json())
    dist.destroy_process_group()
"""


def chosen(folder: Path, what: str) -> Any:
    write_all(folder)
    first, second = script_in_processes(CHOOSES, folder, what, seconds=400)
    assert first.out == second.out
    record = read_record(folder / "chosen")
    assert record.status == "finished" and record.chosen is not None
    return record


@pytest.mark.slow
def test_processes_whose_clocks_differ_calibrate_to_one_plan(tmp_path: Path) -> None:
    record = chosen(tmp_path, "calibrate")
    assert record.predicted["time_ratio"] is not None


@pytest.mark.slow
def test_processes_whose_clocks_differ_make_the_same_trials(tmp_path: Path) -> None:
    write_task(tmp_path / "many", 170)
    record = chosen(tmp_path, "trials")
    assert record.trials
    assert not (tmp_path / "chosen" / "trials").exists()


def command(folder: Path, name: str, out: str, *more: str, **options: Any) -> list[Done]:
    return in_processes(["-m", "frostline", "train", *settings(folder, name, out, 2), *more], **options)


@pytest.mark.slow
def test_the_command_prints_and_writes_once(tmp_path: Path) -> None:
    write_all(tmp_path)
    (tmp_path / "wrong").mkdir()
    first, second = command(tmp_path, "classification", "run", "--json")
    assert (first.status, second.status) == (0, 0), first.err + second.err
    assert json.loads(first.out)["measured"]["processes"] == 2 and not second.out
    assert "note: " in first.err and "note: " not in second.err and "error" not in first.err + second.err
    first, second = command(tmp_path, "classification", "run")
    assert (first.status, second.status) == (2, 2)
    assert "already holds a finished run" in first.err and len(first.err.splitlines()) == 1
    assert not first.out + second.out + second.err


@pytest.mark.slow
def test_a_wrong_setting_is_said_once(tmp_path: Path) -> None:
    write_all(tmp_path)
    first, second = command(tmp_path, "classification", "run", "learning_rate=-1")
    assert (first.status, second.status) == (2, 2)
    assert "learning_rate" in first.err and len(first.err.splitlines()) == 1 and not second.err


LONG = ("max_steps=400", "save_steps=1", "lr_scheduler_type=constant", "save_total_limit=400", "eval_steps=1000")
"""A run that is killed on its way."""


def write_with_dropout(folder: Path) -> None:
    """What `write_all` writes, with a model whose dropout draws from each process's own generator."""
    write_all(folder)
    tiny("bert", dropout=0.2).save_pretrained(folder / "bert")


def shortened(run: Path) -> int:
    """Let a run of `LONG` that was killed end three steps after its last checkpoint; gives the checkpoint's step."""
    last = max(int(path.name.rpartition("-")[2]) for path in run.glob("checkpoint-*"))
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text.replace('"max_steps": 400', f'"max_steps": {last + 3}'))
    return last


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_is_resumed(tmp_path: Path, killed: int) -> None:
    write_with_dropout(tmp_path)
    options: dict[str, Any] = {"kill": (killed, tmp_path / "killed" / "checkpoint-3" / "rng_1.json")}
    done = command(tmp_path, "classification", "killed", *LONG, **options)
    other = done[1 - killed]
    assert done[killed].status == -9 and other.status == 1, other
    assert HANGS not in (one.status for one in done)
    assert f"error: process {1 - killed}: another process of this training has ended" in other.err
    more = (*LONG, f"max_steps={shortened(tmp_path / 'killed') + 3}")
    resumed = command(tmp_path, "classification", "killed", *more, "--resume")
    assert [one.status for one in resumed] == [0, 0], resumed[0].err
    whole = command(tmp_path, "classification", "whole", *more)
    assert [one.status for one in whole] == [0, 0]
    deltas = [(tmp_path / name / "delta.safetensors").read_bytes() for name in ("killed", "whole")]
    assert deltas[0] == deltas[1]


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    """What `accelerate launch` starts processes with too, where it does not need MPI (on a CPU)."""
    write_all(tmp_path)
    how = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    started = [*how, "-m", "frostline", "train", *settings(tmp_path, "classification", "run", 2)]
    (done,) = in_processes(started, 1, launched=False)
    assert done.status == 0, done.err
    record = read_record(tmp_path / "run")
    assert record.measured is not None and record.measured.processes == 2
