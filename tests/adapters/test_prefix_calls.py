"""A prefix belongs to the call that it is in: threads, calls within calls and copies of a model do not disturb it."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from architectures import tiny
from frostline.adapters import adapter_names
from frostline.hooks import attention_implementation, hookable
from frostline.plan import Frozen, Lora, Plan, Prefix
from frostline.surgery import apply
from grids import slow_but
from hybrids import PREFIX, hybrid, inputs, logits, new, stir

THREADS, CALLS = 8, 20


def hlpt(name: str = "llama") -> Any:
    """A model under a hybrid plan, with gated LoRA below and gated prefixes above."""
    model = tiny(name).eval()
    low = Lora(targets="down", r=2, alpha=4, dropout=0.0, gate=True)
    gates = (Prefix(length=3), Prefix(length=3, gate="output"))
    apply(Plan(strategy="hlpt", blocks=(low, low, *gates), final_norm=Frozen(), head=Frozen()), model)
    stir(model)
    return model


def batches(model: Any, count: int) -> list[dict[str, Tensor]]:
    """Rows of unequal lengths, so that what leaks from another call does not even fit."""
    random = torch.Generator().manual_seed(0)
    ids = (torch.randint(3, 128, (1 + i % 3, 4 + i % 5), generator=random) for i in range(count))
    return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in ids]


def called(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(**batch).logits
    return result


def in_threads(model: Any, work: list[dict[str, Tensor]]) -> list[list[Tensor]]:
    """The results of each thread, which all go through the work at once, each from another place on."""
    together = threading.Barrier(THREADS)

    def run(first: int) -> list[Tensor]:
        together.wait()
        return [called(model, work[(first + i) % len(work)]) for i in range(CALLS)]

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


def wrong(found: list[list[Tensor]], alone: list[Tensor]) -> int:
    pairs = [(each, alone[(first + i) % len(alone)]) for first, own in enumerate(found) for i, each in enumerate(own)]
    assert len(pairs) == THREADS * CALLS
    return sum(each.shape != expected.shape or not torch.equal(each, expected) for each, expected in pairs)


@pytest.mark.parametrize("name", slow_but(["llama"], ["llama", "gptj"]))
def test_threads_get_what_each_gets_alone(name: str) -> None:
    model = hlpt(name)
    work = batches(model, 7)
    alone = [called(model, batch) for batch in work]
    assert wrong(in_threads(model, work), alone) == 0
    copied = copy.deepcopy(model)
    assert wrong(in_threads(copied, work), alone) == 0
    assert wrong(in_threads(model, work), alone) == 0


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_a_copy_has_prefixes_of_its_own(name: str) -> None:
    model = hlpt(name)
    (batch,) = batches(model, 1)
    before = called(model, batch)
    copied = copy.deepcopy(model)
    stir(copied, seed=2)
    changed = called(copied, batch)
    assert not torch.allclose(changed, before, atol=1e-3)
    assert torch.equal(called(model, batch), before)
    stir(model, seed=2)
    assert torch.equal(called(model, batch), changed)
    attentions = [module for module in copied.modules() if hookable(module)]
    assert {attention_implementation(module) for module in attentions} == {copied.config._attn_implementation}


def test_a_copy_follows_its_own_config_to_another_implementation() -> None:
    model = hlpt()
    (batch,) = batches(model, 1)
    before = called(model, batch)
    copied = copy.deepcopy(model)
    copied.set_attn_implementation("eager")
    hooked = [module for module in copied.modules() if hookable(module)]
    assert {attention_implementation(module) for module in hooked} == {"eager"}
    torch.testing.assert_close(called(copied, batch), before, atol=1e-5, rtol=0)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(called(model, batch), before)


@pytest.mark.parametrize("switched_off", [False, True])
@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_a_call_within_a_call_disturbs_neither(name: str, switched_off: bool) -> None:
    """Of the same model, from inside the attention that has the prefix, with the adapter or without."""
    model = hybrid(new(name), [{"index": "1-2", **PREFIX}]).eval()
    outer, inner = batches(model, 2)
    alone = called(model, outer)
    with model.disable_adapter():
        base = called(model, inner)
    expected = base if switched_off else called(model, inner)
    found: list[Tensor] = []

    def call(module: Any, args: Any) -> None:
        if found:
            return
        found.append(torch.empty(0))
        if switched_off:
            with model.disable_adapter():
                found.append(called(model, inner))
        else:
            found.append(called(model, inner))

    q_proj = next(
        module
        for path, module in model.named_modules()
        if path.endswith(("2.self_attn.base_layer.q_proj", "2.attn.base_layer.q_proj"))
    )
    q_proj.register_forward_pre_hook(call)
    assert torch.equal(called(model, outer), alone)
    assert torch.equal(found[1], expected)
    assert not torch.allclose(base, called(model, inner), atol=1e-3)


def test_a_prefix_that_is_deleted_leaves_nothing() -> None:
    model = new("llama")
    plain = logits(model)
    attributes = {path: vars(module).keys() for path, module in model.named_modules() if hookable(module)}
    adapted = hybrid(model, [{"index": 1, **PREFIX}])
    adapted.add_adapter("second", adapted.peft_config["default"])
    with pytest.warns(UserWarning, match="Setting active adapter to second"):
        adapted.delete_adapter("default")
    stir(adapted)
    assert len(adapter_names(adapted)) == 4
    assert not torch.allclose(logits(adapted), plain, atol=1e-3)
    base = adapted.unload()
    assert torch.equal(logits(base, **inputs(base)), plain)
    assert {path: vars(m).keys() for path, m in base.named_modules() if hookable(m)} == attributes
