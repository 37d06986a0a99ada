"""What an optimizer keeps between steps, in bytes, by the name that `TrainingArguments` gives it (`optim`).

    AdamW and what is like it     two float32 numbers for each trained one
    SGD                           none; with momentum one
    Adagrad, RMSprop, Lion        one; RMSprop one more for `momentum`, one more if `centered`
    AdEMAMix                      three
    8-bit                         one byte for each such number, and a float32 scale for each block of 256; a tensor of
                                  fewer than 4096 numbers stays in float32 (bitsandbytes)
    Adafactor                     of a matrix [n, m] means over its rows and its columns, n + m numbers; of other
                                  tensors one number for each
    FLORA                         `_flora`

Paged optimizers count as if nothing were paged out. What an optimizer computes with during its step is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from transformers.training_args import OptimizerNames

from frostline.core.errors import unknown_name
from frostline.cost._flora import state_numbers
from frostline.cost._workload import FLOAT, Workload

_STATES = {
    "adamw_torch": 2,
    "adamw_torch_fused": 2,
    "adamw_torch_xla": 2,
    "adamw_torch_npu_fused": 2,
    "adamw_anyprecision": 2,
    "stable_adamw": 2,
    "paged_adamw_32bit": 2,
    "adamw_torch_8bit": 2,
    "adamw_bnb_8bit": 2,
    "adamw_8bit": 2,
    "paged_adamw_8bit": 2,
    "ademamix": 3,
    "ademamix_8bit": 3,
    "paged_ademamix_32bit": 3,
    "paged_ademamix_8bit": 3,
    "lion_32bit": 1,
    "lion_8bit": 1,
    "paged_lion_32bit": 1,
    "paged_lion_8bit": 1,
    "adagrad": 1,
    "rmsprop": 1,
    "rmsprop_bnb": 1,
    "rmsprop_bnb_32bit": 1,
    "rmsprop_bnb_8bit": 1,
    "sgd": 0,
}
"""Tensors of a parameter's own shape that are kept for it."""

_ADAMW = 2
_BLOCK, _LEAST_NUMBERS = 256, 4096
_NO = (None, "", 0, "0", "0.0", False, "false", "False")


def optim_names() -> tuple[str, ...]:
    """Every name that `optim` can have: those of `TrainingArguments`, and `flora`."""
    return (*(name.value for name in OptimizerNames), "flora")


def check_optim(optim: str) -> None:
    """Raise `ConfigError` for a name that is none of `optim_names`."""
    if optim not in optim_names():
        raise unknown_name("optim", optim, optim_names())


def optimizer_bytes(shapes: Iterable[Sequence[int]], workload: Workload) -> float:
    """Bytes that the optimizer keeps between steps for trained tensors of these shapes, on all devices together."""
    return sum(_tensor_bytes(shape, workload) for shape in shapes)


def optimizer_notice(optim: str) -> str | None:
    """A line for an optimizer whose state is not known, and is counted as that of AdamW."""
    if optim in (*_STATES, "adafactor", "flora"):
        return None
    return f"optim: the memory of the state of {optim} is not known, and is predicted as that of AdamW"


def _tensor_bytes(shape: Sequence[int], workload: Workload) -> float:
    numbers = prod(shape)
    if workload.flora is not None:
        return float(FLOAT * state_numbers(shape, workload.flora))
    if workload.optim == "adafactor":
        return float(FLOAT * (sum(numbers // side for side in shape[-2:]) if len(shape) > 1 else numbers))
    each = _STATES.get(workload.optim, _ADAMW)
    options = workload.optim_args if isinstance(workload.optim_args, dict) else {}
    if workload.optim in ("sgd", "rmsprop"):
        each += sum(options.get(name) not in _NO for name in ("momentum", "centered"))
    narrow = "8bit" in workload.optim and numbers >= _LEAST_NUMBERS
    return each * numbers * (1 + FLOAT / _BLOCK if narrow else FLOAT)
