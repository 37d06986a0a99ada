"""Checkpoints in half precision where the processor has no such numbers: kept in float32, with the same values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, TrainingArguments

import frostline.checkpoints._precision as precision
from architectures import batch_for, tiny
from cache_cases import ends_at
from frostline.checkpoints import imitated, kept_dtype, load, load_config, load_weights, merge
from frostline.engine import Trainer
from frostline.run import RunConfig, make_plan, read_config, train
from tiny_files import write_model, write_task

HALVES = ["bfloat16", "float16"]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without bfloat16 and float16."""
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_amx_fp16_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def write_half(folder: Path, dtype: str = "bfloat16") -> Path:
    write_model(folder)
    LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).save_pretrained(folder)
    return folder


def config(tmp_path: Path, out: str = "run", **given: Any) -> RunConfig:
    settings = {"model": str(tmp_path / "model"), "task": str(tmp_path / "days"), "out": str(tmp_path / out)}
    settings |= {"strategy": "bot50", "threads": 1, "max_steps": 4, "per_device_train_batch_size": 4, "max_length": 16}
    return read_config(None, **(settings | {"learning_rate": 1e-3} | given))


def test_only_half_precision_is_imitated(slow: None) -> None:
    assert [kept_dtype("auto", dtype) for dtype in ("float32", torch.float64, *HALVES)] == [
        "float32", "float64", "float32", "float32",
    ]  # fmt: skip
    assert kept_dtype("bfloat16", "float16") == "bfloat16", "what is asked for is done"
    assert imitated(torch.bfloat16) and not imitated("float32") and not imitated(None)


def test_an_accelerator_imitates_nothing(slow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not imitated("bfloat16") and not imitated("float16")


@pytest.mark.parametrize("dtype", HALVES)
def test_the_numbers_are_the_checkpoint_s(tmp_path: Path, slow: None, dtype: str) -> None:
    folder = str(write_half(tmp_path / "model", dtype))
    model = load_weights(folder, LlamaForCausalLM, load_config(folder))
    plain = LlamaForCausalLM.from_pretrained(folder, dtype="auto")
    assert plain.dtype == getattr(torch, dtype) and model.dtype == torch.float32
    own = dict(plain.named_parameters())
    assert all(torch.equal(tensor, own[name].float()) for name, tensor in model.named_parameters())
    assert load_weights(folder, LlamaForCausalLM, load_config(folder), dtype).dtype == getattr(torch, dtype)


def test_a_config_may_not_say_its_dtype(tmp_path: Path, slow: None) -> None:
    folder = write_half(tmp_path / "model")
    path = folder / "config.json"
    written = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("dtype", "torch_dtype")}
    path.write_text(json.dumps(written))
    assert LlamaForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
    model = load_weights(str(folder), LlamaForCausalLM, load_config(str(folder)))
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_keeps_float32_and_says_so_in_its_record(tmp_path: Path, slow: None, streaming: bool) -> None:
    write_half(tmp_path / "model")
    write_task(tmp_path / "days")
    record = train(config(tmp_path, streaming=streaming))
    assert record.model.dtype == "float32" == record.predicted["assumes"]["frozen_dtype"]
    assert record.versions["autocast"] == "none" and not [line for line in record.notices if "imitates" in line]
    # The same run in float32 by request, and what is made of it, has the same values.
    train(config(tmp_path, "asked", frozen_dtype="float32", streaming=streaming))
    found, asked = (load_file(tmp_path / out / "delta.safetensors") for out in ("run", "asked"))
    assert found.keys() == asked.keys() and all(torch.equal(found[name], asked[name]) for name in found)
    merge(tmp_path / "run", tmp_path / "merged")
    whole = load(tmp_path / "run").state_dict()
    written = load_file(tmp_path / "merged" / "model.safetensors")
    assert written and all(torch.equal(written[name], whole[name]) for name in written)


def test_half_precision_by_request_is_said_to_be_slow(tmp_path: Path, slow: None) -> None:
    write_half(tmp_path / "model")
    write_task(tmp_path / "days")
    record = train(config(tmp_path, frozen_dtype="bfloat16", max_steps=1))
    assert record.model.dtype == "bfloat16"
    (line,) = [line for line in record.notices if "imitates" in line]
    assert line.startswith("the frozen tensors are in bfloat16, which this machine imitates")


@pytest.mark.parametrize(("strategy", "said"), [("bot50", True), ("lora", True), ("all", False)])
def test_a_model_of_the_user_s_is_left_as_it_is_and_it_is_said(
    tmp_path: Path, slow: None, strategy: str, said: bool
) -> None:
    model = tiny("llama").to(torch.bfloat16)
    batch = batch_for(model, batch=8, length=8)
    rows = [{key: value[i] for key, value in batch.items()} for i in range(8)]
    args = TrainingArguments(
        str(tmp_path), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    trainer = Trainer(model, args, plan=make_plan(model, strategy), train_dataset=rows)
    trainer.train()
    assert any("load the model with dtype=torch.float32" in line for line in trainer.notices) == said


def test_a_run_goes_on_in_the_dtype_that_it_began_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_half(tmp_path / "model")
    write_task(tmp_path / "days")
    places = [config(tmp_path, out, bf16=False, save_steps=2) for out in ("whole", "half")]
    with monkeypatch.context() as quick:
        quick.setattr(precision, "bfloat16_is_fast", lambda: True)
        assert train(places[0]).model.dtype == "bfloat16"
        quick.setattr(Trainer, "_get_grad_norm", ends_at(4))
        with pytest.raises(KeyboardInterrupt):
            train(places[1])
    monkeypatch.setattr(precision, "bfloat16_is_fast", lambda: False)
    resumed = train(places[1], resume=True)
    assert resumed.model.dtype == "bfloat16" and resumed.config["frozen_dtype"] == "auto"
    whole, half = (load_file(tmp_path / out / "delta.safetensors") for out in ("whole", "half"))
    assert whole.keys() == half.keys() and all(torch.equal(whole[name], half[name]) for name in whole)
