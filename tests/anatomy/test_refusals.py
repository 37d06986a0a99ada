"""Models that cannot be planned block by block give one clear error line."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from architectures import tiny
from frostline.anatomy import find_anatomy, skeleton
from frostline.core.errors import UserError


def refusal(model: nn.Module) -> str:
    with pytest.raises(UserError) as caught:
        find_anatomy(model)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(4, 4),
        nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10)),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, batch_first=True), 2),
    ],
)
def test_what_is_not_of_transformers(model: nn.Module) -> None:
    assert refusal(model) == (
        f"{type(model).__name__} is not a transformers model: use a text model that transformers loads"
    )


@pytest.mark.parametrize("model_type", ["vit", "resnet"])
def test_vision_models(model_type: str) -> None:
    model = skeleton(AutoConfig.for_model(model_type), AutoModelForImageClassification)
    assert "has no token embedding: use a text model" in refusal(model)


def test_a_model_without_attention() -> None:
    model = skeleton(AutoConfig.for_model("mamba", num_hidden_layers=2), AutoModelForCausalLM)
    assert "MambaForCausalLM has no list of transformer blocks" in refusal(model)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_tensor_without_values() -> None:
    config = AutoConfig.for_model("t5", vocab_size=32, d_model=8, d_kv=0, d_ff=16, num_layers=2, num_heads=2)
    message = refusal(skeleton(config, AutoModelForSequenceClassification))
    assert message.endswith("q.weight has the shape (0, 8): use sizes from 1 on in config.json")


def test_several_models_in_one() -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model("gemma3", text_config=small, vision_config={**small, "image_size": 28})
    model = skeleton(config, AutoModelForCausalLM)
    assert "is made of several models (it holds lists of 2 and 2 blocks)" in refusal(model)


def test_blocks_of_one_shared_layer() -> None:
    config = AutoConfig.for_model("albert", num_hidden_layers=6)
    message = refusal(skeleton(config, AutoModelForSequenceClassification))
    assert "holds 1 block(s) for the 6 layers of its config, so layers share weights" in message


def test_a_block_used_twice() -> None:
    model = tiny("llama")
    model.model.layers[2] = model.model.layers[1]
    assert "blocks 1 and 2 of LlamaForCausalLM share weights" in refusal(model)


def test_one_tensor_in_two_blocks() -> None:
    model = tiny("gpt2")
    model.transformer.h[3].mlp.c_fc.weight = model.transformer.h[0].mlp.c_fc.weight
    assert "blocks 0 and 3 of GPT2LMHeadModel share weights" in refusal(model)


def test_adapters_of_peft() -> None:
    wrapped = get_peft_model(tiny("llama"), LoraConfig(target_modules=["q_proj"]))
    assert "already has PEFT adapters" in refusal(wrapped)
    assert "already has PEFT adapters" in refusal(wrapped.get_base_model())


def test_a_model_that_needs_more_than_token_ids() -> None:
    model = tiny("llama")

    def forward(input_ids: torch.Tensor, picture: torch.Tensor) -> None: ...

    model.model.forward = forward
    assert "does not run from token ids to its first block (TypeError" in refusal(model)


def test_a_task_that_the_config_cannot_do() -> None:
    config = AutoConfig.for_model("t5")
    with pytest.raises(UserError, match="AutoModelForCausalLM cannot build a model of type 't5'") as caught:
        skeleton(config, AutoModelForCausalLM)
    assert "\n" not in str(caught.value)


def test_code_that_comes_with_a_checkpoint_is_not_run() -> None:
    config = AutoConfig.for_model("t5")
    config.auto_map = {"AutoModelForCausalLM": "somebody/model--code.Model"}
    with pytest.raises(UserError, match="cannot build a model of type 't5'"):
        skeleton(config, AutoModelForCausalLM)
