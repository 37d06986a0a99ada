"""Runs that train from the activation cache, and runs whose model is never whole in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from frostline.checkpoints import load, merge, read_card
from frostline.core.errors import ConfigError, UserError
from frostline.engine import Trainer
from frostline.plan import Frozen, Full, Lora, Plan, save_plan
from frostline.records import RunRecord, read_record
from frostline.run import RunConfig, read_config, train
from grids import slow_but
from tiny_files import WORDS, write_model, write_task
from tolerances import after_sgd

SGD = "optim=sgd", "learning_rate=0.1"
"""After which weights can be compared (see `tolerances`)."""

STREAMED = {
    "llama": ("lines", "bot50"),
    "llama-classifier": ("moods", "bot75"),
    "llama-lora": ("lines", "top-lora"),
    "gpt2": ("pairs", "bot75"),
    "gpt_neox": ("lines", "bot75"),
    "mixtral": ("lines", "bot75"),
    "bert": ("moods", "bot50"),
    "t5": ("pairs", "bot50"),
    "t5-decoder": ("pairs", "bot75"),
}


def task(folder: Path, kind: str) -> str:
    """A file of one kind of rows: with labels, as text alone, or as prompt and completion."""
    if kind == "moods":
        return str(write_task(folder / "moods"))
    texts = [f"the {WORDS[i % 2]} {WORDS[4 + i // 2 % 2]} is w{i} a w{i // 3}" for i in range(20)]
    rows = [{"text": t} if kind == "lines" else {"prompt": t[:12], "completion": t[12:]} for t in texts]
    path = folder / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(folder: Path, *overrides: str, kind: str = "moods", model: str = "llama", out: str = "run") -> RunConfig:
    base = folder / f"base-{model}"
    if not base.exists():
        write_model(base, model)
    defaults = [
        "num_train_epochs=3",
        "per_device_train_batch_size=4",
        "max_length=24",
        "bf16=false",
        "learning_rate=1e-2",
        "logging_steps=1",
    ]
    options = {"model": str(base), "task": task(folder, kind), "out": str(folder / out)}
    return read_config(None, [*defaults, *overrides], **options)


def delta(run: RunConfig) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "delta.safetensors")


def losses(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics, the perplexity as the loss that it is the exponential of: 1e-4 of a loss is 2e-2 of 200."""
    return {name: math.log(value) if name == "perplexity" else value for name, value in metrics.items()}


def near(record: RunRecord) -> float:
    """How far weights may lie apart after the run; gradients are clipped to a norm of 1."""
    assert record.measured is not None
    return after_sgd(0.1, record.measured.steps)


def assumes(record: RunRecord) -> tuple[bool, float]:
    assumed = record.predicted["assumes"]
    return assumed["activation_cache"], assumed["stored_share"]


def test_a_run_fills_the_store_and_the_next_one_finds_it(tmp_path: Path) -> None:
    off = train(config(tmp_path, "activation_cache=off", *SGD, out="off"))
    assert off.measured is not None
    assert (off.measured.caching_seconds, off.measured.caching_peak_memory_bytes) == (0.0, None)
    assert not any("cached" in notice for notice in off.notices) and assumes(off) == (False, 0.0)

    first = train(config(tmp_path, *SGD, out="first"))
    assert first.measured is not None
    assert 0 < first.measured.caching_seconds < first.measured.train_seconds
    assert first.measured.caching_peak_memory_bytes is not None
    expected, done = first.notices[-2:]
    assert expected.startswith("activation cache: 3 epochs, ") and "break-even at 1.01: it saves" in expected
    assert done.startswith("activation cache on: 16 rows, 16 of them passed the frozen bottom now, ")
    assert assumes(first) == (True, 0.0)
    assert first.predicted["run_flops_ratio"] < off.predicted["run_flops_ratio"]
    assert first.metrics is not None and off.metrics is not None
    assert first.metrics.before == off.metrics.before
    assert first.metrics.after == pytest.approx(off.metrics.after, abs=1e-4)
    theirs = delta(config(tmp_path, out="first"))
    for name, tensor in delta(config(tmp_path, out="off")).items():
        torch.testing.assert_close(theirs[name], tensor, atol=near(off), rtol=0, msg=name)

    second = train(config(tmp_path, "learning_rate=1e-3", "seed=7", "max_steps=3", out="second"))
    assert "16 rows, 0 of them passed" in second.notices[-1]
    assert assumes(second) == (True, 1.0)


