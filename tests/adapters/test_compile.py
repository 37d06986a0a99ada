"""torch.compile takes a model with adapters as one graph, and computes what the model does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from architectures import batch_for
from grids import slow_but
from hybrids import GATED_LORA, PARALLEL, PREFIX, SERIES, added, hybrid, new
from tolerances import GRADIENT, outputs

MIXED = [
    {"index": 0, **GATED_LORA},
    {"index": 1, **SERIES},
    {"index": 2, **PREFIX},
    {"index": 3, **PREFIX, "gate": "output"},
    {"index": 4, **PARALLEL},
    {"index": 5, **PREFIX, "gate": "none"},
]


def adapted(name: str) -> Any:
    """A model with every kind of adapter but the mixture, whose groups of rows differ from batch to batch."""
    model = new(name) if name == "t5" else new(name, num_hidden_layers=6)
    return hybrid(model, MIXED).eval()


def step(model: Any, batch: dict[str, Tensor], parameters: list[Tensor]) -> tuple[Tensor, ...]:
    output = model(**batch)
    return output.logits.detach(), *torch.autograd.grad(output.loss, parameters)


@pytest.mark.parametrize("name", slow_but(["llama"], ["llama", "opt", "gptj", "t5"]))
def test_a_model_with_adapters_is_one_graph(name: str) -> None:
    model = adapted(name)
    batch = batch_for(model.get_base_model())
    torch._dynamo.reset()
    found = torch._dynamo.explain(model)(**batch)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
    torch._dynamo.reset()
    parameters = list(added(model).values())
    wanted = step(model, batch, parameters)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    for own, expected in zip(step(compiled, batch, parameters), wanted, strict=True):
        near = max(GRADIENT, outputs(expected))
        torch.testing.assert_close(own, expected, atol=near, rtol=0)
    torch._dynamo.reset()
