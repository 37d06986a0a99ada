"""The parameter groups of an optimizer: one for each pair of weight decay and learning-rate scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from frostline.core.errors import ConfigError
from frostline.engine._left import LeftState
from frostline.plan import Rate

BLOCK = "block"
"""The entry of a group that names its block, where a schedule sets the learning rate of each block."""


def parameter_groups(
    trainer: Any, model: nn.Module, lr_scales: Mapping[str, float], blocks: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """The groups of the parameters of `model` that train.

    Args:
        trainer: a `transformers.Trainer`, for its learning rate and weight decay.
        model: what trains.
        lr_scales: name of a parameter -> its learning-rate scale; 1 for others.
        blocks: the name with which the parameters of a block begin -> the block, where each has its own group.
    """
    args, decayed = trainer.args, set(trainer.get_decay_parameter_names(model))
    groups: dict[tuple[bool, float, int | None], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            block = next((index for start, index in (blocks or {}).items() if name.startswith(start)), None)
            groups.setdefault((name in decayed, lr_scales.get(name, 1.0), block), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": args.weight_decay if decays else 0.0,
            "lr": args.learning_rate * scale,
            **({} if blocks is None else {BLOCK: block}),
        }
        for (decays, scale, block), parameters in groups.items()
    ]


def scale_groups(optimizer: torch.optim.Optimizer, scales: Mapping[int, float]) -> None:
    """Give parameters of an optimizer that has made no step their learning-rate scales, in groups of their own.

    Args:
        optimizer: whose groups are divided, in place.
        scales: id of a parameter -> its learning-rate scale; 1 for others.
    """
    for group in list(optimizer.param_groups):
        by_scale: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_scale.setdefault(scales.get(id(parameter), 1.0), []).append(parameter)
        own, *others = by_scale or {1.0: []}
        rate = group["lr"]
        group["params"], group["lr"] = by_scale.get(own, []), rate * own
        for scale in others:
            optimizer.add_param_group({**group, "params": by_scale[scale], "lr": rate * scale})


def regroup(
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    groups: list[dict[str, Any]],
    *,
    rate: Rate | None = None,
    left: LeftState | None = None,
) -> None:
    """Give the optimizer other parameter groups, in place.

    Parameters that still train keep their state; the state of all others is freed, or kept in `left`.

    Args:
        optimizer: whose groups are replaced.
        scheduler: its learning-rate scheduler, which continues from the current step.
        groups: the new groups. `lr` of each is its learning rate before the scheduler's factor.
        rate: the factors of a schedule that sets the learning rates itself.
        left: gets the state of parameters that no longer train, and has that of those that train again.

    Raises `ConfigError` for a learning-rate schedule that is not a function of the step.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)
    if not isinstance(scheduler, LambdaLR):
        raise ConfigError(
            f"lr_scheduler_type: {type(scheduler).__name__} cannot continue under another plan: use cosine, linear or "
            "constant"
        )
    share = scheduler.lr_lambdas[0]
    kept = {parameter for group in groups for parameter in group["params"]}
    for parameter in [parameter for parameter in optimizer.state if parameter not in kept]:
        state = optimizer.state.pop(parameter)
        if left is not None:
            left.put(parameter, state)
    if left is not None:
        for parameter in kept - set(optimizer.state):
            if (state := left.take(parameter)) is not None:
                optimizer.state[parameter] = state
    optimizer.param_groups.clear()
    for group in groups:
        optimizer.add_param_group({**group, "initial_lr": group["lr"]})
    scheduler.base_lrs = [group["lr"] for group in groups]
    scheduler.lr_lambdas = [share] * len(groups) if rate is None else factors(rate, groups)
    for group, base, factor in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * factor(scheduler.last_epoch)


def factors(rate: Rate, groups: list[dict[str, Any]]) -> list[Callable[[int], float]]:
    """The factor of the learning rate of each group, as a function of the optimizer step."""

    def of(block: int | None) -> Callable[[int], float]:
        return lambda step: rate(step, block)

    return [of(group[BLOCK]) for group in groups]
