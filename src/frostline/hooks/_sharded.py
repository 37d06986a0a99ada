"""Tensors of which each process that trains holds a part (DTensor): FSDP2, tensor parallelism.

What is called here on such a tensor is a collective operation: all processes have to call it, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of `tensor`."""
    return isinstance(tensor, DTensor)


def any_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether this process holds only a part of one of `tensors`."""
    return any(map(is_sharded, tensors))


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`, in this process; itself where it is not sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, other: Tensor) -> Tensor:
    """This process's part of `tensor`, which all processes have, sharded as `other` is; all of it where that is not."""
    if not isinstance(other, DTensor):
        return tensor
    # Without a source, each process takes its part of its own copy, and nothing is sent.
    given = tensor.to(other.device_mesh.device_type)
    return cast(Tensor, distribute_tensor(given, other.device_mesh, other.placements, src_data_rank=None))


def share_again(model: nn.Module) -> None:
    """Let each process hold its part alone again, where a pass without a backward pass left more gathered (FSDP2)."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of `tensor`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that this process holds of `tensors`."""
    return sum(own_part(tensor).nbytes for tensor in tensors)
