"""Where models compute on this machine, and in what precision."""

from __future__ import annotations

from typing import Any

import torch

from frostline.checkpoints import bfloat16_is_fast


def device() -> torch.device:
    """Where models compute on this machine: its accelerator, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def uses_bfloat16(bf16: bool | None) -> bool:
    """Whether a run computes under bfloat16 autocast on this machine; None: where the hardware is fast at it."""
    return bfloat16_is_fast() if bf16 is None else bf16


def autocast(bf16: bool | None) -> Any:
    """The autocast under which a run with this setting computes, on this machine's device."""
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=uses_bfloat16(bf16))
