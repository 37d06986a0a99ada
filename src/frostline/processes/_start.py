"""The process group that a launcher (torchrun, accelerate launch) asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from frostline.core.launched import several
from frostline.processes._errors import is_of_all
from frostline.processes._group import ALONE, Processes


def running() -> Processes:
    """The processes that train together now."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    sends_from_cpu = "cpu" in dist.get_backend_config()
    device = None if sends_from_cpu else torch.accelerator.current_accelerator(check_available=True)
    return Processes(dist.get_rank(), dist.get_world_size(), device)


def start(seconds: int | None = None) -> Processes:
    """Make the processes that the launcher has started a group, if they are none yet.

    Args:
        seconds: how long one of them waits for the others before it gives up; None: as long as torch does by default.
    """
    if several() and not dist.is_initialized():
        from accelerate import PartialState

        waiting = {} if seconds is None else {"timeout": timedelta(seconds=seconds)}
        PartialState(cpu=not torch.accelerator.is_available(), **waiting)
        assert dist.is_initialized(), "a group that has ended does not begin again"
    return running()


@contextmanager
def ending() -> Iterator[None]:
    """The group, if one is made inside this context, ends with it. This process never has another."""
    try:
        yield
    except Exception as error:
        if is_of_all(error):
            _end()
        raise  # after an error of its own the process ends at once, so that the others see it
    running().wait()  # without this a process that is still at work finds the connections of one that ended closed
    _end()


def refuse(error: Exception) -> NoReturn:
    """Raise an error that this process met before the processes became a group, in all of them."""
    with start().together():
        raise error


def _end() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
