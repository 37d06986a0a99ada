"""No backward ever runs below the boundary: counted, per block."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from architectures import batch_for, tiny
from frostline.anatomy import find_anatomy
from frostline.plan import Frozen, Full, Lora, Plan
from frostline.run import make_plan
from frostline.surgery import apply

NAMES = ["llama", "gpt2", "gptj", "opt", "mixtral", "bert", "deberta-v2", "modernbert", "t5"]


def backward_calls(model: Any, names: list[str]) -> list[int]:
    """How often backward reaches the output of each block in one training step."""
    calls = [0] * len(names)

    def count(index: int) -> Any:
        def on_forward(_module: Any, _inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda _grad: calls.__setitem__(index, calls[index] + 1))

        return on_forward

    handles = [model.get_submodule(name).register_forward_hook(count(i)) for i, name in enumerate(names)]
    model.train()
    model(**batch_for(model)).loss.backward()
    for handle in handles:
        handle.remove()
    return calls


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("strategy", ["bot50", "lora-top", "top50", "all"])
@pytest.mark.parametrize("name", NAMES)
def test_backward_calls(name: str, strategy: str, checkpointing: bool) -> None:
    model = tiny(name)
    blocks = [block.name for block in find_anatomy(model).blocks]
    count = len(blocks)
    if strategy == "lora-top":
        targets = ("attention",) if name in ("modernbert", "mixtral") else ()
        lora = Lora(targets="attention") if targets else Lora()
        plan = Plan(blocks=(Frozen(),) * (count - 2) + (lora,) * 2, final_norm=Frozen(), head=Frozen())
    else:
        plan = make_plan(model, strategy)
    apply(plan, model)
    if checkpointing:
        # As a user would, after the plan: transformers adds its input-gradient hook here.
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    calls = backward_calls(model, blocks)
    assert all(n == 0 for n in calls[: plan.boundary]), calls
    assert all(n >= 1 for n in calls[plan.boundary :]), calls


def test_only_trained_blocks_are_checkpointed() -> None:
    model = tiny("llama")
    apply(Plan(blocks=(Full(), Frozen(), Full(), Frozen())), model)
    model.activation_checkpointing_enable()
    forwards = [0] * 4
    for index, block in enumerate(model.model.layers):
        # Recomputation stops at the last tensor that backward needs, so count entries, not returns.
        block.mlp.register_forward_pre_hook(lambda *_, index=index: forwards.__setitem__(index, forwards[index] + 1))
    model.train()
    model(**batch_for(model)).loss.backward()
    assert forwards == [2, 1, 2, 1], "a checkpointed block runs forward twice"


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_checkpointing_changes_no_gradient(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny(name)
        apply(make_plan(model, "bot50"), model)
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(0)
        model.train()
        model(**batch_for(model)).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(torch.equal(g, gradients[1][n]) for n, g in gradients[0].items())
