"""Weights are read as a whole: a tensor that is missing, or that the model has no place for, is an error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from architectures import tiny
from command_line import frostline
from frostline.checkpoints import load_config, load_part, load_weights
from frostline.core.errors import UnsupportedModel
from tiny_files import write_model, write_task

DOWN = "model.layers.2.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(UnsupportedModel) as raised:
        read()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def load(folder: Path) -> Any:
    return load_weights(str(folder), transformers.LlamaForCausalLM, load_config(str(folder)))


def tensors(folder: Path, *gone: str, **more: torch.Tensor) -> Path:
    """Write the tensors of a model again without some, and with more."""
    state = load_file(folder / "model.safetensors")
    state = {name: tensor for name, tensor in state.items() if name not in gone} | more
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_missing_tensor_is_one_line_in_every_command(folder: Path) -> None:
    task = ["--task", write_task(folder.parent / "days")]
    names = ["--model", folder, *task, "--strategy", "bot50", "--out", folder.parent / "done"]
    assert frostline("train", "max_steps=1", *names).status == 0
    tensors(folder, DOWN)
    streamed = ["train", *names[:-1], folder.parent / "run", "max_steps=1", "streaming=true"]
    plain = ["train", *names[:-1], folder.parent / "run", "max_steps=1"]
    commands = [plain, ["probe", folder, *task], ["evaluate", folder, *task], ["generate", folder, "--prompt", "the"]]
    merge = ["merge", folder.parent / "done", "--out", folder.parent / "out"]
    for command in (*commands, streamed, merge):
        ended = frostline(*command)
        message = f"tensor {DOWN} is missing in its safetensors files: use a whole copy"
        assert (ended.status, message in ended.error) == (2, True), (command, ended.err)
    assert not (folder.parent / "out").exists()


def test_a_part_needs_only_its_own_tensors(folder: Path) -> None:
    tensors(folder, DOWN)
    config = load_config(str(folder))
    part = load_part(str(folder), transformers.LlamaForCausalLM, config, {"model.norm.weight"})
    assert not part.model.norm.weight.is_meta
    found = refused(lambda: load_part(str(folder), transformers.LlamaForCausalLM, config, {DOWN}))
    assert f"tensor {DOWN} is missing" in found


@pytest.mark.parametrize("name", ["model.layers.9.mlp.down_proj.weight", "model.norm.bias"])
def test_a_tensor_that_the_model_has_no_place_for_is_refused(name: str, folder: Path) -> None:
    tensors(folder, **{name: torch.zeros(2)})
    assert f"tensor {name} is in its safetensors files, but the model that config.json" in refused(lambda: load(folder))


def test_a_config_with_fewer_layers_than_the_weights_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "tensor model.layers.3.input_layernorm.weight and 8 more are in" in refused(lambda: load(folder))


def test_an_encoder_that_was_saved_without_a_head_is_whole_too(models_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(models_dir / "all-MiniLM-L6-v2", tmp_path / "model")
    config = load_config(str(folder))
    for head in (transformers.BertForSequenceClassification, transformers.BertForTokenClassification):
        load_weights(str(folder), head, config)
    tensors(folder, **{"encoder.layer.9.output.dense.weight": torch.zeros(2)})
    assert "tensor encoder.layer.9" in refused(lambda: load_weights(str(folder), head, config))
    tensors(folder, "encoder.layer.9.output.dense.weight", "encoder.layer.3.output.dense.weight")
    assert "tensor bert.encoder.layer.3.output" in refused(lambda: load_weights(str(folder), head, config))


@pytest.mark.parametrize(
    ("family", "saved", "loaded"),
    [
        ("bert", "BertForPreTraining", "BertForSequenceClassification"),
        ("bert", "BertForMaskedLM", "BertForSequenceClassification"),
        ("llama", "LlamaForCausalLM", "LlamaForSequenceClassification"),
        ("llama", "LlamaModel", "LlamaForCausalLM"),
        ("roberta", "RobertaForSequenceClassification", "RobertaForTokenClassification"),
        ("t5", "T5ForConditionalGeneration", "T5ForSequenceClassification"),
        ("t5", "T5ForConditionalGeneration", "T5ForConditionalGeneration"),
        ("distilbert", "DistilBertForMaskedLM", "DistilBertForSequenceClassification"),
        ("t5", "T5ForConditionalGeneration", "T5ForQuestionAnswering"),
        ("gpt2", "GPT2LMHeadModel", "GPT2ForSequenceClassification"),
    ],
)
def test_heads_may_be_missing_or_left_over(family: str, saved: str, loaded: str, tmp_path: Path) -> None:
    model = getattr(transformers, saved)(tiny(family).config)
    model.save_pretrained(tmp_path)
    if family == "gpt2":  # older checkpoints hold its mask too
        tensors(tmp_path, **{"transformer.h.0.attn.bias": torch.ones(1, 1, 2, 2)})
    load_weights(str(tmp_path), getattr(transformers, loaded), load_config(str(tmp_path)))


def test_a_head_that_the_checkpoint_should_have_is_needed(tmp_path: Path) -> None:
    model = transformers.BertForSequenceClassification(tiny("bert").config)
    model.save_pretrained(tmp_path)
    tensors(tmp_path, "classifier.weight")
    config = load_config(str(tmp_path))
    found = refused(lambda: load_weights(str(tmp_path), transformers.BertForSequenceClassification, config))
    assert "tensor classifier.weight is missing" in found
