"""The weight matrices that multiply token vectors: their sizes, and the share of the tokens that each one gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from frostline.anatomy._roles import has_matrix


@dataclass(frozen=True)
class Matrix:
    """One weight matrix, or several of one shape in one tensor. The fields mean the same as those of `Linear`."""

    name: str
    weight: Tensor
    holder: nn.Module
    in_features: int
    out_features: int
    active: float
    copies: int


def matrices(model: nn.Module) -> Iterator[Matrix]:
    """Every weight matrix of the model, in order of registration: linear layers, routers, experts."""
    chosen = _experts_per_token(model)
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            active = min(1.0, chosen / _siblings(model, path))
            yield Matrix(path, module.weight, module, module.in_features, module.out_features, active, 1)
        elif isinstance(module, Conv1D):
            yield Matrix(path, module.weight, module, module.nx, module.nf, 1.0, 1)
        elif not isinstance(module, nn.Embedding | nn.modules.conv._ConvNd):
            yield from _bare(module, path, chosen)


def _bare(module: nn.Module, path: str, chosen: int) -> Iterator[Matrix]:
    """Matrices that are a module's own parameters: a router's [experts, in], fused experts' [experts, out, in]."""
    for name, weight in module.named_parameters(recurse=False):
        if "bias" in name:
            continue
        if weight.ndim == 2 and name == "weight":
            yield Matrix(path, weight, module, weight.shape[1], weight.shape[0], 1.0, 1)
        elif weight.ndim == 3:
            copies, outputs, inputs = weight.shape
            if getattr(module, "is_transposed", False):
                inputs, outputs = outputs, inputs
            active = min(1.0, chosen / copies)
            yield Matrix(f"{path}.{name}", weight, module, inputs, outputs, active, copies)


def _experts_per_token(model: nn.Module) -> int:
    """How many experts work on each token, by the model's routers; 1 in a model without routers."""
    for module in model.modules():
        top_k = getattr(module, "top_k", None)
        if isinstance(top_k, int):
            return top_k
    return 1


def _siblings(model: nn.Module, path: str) -> int:
    """How many experts there are beside the module at `path`, itself included; 1 where it is not an expert."""
    before, found, _ = path.partition(".experts.")
    if not found:
        return 1
    return sum(has_matrix(expert) for expert in model.get_submodule(f"{before}.experts").children())
