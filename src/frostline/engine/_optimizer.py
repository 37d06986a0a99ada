"""Change which parameters an optimizer trains while it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from frostline.core.errors import ConfigError


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
