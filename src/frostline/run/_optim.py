"""Which optimizers and learning-rate schedules of transformers a run can have."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from inspect import signature
from typing import Any

from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType

from frostline.core.errors import ConfigError
from frostline.cost import Workload, optim_names
from frostline.engine import Flora
from frostline.plan import FloraOptions, OptimArgs

_OWN_STEP = "it steps layer by layer, in place of the trainer's own step"
_OWN_GROUPS = "it chooses its tensors itself, and here the plan does"
_TWO_WEIGHTS = "it trains other weights than it evaluates, and a delta holds one of them"
_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "torch_xla": ("adamw_torch_xla",),
    "torch_npu": ("adamw_torch_npu_fused",),
    "torchdistx": ("adamw_anyprecision",),
    "torchao": ("adamw_torch_4bit", "adamw_torch_8bit"),
    "grokadamw": ("grokadamw",),
    "optimi": ("stable_adamw",),
    "bitsandbytes": (
        "adamw_bnb_8bit",
        "adamw_8bit",
        "ademamix",
        "ademamix_8bit",
        "lion_8bit",
        "lion_32bit",
        "paged_adamw_32bit",
        "paged_adamw_8bit",
        "paged_ademamix_32bit",
        "paged_ademamix_8bit",
        "paged_lion_32bit",
        "paged_lion_8bit",
        "rmsprop_bnb",
        "rmsprop_bnb_8bit",
        "rmsprop_bnb_32bit",
    ),
}
_ARGS: Mapping[str, tuple[str, ...]] = {
    "sgd": ("momentum", "dampening", "nesterov"),
    "adagrad": ("lr_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
    "ademamix": ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3"),
    "adamw_torch_4bit": ("block_size", "bf16_stochastic_round"),
    "adamw_torch_8bit": ("block_size", "bf16_stochastic_round"),
    "adamw_anyprecision": ("use_kahan_summation", "momentum_dtype", "variance_dtype", "compensation_buffer_dtype"),
    "grokadamw": ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping"),
    "stable_adamw": ("decouple_lr", "max_lr", "kahan_sum"),
}
"""The arguments that transformers reads from `optim_args`, by optimizer; it ignores all others in silence."""

_NUMBERS = ("momentum", "dampening", "lr_decay", "eps", "alpha", "beta1", "beta2", "beta3", "t_alpha", "t_beta3")
_ADAM_FIELDS = ("adam_beta1", "adam_beta2", "adam_epsilon")
_NEEDED_KWARGS: Mapping[str, tuple[str, ...]] = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}
_BY_TRAINER = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
_FOLLOW_LOSS = ("reduce_lr_on_plateau", "greedy")


def check_optim(optim: str) -> None:
    """Raise `ValueError` for a name that is unknown, or an optimizer that cannot train here."""
    if optim not in optim_names():
        raise ValueError(
            "unknown optimizer: use adamw_torch_fused, sgd, adafactor, flora, or another name of "
            "transformers' TrainingArguments.optim"
        )
    reason = _why_not(optim)
    if reason is not None:
        raise ValueError(f"{reason}: use adamw_torch_fused, sgd, adafactor or flora")


def check_optim_args(optim: str, given: OptimArgs | None, training: Mapping[str, Any]) -> None:
    """Raise `ValueError` for arguments that the optimizer does not read."""
    if isinstance(given, dict):
        known = _ARGS.get(optim, _ARGS["ademamix"] if "ademamix" in optim else ())
        for name in given:
            if name not in known:
                right = f"it reads {', '.join(known)}" if known else "it reads none, leave optim_args out"
                raise ValueError(f"optim_args: {optim} does not read '{name}': {right}")
            if name in _NUMBERS and not _is_number(given[name]):
                raise ValueError(f"optim_args: {name}: it should be a number (given: {given[name]!r})")
    if "adam" not in optim and "lion" not in optim:
        for name in _ADAM_FIELDS:
            if name in training:
                raise ValueError(f"training.{name}: optim={optim} does not read it: leave it out")


def check_schedule(name: str, training: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a learning-rate schedule that is unknown, or needs arguments that are not given."""
    known = [kind.value for kind in SchedulerType]
    if name not in known:
        usable = [kind for kind in known if kind not in _FOLLOW_LOSS]
        raise ValueError(f"lr_scheduler_type: unknown schedule '{name}': use one of {', '.join(usable)}")
    if name in _FOLLOW_LOSS:
        raise ValueError(
            f"lr_scheduler_type: {name} follows the losses of evaluations, and a resumed run would not: use cosine, "
            "linear or constant"
        )
    given = training.get("lr_scheduler_kwargs") or {}
    needed = _NEEDED_KWARGS.get(name, ())
    if needed and not any(key in given for key in needed):
        raise ValueError(
            f"lr_scheduler_type: {name} needs training.lr_scheduler_kwargs.{needed[0]}: give it, or use cosine"
        )
    if given and name in ("constant", "constant_with_warmup"):
        raise ValueError(f"training.lr_scheduler_kwargs: lr_scheduler_type={name} reads none: leave them out")
    read = [
        key for key in signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]).parameters if key not in _BY_TRAINER
    ]
    for key in given:
        if key not in read:
            right = f"use {', '.join(read)}" if read else "leave it out"
            raise ValueError(f"training.lr_scheduler_kwargs.{key}: lr_scheduler_type={name} does not read it: {right}")


def optim_arguments(optim: str, given: OptimArgs | None) -> dict[str, Any]:
    """`optim` and `optim_args` as `TrainingArguments` takes them; those of FLORA go to the trainer (`flora_of`)."""
    if optim == "flora":
        return {"optim": "sgd"}
    pairs = given if isinstance(given, dict) else {}
    return {"optim": optim, "optim_args": ",".join(f"{key}={value}" for key, value in pairs.items()) or None}


def flora_of(optim: str, given: OptimArgs | None, seed: int) -> tuple[type[Flora], dict[str, Any]] | None:
    """FLORA's class and arguments as a trainer takes them; None for an optimizer that transformers knows by name."""
    options = given if isinstance(given, FloraOptions) else None
    return (Flora, {"options": options, "seed": seed}) if optim == "flora" else None


def check_workload(workload: Workload) -> None:
    """Raise `ConfigError` for a workload whose optimizer cannot train here."""
    try:
        check_optim(workload.optim)
        check_optim_args(workload.optim, workload.optim_args, {})
    except ValueError as error:
        raise ConfigError(f"optim: {error}") from None


def _is_number(value: Any) -> bool:
    try:
        return float(value) is not None
    except (TypeError, ValueError):
        return False


def _why_not(optim: str) -> str | None:
    if "layerwise" in optim or optim in ("lomo", "adalomo"):
        return _OWN_STEP
    if optim.startswith(("galore", "apollo")):
        return _OWN_GROUPS
    if optim.startswith("schedule_free"):
        return _TWO_WEIGHTS
    for package, names in _PACKAGES.items():
        if optim in names and find_spec(package) is None:
            return f"it needs the package {package}, which is not installed"
    return None
