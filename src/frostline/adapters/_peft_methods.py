"""PEFT's own methods by name: which there are, and their options."""

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

from frostline.core.errors import UserError, first_line, unknown_name
from frostline.core.settings import first_error
from frostline.plan import Peft

NORMS, RANKED, RESCALED = "ln_tuning", "adalora", "ia3"
"""Methods that need something of their own: they go beside norms, share out ranks, tell inputs from outputs."""

_DECOMPOSES = "it begins from a decomposition of the frozen weights, which another machine computes otherwise"
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
    "poly": "it wants a task id with every row",
    "shadow": "it runs beside the whole model",
    "xlora": "it mixes adapters that trained before",
    "trainable_tokens": "it trains embeddings: give embeddings: full",
    "prefix_tuning": "it lies in the model's cache: take mode: prefix",
}
"""Methods of PEFT that adapt modules, or sound so, and cannot be had on blocks here."""

_TARGETS = "targets says it"
_RESERVED: Mapping[str, str] = {
    "target_modules": _TARGETS,
    "exclude_modules": _TARGETS,
    "feedforward_modules": _TARGETS,
    "target_parameters": _TARGETS,
    "layers_to_transform": "the plan's blocks say it",
    "layers_pattern": "the plan's blocks say it",
    "layer_replication": "a plan copies no blocks",
    "rank_pattern": "give blocks options of their own",
    "alpha_pattern": "give blocks options of their own",
    "modules_to_save": "a plan's blocks, final_norm and head say what trains whole",
    "trainable_token_indices": "a plan's embeddings say it",
    "ensure_weight_tying": "embeddings are not adapted",
    "bias": "biases train by mode: partial, train: biases",
    "use_dora": "take method: dora",
    "total_step": "the length of the training says it",
    "fan_in_fan_out": "the model says it",
    "loftq_config": _DECOMPOSES,
    "eva_config": _DECOMPOSES,
    "corda_config": _DECOMPOSES,
    "lora_ga_config": _DECOMPOSES,
    "velora_config": "it changes how gradients are stored: leave it out",
}


@cache
def methods() -> tuple[str, ...]:
    """The names that a plan's `method` may have: those of PEFT's methods that adapt modules one by one, and `dora`."""
    tuners = PEFT_TYPE_TO_TUNER_MAPPING.items()
    adapting = [kind for kind, tuner in tuners if isinstance(kind, PeftType) and issubclass(tuner, BaseTuner)]
    return tuple(sorted({kind.value.lower() for kind in adapting} - REFUSED.keys() | {"dora"}))


def tuner_of(method: str) -> type[BaseTuner]:
    """PEFT's class that puts a method in. Raises `UserError` for an unknown one, or one that cannot go on blocks."""
    tuner: type[BaseTuner] = PEFT_TYPE_TO_TUNER_MAPPING[_type(method)]
    return tuner


def check_options(mode: Peft) -> dict[str, Any]:
    """A method's options, of the types that PEFT's config gives them. Raises `UserError` with the option at fault."""
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
            raise UserError(f"{where}: {name}: {first_error(error)}") from None
    if isinstance(way := checked.get("init_lora_weights"), str) and way not in ("gaussian", "orthogonal"):
        raise UserError(f"{where}: init_lora_weights: {way}: {_DECOMPOSES}: give true, gaussian or orthogonal")
    return checked


def peft_config(mode: Peft, modules: Sequence[str], feed_forward: Sequence[str], transposed: bool) -> PeftConfig:
    """PEFT's config of `mode` on `modules`; `feed_forward` are those whose input IA3 scales, and `transposed` says
    that the model keeps its matrices as [in, out].

    Raises `UserError` when PEFT takes the options for wrong.
    """
    kind = _type(mode.method)
    given = check_options(mode)
    given["target_modules"] = list(modules)
    if mode.method == "dora":
        given["use_dora"] = True
    if mode.method == RESCALED:
        given["feedforward_modules"] = list(feed_forward)
    if mode.method == RANKED:  # until training says how long it is
        given["total_step"] = given.get("tinit", 0) + given.get("tfinal", 0) + 1
    if "fan_in_fan_out" in _option_types(mode.method):
        given["fan_in_fan_out"] = transposed
    try:
        config: Any = PEFT_TYPE_TO_CONFIG_MAPPING[kind](**given)
    except (ValueError, TypeError) as error:
        raise UserError(f"{mode.method}: options: {first_line(error)}") from None
    if mode.method == RANKED and not 0 < config.target_r < config.init_r:
        raise UserError(f"adalora: options: target_r: {config.target_r}: give a rank below init_r ({config.init_r})")
    return config


def regularises(mode: Peft) -> bool:
    """Whether a method adds to the model's loss."""
    return mode.method == RANKED and bool(check_options(mode).get("orth_reg_weight", True))


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Inside, PEFT does not warn: of what is checked here, of speed, and by attributes that transformers has left."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"peft\.")
        yield


def _type(method: str) -> PeftType:
    if reason := REFUSED.get(method):
        raise UserError(f"adapter method '{method}' cannot be had on blocks: {reason}")
    if method not in methods():
        raise unknown_name("adapter method", method, methods())
    return PeftType("LORA" if method == "dora" else method.upper())


@cache
def _option_types(method: str) -> dict[str, TypeAdapter[Any]]:
    config = PEFT_TYPE_TO_CONFIG_MAPPING[_type(method)]
    hints = typing.get_type_hints(config)
    types: dict[str, TypeAdapter[Any]] = {}
    for field in dataclasses.fields(config):
        with suppress(PydanticUserError):  # what is no plain data
            types[field.name] = TypeAdapter(hints[field.name])
    return types


@cache
def _own_fields() -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(PeftConfig))


def _not_an_option(name: str, method: str, known: set[str]) -> UserError:
    if name in _own_fields() | _RESERVED.keys():
        reason = _RESERVED.get(name, "it is not for a plan to say")
        return UserError(f"{method}: options: {name}: {reason}")
    return unknown_name(f"option of {method}", name, known)
