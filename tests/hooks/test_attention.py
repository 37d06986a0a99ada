"""The attention function that others hook: one module, nothing else, and back as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from architectures import batch_for, decoder_names, encoder_names, natural_task, tiny
from frostline.anatomy import find_anatomy, get_block
from frostline.core.errors import FrostlineError
from frostline.hooks import (
    NotHookable,
    Override,
    attention_call,
    attention_implementation,
    hook_attention,
    hookable,
    open_attention,
    uses_attention_function,
)

OWN_CODE = {"gptj", "deberta-v2"}


def attention_of(model: Any, index: int = -1) -> Any:
    anatomy = find_anatomy(model)
    block = get_block(model, anatomy, anatomy.blocks[index].index)
    return next(module for module in block.modules() if uses_attention_function(module))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(**batch_for(model)).logits
    return result


def unchanged(attend: Any, *args: Any, **options: Any) -> Any:
    return attend(*args, **options)


@pytest.mark.parametrize("name", [name for name in decoder_names + encoder_names if name not in OWN_CODE])
def test_a_hook_that_changes_nothing_changes_nothing(name: str) -> None:
    model = tiny(name)
    before = logits(model)
    seen: list[Any] = []

    def hook(attend: Any, module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        seen.append((module, query.shape, key.shape, value.shape))
        return attend(module, query, key, value, mask, **options)

    attention = attention_of(model)
    hook_attention(attention, hook)
    assert torch.equal(logits(model), before)
    ((module, query, key, value),) = seen
    assert module is attention, "no other module is hooked"
    assert query[0] == key[0] == value[0] == 2
    assert query[2] == key[2] == value[2] == 8


@pytest.mark.parametrize("name", sorted(OWN_CODE))
def test_attention_that_a_module_computes_itself_is_refused(name: str) -> None:
    model = tiny(name, natural_task(name))
    assert not any(uses_attention_function(module) for module in model.modules())
    with pytest.raises(NotHookable, match="does not use transformers' attention functions"):
        hook_attention(model, unchanged)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_removing_the_last_hook_leaves_the_module_as_it_was(implementation: str) -> None:
    model = tiny("llama", attn_implementation=implementation)
    attention = attention_of(model)
    first = hook_attention(attention, unchanged)
    second = hook_attention(attention, lambda attend, *args, **options: attend(*args, **options))
    assert model.config._attn_implementation == implementation, "masks are made by the model's config"
    assert attention_implementation(attention) == implementation
    first.remove()
    first.remove()
    assert attention.config is not model.config
    second.remove()
    assert attention.config is model.config
    assert not any("frostline" in key for key in vars(attention))


def test_the_hook_put_last_is_called_first() -> None:
    model, order = tiny("llama"), []

    def named(name: str) -> Any:
        def hook(attend: Any, *args: Any, **options: Any) -> Any:
            order.append(name)
            return attend(*args, **options)

        return hook

    attention = attention_of(model)
    hook_attention(attention, named("first"))
    hook_attention(attention, named("last"))
    logits(model)
    assert order == ["last", "first"]


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_hooks_of_a_call_come_before_and_after_all_others_the_last_one_put_first(name: str) -> None:
    model, order = tiny(name), []

    def named(name: str) -> Any:
        def hook(attend: Any, *args: Any, **options: Any) -> Any:
            order.append(name)
            return attend(*args, **options)

        return hook

    attention = next(module for module in model.modules() if hookable(module))
    before = logits(model)
    handles = [open_attention(attention), *(hook_attention(attention, named(f"own {turn}")) for turn in (1, 2))]
    own = Override(attention, lambda *args, **kwargs: outer(args, kwargs))

    def outer(args: Any, kwargs: Any) -> Any:
        hooks = {"innermost": named("inner 1"), "outermost": named("outer 1")}
        return attention_call(lambda *a, **k: middle(a, k), attention, args, kwargs, **hooks)

    def middle(args: Any, kwargs: Any) -> Any:
        return attention_call(lambda *a, **k: inner(a, k), attention, args, kwargs, innermost=named("inner 2"))

    def inner(args: Any, kwargs: Any) -> Any:
        return attention_call(own.own, attention, args, kwargs, outermost=named("outer 3"))

    assert torch.equal(logits(model), before)
    assert order == ["outer 3", "outer 1", "own 2", "own 1", "inner 2", "inner 1"]
    own.remove()
    logits(model)
    assert order[6:] == ["own 2", "own 1"], "they belong to a call, not to the module"
    for handle in handles:
        handle.remove()
    logits(model)
    assert len(order) == 8
    assert not any("frostline" in key or key == "_attn" for key in vars(attention))
    with pytest.raises(FrostlineError, match=r"^\w+ does not call hooks yet: use open_attention on it first$"):
        attention_call(attention.forward, attention, (), {}, innermost=named("inner"))


def test_a_module_that_keeps_arguments_to_itself_is_refused_at_a_call() -> None:
    model = tiny("llama")
    attention = attention_of(model)
    open_attention(attention)
    forward = Override(attention, lambda *args, **kwargs: call(args, kwargs))

    def call(args: Any, kwargs: Any) -> Any:
        def without_others(*args: Any, frostline_call: Any, **kwargs: Any) -> Any:
            return forward.own(*args, **kwargs)

        return attention_call(without_others, attention, args, kwargs, innermost=unchanged)

    with pytest.raises(FrostlineError, match=r"^LlamaAttention does not give its attention function all arguments"):
        logits(model)


def test_a_hook_may_change_what_attention_is_given() -> None:
    model = tiny("llama")
    before = logits(model)

    def without_values(attend: Any, module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        return attend(module, query, key, 0 * value, mask, **options)

    attention = attention_of(model)
    handle = hook_attention(attention, without_values)
    changed = logits(model)
    handle.remove()
    assert not torch.allclose(changed, before)
    assert torch.equal(logits(model), before)
    with torch.no_grad():
        attention.o_proj.weight.zero_()
    assert torch.allclose(logits(model), changed, atol=1e-6), "attention to values of zero adds nothing"


def test_a_hooked_module_follows_the_model_to_another_implementation() -> None:
    model = tiny("llama", attn_implementation="sdpa")
    attention = attention_of(model)
    hook_attention(attention, unchanged)
    model.set_attn_implementation("eager")
    assert attention_implementation(attention) == "eager"
    assert torch.allclose(logits(model), logits(tiny("llama", attn_implementation="eager")), atol=1e-6)
