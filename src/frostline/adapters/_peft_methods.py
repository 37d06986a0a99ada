"""PEFT's own methods: their names and options."""

from __future__ import annotations

import dataclasses
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from frostline.core.errors import ConfigError, first_line, unknown_name
from frostline.core.settings import first_error
from frostline.plan import Peft

NORMS, RANKED, RESCALED = "ln_tuning", "adalora", "ia3"
"""Methods that need special handling: ln_tuning trains norms, adalora divides ranks, ia3 scales inputs or outputs."""

_DECOMPOSES = "it starts from a decomposition of the frozen weights, whose result differs between machines"
_SHARES = "its parameters belong to several blocks at once"
REFUSED: Mapping[str, str] = {
    "adamss": _DECOMPOSES,
    "frod": _DECOMPOSES,
    "osf": _DECOMPOSES,
    "psoft": _DECOMPOSES,
    "lily": _SHARES,
    "tinylora": _SHARES,
    "unilora": _SHARES,
    "vblora": _SHARES,
    "poly": "it needs a task id in every row",
    "shadow": "it runs beside the whole model",
    "xlora": "it mixes adapters that are already trained",
    "trainable_tokens": "it trains embeddings: use embeddings: full",
    "prefix_tuning": "it works through the model's key-value cache: use mode: prefix",
}
"""Methods of PEFT that cannot be used on single blocks here, and why."""

_TARGETS = "use targets"
_RESERVED: Mapping[str, str] = {
    "target_modules": _TARGETS,
    "exclude_modules": _TARGETS,
    "feedforward_modules": _TARGETS,
    "target_parameters": _TARGETS,
    "layers_to_transform": "use the plan's blocks",
    "layers_pattern": "use the plan's blocks",
    "layer_replication": "a plan cannot copy blocks: leave it out",
    "rank_pattern": "give each block its own options",
    "alpha_pattern": "give each block its own options",
    "modules_to_save": "use mode: full for a block, final_norm or head",
    "trainable_token_indices": "use the plan's embeddings",
    "ensure_weight_tying": "embeddings get no adapter: leave it out",
    "bias": "use mode: partial with train: biases",
    "use_dora": "use method: dora",
    "total_step": "it follows from the length of the training: leave it out",
    "fan_in_fan_out": "it follows from the model: leave it out",
    "loftq_config": _DECOMPOSES,
    "eva_config": _DECOMPOSES,
    "corda_config": _DECOMPOSES,
    "lora_ga_config": _DECOMPOSES,
    "velora_config": "it changes how gradients are stored: leave it out",
}


@cache
def methods() -> tuple[str, ...]:
    """The names that a plan's `method` may have: PEFT's methods that adapt modules one by one, and `dora`."""
    tuners = PEFT_TYPE_TO_TUNER_MAPPING.items()
    adapting = [kind for kind, tuner in tuners if isinstance(kind, PeftType) and issubclass(tuner, BaseTuner)]
    return tuple(sorted({kind.value.lower() for kind in adapting} - REFUSED.keys() | {"dora"}))


def tuner_of(method: str) -> type[BaseTuner]:
    """PEFT's class of a method. Raises `ConfigError` for one that is unknown, or cannot be used on blocks."""
    tuner: type[BaseTuner] = PEFT_TYPE_TO_TUNER_MAPPING[_type(method)]
    return tuner


def check_options(mode: Peft) -> dict[str, Any]:
    """A method's options, in the types of PEFT's config. Raises `ConfigError` that names the wrong option."""
    types = _option_types(mode.method)
    where = f"{mode.method}: options"
    known = set(types) - _own_fields() - _RESERVED.keys()
    checked = {}
    for name, value in mode.options.items():
        if name not in known:
            raise _not_an_option(name, mode.method, known)
        try:
            checked[name] = types[name].validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"{where}: {name}: {first_error(error)}") from None
    if isinstance(start := checked.get("init_lora_weights"), str) and start not in ("gaussian", "orthogonal"):
        raise ConfigError(f"{where}: init_lora_weights: {start}: {_DECOMPOSES}: use true, gaussian or orthogonal")
    return checked


def peft_config(mode: Peft, modules: Sequence[str], feed_forward: Sequence[str], transposed: bool) -> PeftConfig:
    """PEFT's config of a mode.

    Args:
        mode: the method and its options.
        modules: the paths of the modules that it adapts.
        feed_forward: those of them whose input IA3 scales.
        transposed: whether the model keeps its matrices as [in, out].

    Raises `ConfigError` when an option is wrong.
    """
    kind = _type(mode.method)
    given = check_options(mode)
    given["target_modules"] = list(modules)
    if mode.method == "dora":
        given["use_dora"] = True
    if mode.method == RESCALED:
        given["feedforward_modules"] = list(feed_forward)
    if mode.method == RANKED:  # a stand-in: `begin_ranks` sets it when the length of the training is known
        given["total_step"] = given.get("tinit", 0) + given.get("tfinal", 0) + 1
    if "fan_in_fan_out" in _option_types(mode.method):
        given["fan_in_fan_out"] = transposed
    try:
        config: Any = PEFT_TYPE_TO_CONFIG_MAPPING[kind](**given)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{mode.method}: options: {first_line(error)}") from None
    if mode.method == RANKED and not 0 < config.target_r < config.init_r:
        raise ConfigError(f"adalora: options: target_r: {config.target_r}: use a rank below init_r ({config.init_r})")
    return config


def regularises(mode: Peft) -> bool:
    """Whether a method adds to the model's loss."""
    return mode.method == RANKED and bool(check_options(mode).get("orth_reg_weight", True))


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Inside, PEFT's warnings are off: what they warn of is checked here, concerns speed, or is outdated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"peft\.")
        yield


def _type(method: str) -> PeftType:
    if reason := REFUSED.get(method):
        raise ConfigError(f"adapter method '{method}' cannot be used on single blocks: {reason}")
    if method not in methods():
        raise unknown_name("adapter method", method, methods())
    return PeftType("LORA" if method == "dora" else method.upper())


@cache
def _option_types(method: str) -> dict[str, TypeAdapter[Any]]:
    config = PEFT_TYPE_TO_CONFIG_MAPPING[_type(method)]
    hints = typing.get_type_hints(config)
    types: dict[str, TypeAdapter[Any]] = {}
    for field in dataclasses.fields(config):
        with suppress(PydanticUserError):  # a field that is not plain data
            types[field.name] = TypeAdapter(hints[field.name])
    return types


@cache
def _own_fields() -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(PeftConfig))


def _not_an_option(name: str, method: str, known: set[str]) -> ConfigError:
    if name in _own_fields() | _RESERVED.keys():
        reason = _RESERVED.get(name, "a plan cannot set it: leave it out")
        return ConfigError(f"{method}: options: {name}: {reason}")
    return unknown_name(f"option of {method}", name, known)