def test_dropout_that_acts_in_the_bottom_declines_the_cache_with_a_notice(tmp_path: Path) -> None:
    place = Path(config(tmp_path).model) / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"attention_dropout": 0.1}))
    given = ("max_steps=6",)
    without = train(config(tmp_path, *given, out="without"))
    assert any("rows, " in notice and "passed the frozen bottom" in notice for notice in without.notices)
    keeping = train(config(tmp_path, *given, "frozen_dropout=true", out="keeping"))
    (notice,) = (notice for notice in keeping.notices if "activation cache" in notice)
    assert (
        notice.startswith("no activation cache: dropout acts below the boundary (") and keeping.plan["frozen_dropout"]
    )
    again = train(config(tmp_path, *given, f"strategy={tmp_path / 'keeping' / 'plan.yaml'}", out="again"))
    assert again.plan == keeping.plan
    with pytest.raises(ConfigError, match="dropout acts below"):
        train(config(tmp_path, *given, "frozen_dropout=true", "activation_cache=on", out="on"))


def test_one_epoch_does_not_pay_and_says_so(tmp_path: Path) -> None:
    record = train(config(tmp_path, "num_train_epochs=1"))
    assert (
        "no activation cache: 1 epoch, " in record.notices[-1] and "it saves nothing at one epoch" in record.notices[-1]
    )
    assert assumes(record) == (False, 0.0)
    everything = train(config(tmp_path, "strategy=all", out="all"))
    assert not any("activation cache" in notice for notice in everything.notices)  # nobody would expect one


def test_a_store_that_would_change_training_is_off_and_not_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frostline.bottom._session.mismatch", lambda *_: "the loss differs")
    record = train(config(tmp_path))
    assert record.notices[-1] == "no activation cache: the loss differs"
    assert assumes(record) == (False, 0.0)
    assert record.measured is not None and record.measured.caching_seconds > 0


@pytest.mark.parametrize("streaming", slow_but([False], [False, True]))
def test_a_killed_run_resumes_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    settings = ["save_steps=3", f"streaming={streaming}"]
    whole = config(tmp_path, *settings, out="whole")
    train(whole)
    killed = config(tmp_path, *settings, out="killed")

    def until_step_five(self: Any, step: int, inputs: Any) -> None:
        if step == 5:
            raise KeyboardInterrupt
        begin(self, step, inputs)

    begin = Trainer._begin_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_begin_step", until_step_five)
        train(killed)
    record = train(killed, resume=True)
    assert record.measured is not None and record.measured.resumed_at_step == 3
    assert " 0 of them passed" in record.notices[-1]
    got = delta(killed)
    assert all(torch.equal(tensor, got[name]) for name, tensor in delta(whole).items())


