"""Parts of one model in different dtypes: each part computes in the dtype of its own tensors.

Trained tensors are float32, because an AdamW step of 5e-5 changes almost nothing in bfloat16. Frozen ones keep the
dtype of the checkpoint. Where a part gets inputs of another dtype, they are converted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from frostline.adapters import adapter_names
from frostline.anatomy import Anatomy


def part_modules(model: nn.Module, anatomy: Anatomy) -> list[nn.Module]:
    """The blocks, and the modules that hold the tensors of the final norm and the head."""
    names = dict.fromkeys(block.name for block in anatomy.blocks)
    names |= dict.fromkeys(tensor.name.rpartition(".")[0] for tensor in (*anatomy.final_norm, *anatomy.head))
    names |= dict.fromkeys(linear.name for linear in anatomy.head_linears)
    return [model.get_submodule(name) for name in names]


def align_dtypes(model: nn.Module, anatomy: Anatomy) -> list[RemovableHandle]:
    """Where `model` has several floating-point dtypes, add hooks that convert the inputs of each part to its dtype."""
    if len({p.dtype for p in model.parameters() if p.is_floating_point()}) < 2:
        return []
    parts = [(module, _own_dtype(module)) for module in part_modules(model, anatomy)]
    return [
        module.register_forward_pre_hook(_Cast(dtype), with_kwargs=True) for module, dtype in parts if dtype is not None
    ]


class _Cast:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return self._cast(args), self._cast(kwargs)

    def _cast(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if not value.is_floating_point() or value.dtype == self.dtype:
                return value
            lowest = torch.finfo(self.dtype).min
            if lowest > torch.finfo(value.dtype).min:
                # An additive mask holds the lowest float32, which would become -inf in bfloat16.
                value = value.clamp(min=lowest)
            return value.to(self.dtype)
        if type(value) in (tuple, list):
            return type(value)(self._cast(item) for item in value)
        if type(value) is dict:
            return {key: self._cast(item) for key, item in value.items()}
        return value


def _own_dtype(module: nn.Module) -> torch.dtype | None:
    # Adapters do not count: they are float32 and convert their own inputs.
    added = adapter_names(module)
    dtypes = [
        parameter.dtype
        for name, parameter in module.named_parameters()
        if parameter.is_floating_point() and name not in added
    ]
    return dtypes[0] if dtypes else None
