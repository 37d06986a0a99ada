"""Tiny models with adapters of every kind, and what tests compare of them."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from architectures import batch_for, tiny
from frostline.adapters import HybridConfig, adapter_names

FAMILIES = ["llama", "qwen3", "gemma3", "gpt2", "gptj", "gpt_neox", "opt", "bert"]
DECODERS = [name for name in FAMILIES if name != "bert"]

GATED_LORA = {"mode": "lora", "r": 2, "alpha": 4, "dropout": 0.0, "targets": "down", "gate": True}
PLAIN_LORA = {**GATED_LORA, "gate": False, "targets": "all"}
PREFIX = {"mode": "prefix", "length": 3}
PARALLEL = {"mode": "adapter", "kind": "parallel", "bottleneck": 3}
SERIES = {**PARALLEL, "kind": "series", "activation": "gelu", "bias": True}
HYBRID = [{"index": "0-1", **GATED_LORA}, {"index": 2, **SERIES}, {"index": 3, **PREFIX}]
"""Every kind of part once."""


def hybrid(model: Any, blocks: Any = HYBRID, **options: Any) -> PeftModel:
    """`model` with adapters whose values are large enough to matter."""
    peft_model = get_peft_model(model, HybridConfig(blocks=blocks, **options))
    stir(peft_model)
    return peft_model


def stir(model: Any, std: float = 0.5, seed: int = 1) -> None:
    """Random values in every parameter that adapters added."""
    random = torch.Generator().manual_seed(seed)
    added = adapter_names(model)
    for name, parameter in model.named_parameters():
        if name in added:
            parameter.data.copy_(std * torch.randn(parameter.shape, generator=random))


def added(model: Any) -> dict[str, Tensor]:
    """The parameters that adapters added, by name."""
    names = adapter_names(model)
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


def logits(model: Any, **batch: Tensor) -> Tensor:
    batch = batch or inputs(model)
    with torch.no_grad():
        result: Tensor = model.eval()(**batch).logits
    return result


def inputs(model: Any, **sizes: int) -> dict[str, Tensor]:
    """A batch without labels, its last row padded on the right by 2."""
    return {key: value for key, value in batch_for(model, **sizes).items() if key != "labels"}


def new(name: str, implementation: str | None = None, **options: Any) -> Any:
    return tiny(name, **({"attn_implementation": implementation} if implementation else {}), **options)
