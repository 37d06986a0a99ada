"""Which heads compare a position with the next one's label: as the model's own loss says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, BertForMaskedLM, LlamaForTokenClassification

from architectures import BLOCKS, VOCABULARY, WIDTH, tiny
from frostline.anatomy import find_anatomy


class Masked(BertForMaskedLM):
    """A class of the user's own."""


def loss_of(model: Any, place: int) -> float:
    """The loss of a row in which one position has a label."""
    labels = torch.full((1, 6), -100)
    labels[0, place] = 1
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([[5, 6, 7, 8, 9, 10]]), labels=labels).loss)


def made(cls: Any, **options: Any) -> Any:
    like = tiny("llama" if cls is LlamaForTokenClassification else "bert").config
    return cls(type(like)(**like.to_dict() | options)).eval()


def check(model: Any) -> None:
    """A loss that shifts has no label where only the first position has one, and so is no number (or 0)."""
    shifts = not loss_of(model, 0) > 0
    assert loss_of(model, 2) > 0
    assert find_anatomy(model).shifts_labels is shifts


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "mixtral"])
def test_decoders(name: str) -> None:
    model = tiny(name).eval()
    check(model)
    assert find_anatomy(model).shifts_labels


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert", "deberta-v2"])
def test_masked_language_models(name: str) -> None:
    model = tiny(name, "masked").eval()
    check(model)
    assert not find_anatomy(model).shifts_labels


@pytest.mark.parametrize(
    ("cls", "options", "shifts"),
    [
        (Masked, {}, False),
        (BertForMaskedLM, {"is_decoder": True}, False),
        (transformers.BertLMHeadModel, {}, True),
        (transformers.BertLMHeadModel, {"is_decoder": True}, True),
        (transformers.BertForTokenClassification, {}, False),
        (LlamaForTokenClassification, {}, False),
    ],
)
def test_other_classes(cls: Any, options: dict[str, Any], shifts: bool) -> None:
    model = made(cls, **options)
    check(model)
    assert find_anatomy(model).shifts_labels is shifts


@pytest.mark.parametrize(
    ("model_type", "cls", "shifts"),
    [
        ("xlnet", "XLNetLMHeadModel", False),
        ("electra", "ElectraForMaskedLM", False),
        ("electra", "ElectraForCausalLM", True),
    ],
)
def test_heads_by_other_names(model_type: str, cls: str, shifts: bool) -> None:
    sizes = {"num_hidden_layers": BLOCKS, "hidden_size": WIDTH, "embedding_size": WIDTH, "d_model": WIDTH}
    more = {"n_layer": BLOCKS, "n_head": 4, "d_inner": 2 * WIDTH}
    heads = {"num_attention_heads": 4, "intermediate_size": 2 * WIDTH, "vocab_size": VOCABULARY}
    config = AutoConfig.for_model(model_type, **sizes, **more, **heads)
    model = getattr(transformers, cls)(config).eval()
    check(model)
    assert find_anatomy(model).shifts_labels is shifts


def test_an_encoder_decoder_shifts_its_inputs() -> None:
    model = tiny("t5").eval()
    check(model)
    assert not find_anatomy(model).shifts_labels
