"""Whether a config or a tokenizer can be used: damaged ones are refused before anything is made from them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from frostline.core.errors import UnsupportedModel

MOST: Mapping[re.Pattern[str], int] = {
    re.compile(r"(^|_)(layers?|blocks?)$|^n_layer"): 1_000,
    re.compile(r"(^|_)(heads?|experts?)$"): 100_000,
    re.compile(r"_(size|dim|rank)$|^d_|^n_(embd|inner)$"): 2**24,
    re.compile(""): 2**63,
}
"""Names of sizes -> the most that is used; the first pattern counts. Known models have at most 126 layers, 400 experts
and a vocabulary of 2**20. Larger values end in an overflow, or take all of the memory or of the time: even a model
without weights has modules for each layer."""
_SIZES = ("hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads")
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")


def check_config(config: Any, name: str) -> None:
    """Raise `UnsupportedModel` for values in the config of model `name` that no model can have."""
    for problem in _problems(config):
        raise UnsupportedModel(f"model '{name}': config.json: {problem}: correct it there")


def _problems(config: Any) -> Iterator[str]:
    architectures = config.architectures
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(one, str) for one in architectures)
    ):
        yield f"architectures must be a list of names, found {_shown(architectures)}"
    for part in _parts(config):
        dtype = getattr(part, "dtype", None)
        if not (dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)):
            yield f"dtype must be a floating-point type such as 'float32', found {_shown(dtype)}"
        labels = getattr(part, "id2label", None) or {}
        if not isinstance(labels, Mapping) or sorted(map(str, labels)) != sorted(map(str, range(len(labels)))):
            yield f"id2label must have a name for each number from 0 on, found {_shown(labels)}"
        yield from _wrong_sizes(part)
        yield from _unknown_names(part)


def _parts(config: Any) -> list[Any]:
    """The config, and those of its text model and its other parts."""
    parts = [config, *(getattr(config, name, None) for name in config.sub_configs)]
    return [part for part in parts if isinstance(part, PreTrainedConfig)]


def _unknown_names(config: Any) -> Iterator[str]:
    for key in _ACTIVATIONS:
        name = getattr(config, key, None)
        if isinstance(name, str) and name not in ACT2FN:
            yield f"{key} {_shown(name)} is not known to transformers"
    rope = getattr(config, "rope_parameters", None) or {}
    for one in (rope, *rope.values()) if isinstance(rope, dict) else ():  # there may be one for each type of layer
        kind = one.get("rope_type", "default") if isinstance(one, dict) else "default"
        if kind not in ("default", "axial", *ROPE_INIT_FUNCTIONS):
            yield f"rope_type {_shown(kind)} is not known to transformers"
    for key in ("_attn_implementation", "_experts_implementation"):
        code = getattr(config, key, None)
        for one in code.values() if isinstance(code, dict) else (code,):
            if isinstance(one, str) and "/" in one:  # transformers would fetch it from the hub, and run it
                yield f"{key.removeprefix('_')} {_shown(one)} is code of others, which is not run"
    quantized = getattr(config, "quantization_config", None)
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    if method is not None and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        yield f"quantization_config: quant_method {_shown(method)} is not known to transformers"
    padding = getattr(config, "pad_token_id", None)
    if isinstance(padding, int) and padding < -1:  # some models without a pad token have -1
        yield f"pad_token_id must be the number of a token, found {padding}"


def _wrong_sizes(config: Any) -> Iterator[str]:
    values = config.to_dict()
    for key in _SIZES:
        # Some families have none, or one for each part.
        value = values.get(config.attribute_map.get(key, key))
        if isinstance(value, bool | float | str) or (isinstance(value, int) and value < 1):
            yield f"{key} must be a whole number from 1 on, found {_shown(value)}"
    for key, value in values.items():
        if isinstance(value, int):
            most = next(most for pattern, most in MOST.items() if pattern.search(key))
            if value > most:
                yield f"{key} is too large: {_shown(value)}: at most {most} can be used"


def check_tokenizer(tokenizer: Any, name: str) -> None:
    """Raise `UnsupportedModel` for a tokenizer of the model `name` that cannot make tokens of a text."""
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, int | float) or longest < 1:
        raise UnsupportedModel(
            f"tokenizer '{name}': tokenizer_config.json: model_max_length must be a number of tokens, found "
            f"{_shown(longest)}: correct it there"
        )
    if set(tokenizer.get_vocab()) <= {str(token) for token in tokenizer.added_tokens_decoder.values()}:
        raise UnsupportedModel(
            f"tokenizer '{name}': it has no tokens but special ones, since its vocabulary is missing: add the files "
            "that the tokenizer's save_pretrained writes (tokenizer.json)"
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
