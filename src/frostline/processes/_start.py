"""The process group that a launcher (torchrun, accelerate launch) asks for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import PartialState

from frostline.processes._group import ALONE, Processes


def wanted() -> int:
    """How many processes the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def running() -> Processes:
    """The processes that train together now."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    sends_from_cpu = "cpu" in dist.get_backend_config()
    device = None if sends_from_cpu else torch.accelerator.current_accelerator(check_available=True)
    return Processes(dist.get_rank(), dist.get_world_size(), device)


@contextmanager
def started(seconds: int | None = None) -> Iterator[Processes]:
    """Inside this context the processes that the launcher has started are a group. It ends with the context.

    Args:
        seconds: how long one of them waits for the others before it gives up; None: as long as torch does by default.
    """
    if wanted() == 1 or dist.is_initialized():
        yield running()
        return
    PartialState(cpu=not torch.accelerator.is_available(), **_waiting(seconds))
    yield running()
    # Without this a process that is still at work finds the connections of one that ended closed. After an error the
    # process ends at once, so that the others see it.
    running().wait()
    dist.destroy_process_group()


def _waiting(seconds: int | None) -> dict[str, timedelta]:
    return {} if seconds is None else {"timeout": timedelta(seconds=seconds)}