@pytest.mark.parametrize("case", slow_but(["llama", "t5-decoder"], STREAMED))
def test_a_streaming_run_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    name = case.partition("-")[0]
    kind, strategy = STREAMED[case]
    if strategy == "top-lora":
        strategy = str(tmp_path / "plan.yaml")
        save_plan(Plan(blocks=(Frozen(), Frozen(), Lora(r=2), Full())), Path(strategy))
    settings = [f"strategy={strategy}", "generate_rows=0", *SGD]
    plain = config(tmp_path, *settings, kind=kind, model=name, out="plain")
    ordinary = train(plain)

    parts: list[set[str]] = []
    whole = read_card(plain.folder).base_tensors.keys()
    monkeypatch.setattr("frostline.checkpoints._models.load_part", _noting(parts))
    streamed = config(tmp_path, *settings, "streaming=true", kind=kind, model=name, out="streamed")
    record = train(streamed)
    monkeypatch.undo()
    assert parts and all(part < whole for part in parts)

    assert ordinary.metrics is not None and record.metrics is not None
    assert losses(record.metrics.before) == pytest.approx(losses(ordinary.metrics.before), abs=1e-4)
    assert losses(record.metrics.after) == pytest.approx(losses(ordinary.metrics.after), abs=1e-4)
    assert assumes(record)[0]
    card, other = read_card(streamed.folder), read_card(plain.folder)
    assert (card.base_tensors, card.base_fingerprint) == (other.base_tensors, other.base_fingerprint)
    model, same = load(streamed.folder), load(plain.folder)
    for path, tensor in same.named_parameters():
        torch.testing.assert_close(model.get_parameter(path), tensor, atol=near(ordinary), rtol=0, msg=path)
    merged = [
        load_file(merge(run.folder, tmp_path / f"{run.folder.name}-merged").folder / "model.safetensors")
        for run in (plain, streamed)
    ]
    assert merged[0].keys() == merged[1].keys()
    # LoRA adds alpha / r times a sum of r products, whose factors are below 1/2: alpha times as far apart.
    most = near(ordinary) * (Lora().alpha if case == "llama-lora" else 1)
    for key, tensor in merged[0].items():
        torch.testing.assert_close(merged[1][key], tensor, atol=most, rtol=0, msg=key)


def _noting(parts: list[set[str]]) -> Any:
    from frostline.checkpoints._models import load_part

    def noted(*given: Any) -> Any:
        part = load_part(*given)
        parts.append({name for name, tensor in part.named_parameters() if not tensor.is_meta})
        return part

    return noted


def test_a_streaming_run_writes_no_text(tmp_path: Path) -> None:
    record = train(config(tmp_path, "streaming=true", "max_new_tokens=4", kind="pairs"))
    assert any(notice.startswith("streaming: generated texts are not scored") for notice in record.notices)
    assert record.metrics is not None and set(record.metrics.after) == {"loss", "perplexity"}


def test_what_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    def refused(reason: str, *settings: str) -> None:
        with pytest.raises(UserError, match=reason) as caught:
            train(config(tmp_path, *settings))
        assert "\n" not in str(caught.value)

    refused("strategy 'all' trains the first block", "streaming=true", "strategy=all")
    refused("leave activation_cache=off out", "streaming=true", "activation_cache=off")
    refused("activation_cache: on, but nothing is frozen below", "activation_cache=on", "strategy=all")
    refused("use a larger activation_cache_limit", "activation_cache=on", "activation_cache_limit=10B")
    refused("activation_cache_limit '20 apples': a size is a number and a unit", "activation_cache_limit=20 apples")
    refused("strategy 'adt-l50' changes its plan while it trains", "streaming=true", "strategy=adt-l50")
    assert not (tmp_path / "run").exists()


def test_what_yaml_makes_of_on_and_off(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model: m\ntask: t\nactivation_cache: off\nactivation_cache_limit: 1000\n")
    read = read_config(tmp_path / "run.yaml")
    assert (read.activation_cache, read.activation_cache_bytes) == ("off", 1000)
    read = read_config(tmp_path / "run.yaml", ["activation_cache=on", "activation_cache_limit=2 GB"])
    assert (read.activation_cache, read.activation_cache_bytes) == ("on", 2_000_000_000)
    with pytest.raises(UserError, match="activation_cache"):
        read_config(tmp_path / "run.yaml", ["activation_cache=sometimes"])


def test_the_record_of_a_run_is_read_back(tmp_path: Path) -> None:
    wanted = config(tmp_path, "activation_cache=on")
    assert train(wanted) == read_record(wanted.folder)


def test_a_run_says_what_runs_whole_and_why(tmp_path: Path) -> None:
    record = train(config(tmp_path, "strategy=bot50", "num_train_epochs=1", model="deberta-v2"))
    assert [notice for notice in record.notices if "the last block runs at every position: " in notice]
    record = train(config(tmp_path, "strategy=bot50", "num_train_epochs=1", kind="lines", out="llama"))
    assert not [notice for notice in record.notices if "at every position" in notice]
