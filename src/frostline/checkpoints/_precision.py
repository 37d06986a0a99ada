"""What dtypes this machine computes in by hardware, and which it imitates."""

from __future__ import annotations

from typing import Any

import torch


def bfloat16_is_fast() -> bool:
    """Whether this machine multiplies matrices in bfloat16 by hardware."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def imitated(dtype: Any) -> bool:
    """Whether models are on a processor here, and it imitates a dtype, in which products of matrices are slow.

    Args:
        dtype: of torch, or its name.
    """
    if torch.accelerator.is_available():
        return False
    name = str(dtype).removeprefix("torch.")
    return (name == "bfloat16" and not bfloat16_is_fast()) or (
        name == "float16" and not torch.cpu._is_amx_fp16_supported()
    )


def kept_dtype(asked: str, own: Any) -> str:
    """The name of the dtype that a model's tensors are kept in.

    Args:
        asked: the name of a dtype; "auto": the checkpoint's own, or float32 where this machine imitates that.
        own: the checkpoint's dtype, or its name.
    """
    if asked != "auto":
        return asked
    return "float32" if imitated(own) else str(own).removeprefix("torch.")
