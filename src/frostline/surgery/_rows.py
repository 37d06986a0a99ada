"""Train some rows of a matrix and freeze the others, by a parametrization whose parameter is the trained rows alone.

Masking the gradient is not enough: weight decay and the state of the optimizer would still change a masked row.

Shapes: R trained rows of a matrix of N rows.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from frostline.anatomy import Trained
from frostline.core.seeding import derive_seed


class TrainedRows(nn.Module):
    """weight [N, ...]: the frozen matrix, with its rows at `index` [R] replaced by the trained rows [R, ...]."""

    index: Tensor
    frozen: Tensor

    def __init__(self, weight: Tensor, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("frozen", weight.detach().clone(), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        return self.frozen.index_copy(0, self.index, rows)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.index_select(0, self.index)


def train_rows(model: nn.Module, trained: Trained) -> str:
    """Let only randomly drawn rows of one tensor train. Returns the name of the parameter that holds them."""
    path, _, name = trained.tensor.name.rpartition(".")
    module = model.get_submodule(path)
    weight = cast(Tensor, getattr(module, name))
    generator = torch.Generator().manual_seed(derive_seed(trained.rows_seed, trained.tensor.name))
    index = torch.randperm(weight.shape[0], generator=generator)[: trained.trained_rows].sort().values
    parametrize.register_parametrization(module, name, TrainedRows(weight, index.to(weight.device)))
    return rows_name(trained.tensor.name)


def rows_name(tensor: str) -> str:
    """The parameter that holds the trained rows of a tensor."""
    path, _, name = tensor.rpartition(".")
    return f"{path}.parametrizations.{name}.original"


def fold_rows(model: nn.Module) -> None:
    """Put the trained rows back into ordinary matrices, in place."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            # torch removes the matrix from the class, which a deep copy shares with the module that it was made of.
            shared = type(module)
            own = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
            module.__class__ = type(shared.__name__, shared.__bases__, own)
            for name, chain in list(module.parametrizations.items()):  # type: ignore[union-attr, operator]
                if any(isinstance(step, TrainedRows) for step in chain):
                    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
