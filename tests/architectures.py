"""Tiny random models of every architecture that frostline is tested on, and batches that fit them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

BLOCKS = 4
WIDTH = 32
VOCABULARY = 128

AUTO_CLASSES = {
    "causal": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
    "masked": AutoModelForMaskedLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}


def _config(model_type: str, sizes: dict[str, Any], **overrides: Any) -> PreTrainedConfig:
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return AutoConfig.for_model(model_type, **common | sizes | overrides)


_GROUPED = {"num_key_value_heads": 2}
_GROUPED_OF_8 = {**_GROUPED, "head_dim": 8}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
_RELATIVE = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
}
_T5 = {"d_kv": 8, "d_ff": 64, "num_decoder_layers": 3, "eos_token_id": 1, "decoder_start_token_id": 0}

_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GROUPED),
    "gemma": ("gemma", _GROUPED_OF_8),
    "phi": ("phi", {}),
    "minicpm3": ("minicpm3", {**_LATENT, "num_key_value_heads": 4, "dim_model_base": 16}),
    "mistral": ("mistral", {**_GROUPED, "sliding_window": 4}),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", _GROUPED_OF_8),
    "gemma2": ("gemma2", {**_GROUPED_OF_8, "sliding_window": 4}),
    "gemma3": ("gemma3_text", {**_GROUPED_OF_8, "sliding_window": 4, "sliding_window_pattern": 2}),
    "phi3": ("phi3", _GROUPED),
    "gpt2": ("gpt2", {}),
    "gptj": ("gptj", {"rotary_dim": 4}),
    "gpt_neox": ("gpt_neox", {}),
    "opt": ("opt", {"ffn_dim": 2 * WIDTH, "word_embed_proj_dim": WIDTH}),
    "olmo2": ("olmo2", _GROUPED),
    "starcoder2": ("starcoder2", _GROUPED),
    "mixtral": ("mixtral", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "qwen3_moe",
        {**_GROUPED_OF_8, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
}
_ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "roberta": ("roberta", {}),
    "deberta-v2": ("deberta-v2", _RELATIVE),
    "distilbert": ("distilbert", {"hidden_dim": 2 * WIDTH}),
    "modernbert": ("modernbert", {"local_attention": 4, "cls_token_id": 1, "sep_token_id": 2}),
}
_ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {"t5": ("t5", _T5)}

decoder_names = list(_DECODERS)
encoder_names = list(_ENCODERS)
encoder_decoder_names = list(_ENCODER_DECODERS)

ARCHITECTURES: dict[str, Callable[..., PreTrainedConfig]] = {
    name: partial(_config, model_type, sizes)
    for name, (model_type, sizes) in (_DECODERS | _ENCODERS | _ENCODER_DECODERS).items()
}


def natural_task(name: str) -> str:
    """What the architecture is mostly used for: a key of `AUTO_CLASSES`."""
    if name in _DECODERS:
        return "causal"
    return "classification" if name in _ENCODERS else "seq2seq"


def tiny(
    name: str,
    task: str | None = None,
    seed: int = 0,
    tied: bool | None = None,
    dropout: float = 0.0,
    **config_overrides: Any,
) -> PreTrainedModel:
    """A random model of 4 blocks (t5: 4 in the encoder, 3 in the decoder), width 32 and 128 tokens.

    `task` is a key of `AUTO_CLASSES`, by default the architecture's own; `tied` ties the LM head to the
    embedding or not, by default as the architecture does; `dropout` goes everywhere it has one.
    """
    config = ARCHITECTURES[name](**config_overrides)
    for key, value in config.to_dict().items():
        if ("dropout" in key or "pdrop" in key) and isinstance(value, int | float):
            setattr(config, key, dropout)
    if tied is not None and not config.is_encoder_decoder:
        config.tie_word_embeddings = tied
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AUTO_CLASSES[task or natural_task(name)].from_config(config)
    if tied is False and config.is_encoder_decoder:
        # What loading an untied T5 checkpoint does: both stacks still share one token embedding.
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def batch_for(model: PreTrainedModel, batch: int = 2, length: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs with labels for the model's task; the last row is padded on the right by 2.

    `input_ids` and `attention_mask` are [batch, length]; `labels` are [batch] for a classifier and
    [batch, length] otherwise, -100 where padded.
    """
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, model.config.vocab_size, (batch, length), generator=random)
    mask = torch.ones_like(ids)
    mask[-1, -2:] = 0
    ids = torch.where(mask.bool(), ids, model.config.pad_token_id)
    if "Classification" in type(model).__name__:
        labels = torch.randint(model.config.num_labels, (batch,), generator=random)
    elif model.config.is_encoder_decoder:
        labels = torch.randint(3, model.config.vocab_size, (batch, length), generator=random)
    else:
        labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
