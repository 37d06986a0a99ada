"""The parameter groups of an optimizer: one for each pair of weight decay and learning-rate scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from frostline.core.errors import ConfigError


def parameter_groups(trainer: Any, model: nn.Module, lr_scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """The groups of the parameters of `model` that train.

    Args:
        trainer: a `transformers.Trainer`, for its learning rate and weight decay.
        model: what trains.
        lr_scales: name of a parameter -> its learning-rate scale; 1 for others.
    """
    args, decayed = trainer.args, set(trainer.get_decay_parameter_names(model))
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in decayed, lr_scales.get(name, 1.0)), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": args.weight_decay if decays else 0.0,
            "lr": args.learning_rate * scale,
        }
        for (decays, scale), parameters in groups.items()
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


def regroup(optimizer: torch.optim.Optimizer, scheduler: Any, groups: list[dict[str, Any]]) -> None:
    """Give the optimizer other parameter groups, in place.

    Parameters that still train keep their state; the state of all others is freed.

    Args:
        optimizer: whose groups are replaced.
        scheduler: its learning-rate scheduler, which continues from the current step.
        groups: the new groups. `lr` of each is its learning rate before the scheduler's factor.

    Raises `ConfigError` for a learning-rate schedule that is not a function of the step.
    """
    scheduler = getattr(scheduler, "scheduler", scheduler)
    if not isinstance(scheduler, LambdaLR):
        raise ConfigError(
            f"lr_scheduler_type: {type(scheduler).__name__} cannot continue under another plan: use cosine, linear or "
            "constant"
        )
    share = scheduler.lr_lambdas[0]
    kept = {id(parameter) for group in groups for parameter in group["params"]}
    for parameter in [parameter for parameter in optimizer.state if id(parameter) not in kept]:
        del optimizer.state[parameter]
    optimizer.param_groups.clear()
    for group in groups:
        optimizer.add_param_group({**group, "initial_lr": group["lr"]})
    scheduler.base_lrs = [group["lr"] for group in groups]
    scheduler.lr_lambdas = [share] * len(groups)
    for group, base in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
        group["lr"] = base * share(scheduler.last_epoch)
