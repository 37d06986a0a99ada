"""The prefix against attention written out slowly, decoding, and that no token sees a later one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from architectures import batch_for, tiny
from frostline.adapters._prefix import PrefixPart
from frostline.core.errors import UserError
from frostline.hooks import attention_implementation, hook_attention, hookable
from hybrids import DECODERS, FAMILIES, PREFIX, added, hybrid, inputs, logits, new
from tolerances import GRADIENT, outputs

BLOCKS = [{"index": "1-2", **PREFIX}]


class SlowPrefix:
    """In the place of a module's attention: for each query of each head, a softmax over prefix and text."""

    def __init__(self, module: Any, part: PrefixPart) -> None:
        self.part, self.hidden = part, torch.empty(0)
        module.register_forward_pre_hook(self._note, with_kwargs=True)
        hook_attention(module, self)

    def _note(self, _module: Any, args: Any, kwargs: Any) -> None:
        self.hidden = args[0] if args else kwargs["hidden_states"]

    def __call__(self, attend: Any, module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        rows, heads, queries, width = query.shape
        groups, total = key.shape[1], key.shape[2]
        scaling, cap = options.get("scaling") or width**-0.5, options.get("softcap")
        prefix_key = self.part.keys.view(-1, groups, width)
        prefix_value = self.part.values.view(-1, groups, value.shape[-1])
        output = []
        for row, head, at in ((r, h, q) for r in range(rows) for h in range(heads) for q in range(queries)):
            group = head // (heads // groups)
            gate = self._gate(self.hidden[row, at])
            inner = 1.0 if self.part.on_output else gate
            seen = self._seen(module, mask, row, at, total)
            keys = torch.cat([inner * prefix_key[:, group], key[row, group][seen]])
            values = torch.cat([inner * prefix_value[:, group], value[row, group][seen]])
            scores = scaling * keys @ query[row, head, at]
            if options.get("position_bias") is not None:  # T5's; that of the prefix is 0
                scores = scores + torch.cat([torch.zeros(len(prefix_key)), options["position_bias"][0, head, at][seen]])
            shares = (scores if cap is None else cap * torch.tanh(scores / cap)).exp()
            if self.part.on_output:
                shares = torch.cat([gate * shares[: len(prefix_key)], shares[len(prefix_key) :]])
            output.append(shares @ values / shares.sum())
        return torch.stack(output).view(rows, heads, queries, -1).transpose(1, 2), None

    def _gate(self, hidden: Tensor) -> Any:
        gate = self.part.gate
        return 1.0 if gate is None else torch.sigmoid(gate.weight[0] @ hidden + gate.bias[0])

    def _seen(self, module: Any, mask: Any, row: int, at: int, total: int) -> Tensor:
        if mask is None:
            causal = getattr(module, "is_causal", True)
            return torch.arange(total) <= at if causal else torch.ones(total, dtype=torch.bool)
        line = mask[row % len(mask), 0, at]
        return line if line.dtype == torch.bool else line > -1


def parts_of(model: Any) -> dict[str, PrefixPart]:
    """The prefixes of a model, by the path of their attention in the model without adapters."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, PrefixPart)}
    return {name.removeprefix("base_model.model.").partition(".hybrid_parts")[0]: p for name, p in found.items()}


def with_slow_prefix(model: Any, adapted: Any) -> Any:
    for path, part in parts_of(adapted).items():
        SlowPrefix(model.get_submodule(path), part)
    return model


def results(model: Any, parts: dict[str, PrefixPart], batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits where there is text, and gradients of the parts and of the model's first embeddings (its inputs)."""
    wanted = {f"{path}.{name}": p for path, part in parts.items() for name, p in part.named_parameters()}
    wanted["embeddings"] = model.get_input_embeddings().weight.requires_grad_()
    output = model.eval()(**batch)
    weights = torch.linspace(-1, 1, output.logits.numel()).view_as(output.logits)
    if output.logits.dim() == 3 and not model.config.is_encoder_decoder:
        weights = weights * batch["attention_mask"][..., None]
    gradients = torch.autograd.grad((output.logits * weights).sum(), list(wanted.values()))
    return output.logits.detach()[weights != 0], dict(zip(wanted, gradients, strict=True))


CASES = [
    *((name, "eager", "prefix") for name in FAMILIES),
    *((name, "sdpa", "prefix") for name in FAMILIES if name != "gptj"),
    *((name, "eager", "prefix") for name in ("gemma2", "t5")),
    ("t5", "sdpa", "output"),
    *((name, "eager", gate) for name in ("llama", "gptj") for gate in ("output", "none")),
    *((name, "sdpa", gate) for name in ("gemma3", "gpt2", "bert") for gate in ("output", "none")),
]


@pytest.mark.parametrize(("name", "implementation", "gate"), CASES)
def test_as_attention_over_prefix_and_text_written_out(name: str, implementation: str, gate: str) -> None:
    """Forward and backward, with padding; without it sdpa gets no mask."""
    indices = (0, 4, 5) if name == "t5" else (1, 2)  # encoder and decoder
    adapted = hybrid(new(name, implementation), [{"index": index, **PREFIX, "gate": gate} for index in indices])
    slow = with_slow_prefix(new(name, implementation), adapted)
    assert len(parts_of(adapted)) == len(indices)
    whole = inputs(slow)
    whole["attention_mask"] = torch.ones_like(whole["attention_mask"])
    for batch in (inputs(slow), whole):
        if name == "t5":
            batch["decoder_input_ids"] = batch["input_ids"]
        found, gradients = results(adapted, parts_of(adapted), batch)
        expected, own = results(slow, parts_of(adapted), batch)
        torch.testing.assert_close(found, expected, atol=outputs(expected), rtol=0)
        for key, gradient in gradients.items():
            assert gradient.abs().max() > 0, key
            near = GRADIENT * max(1.0, float(gradient.abs().max()))
            torch.testing.assert_close(gradient, own[key], atol=near, rtol=0, msg=lambda m, key=key: f"{key}: {m}")


@contextmanager
def gates_shut(model: Any) -> Iterator[None]:
    with torch.no_grad():
        for name, parameter in added(model).items():
            if "gate" in name:
                parameter.fill_(-torch.inf if "bias" in name else 0)
    yield


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shut_gate_leaves_keys_and_values_of_zero(name: str) -> None:
    """The paper's gate at 0 is not the base model: zero vectors still take their share of the softmax."""
    adapted = hybrid(new(name), BLOCKS)
    with gates_shut(adapted):
        found = logits(adapted)

    def with_zeros(attend: Any, module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        key, value = (torch.nn.functional.pad(states, (0, 0, 3, 0)) for states in (key, value))
        if mask is None:
            seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)
            mask = seen.tril(3)[None, None] if getattr(module, "is_causal", True) else seen[None, None]
        else:
            mask = torch.nn.functional.pad(mask, (3, 0), value=mask.dtype == torch.bool)
        return attend(module, query, key, value, mask, **options)

    plain = new(name)
    base = logits(plain)
    for path in parts_of(adapted):
        hook_attention(plain.get_submodule(path), with_zeros)
    torch.testing.assert_close(found, logits(plain), atol=outputs(found), rtol=0)
    assert not torch.allclose(found, base, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shut_gate_on_the_output_is_the_base_model_to_rounding(name: str) -> None:
    adapted = hybrid(new(name), [{"index": "1-2", **PREFIX, "gate": "output"}])
    with gates_shut(adapted):
        base = logits(new(name))
        torch.testing.assert_close(logits(adapted), base, atol=outputs(base), rtol=0)


def test_a_nearly_shut_gate_on_the_output_learns_to_open() -> None:
    adapted = hybrid(new("llama"), [{"index": 3, **PREFIX, "gate": "output"}])
    (part,) = parts_of(adapted).values()
    with torch.no_grad():
        part.gate.weight.zero_()
        part.gate.bias.fill_(-5.0)
    adapted(**inputs(adapted)).logits.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in part.parameters())


def generated(model: Any, batch: dict[str, Tensor], **options: Any) -> Any:
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None} | options
    return model.generate(**batch, **options, output_logits=True, return_dict_in_generate=True)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoded_token_has_the_logits_of_a_full_forward(name: str, implementation: str) -> None:
    """With a cache, also a static one, over rows of unequal length padded on the left."""
    if (name, implementation) == ("gptj", "sdpa"):
        pytest.skip("GPT-J has no sdpa")
    adapted = hybrid(new(name, implementation)).eval()
    ids = torch.randint(3, 128, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :2] = mask[2, :4] = 0
    ids = ids * mask
    caches = [{}] if name == "gptj" else [{}, {"cache_implementation": "static"}]
    for cache in caches:
        batch = {"input_ids": ids, "attention_mask": mask}
        decoded = generated(adapted, batch, **cache)
        steps = torch.stack(decoded.logits, dim=1)
        assert decoded.past_key_values.get_seq_length() == 7 + 5, "the prefix is not in the cache"
        for row in range(3):
            alone = decoded.sequences[row : row + 1, int((1 - mask[row]).sum()) :]
            full = logits(adapted, input_ids=alone, attention_mask=torch.ones_like(alone))
            torch.testing.assert_close(steps[row], full[0, -7:-1], atol=outputs(full), rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gptj", "gpt2"])
def test_beam_search_with_a_cache_is_that_without(name: str) -> None:
    adapted = hybrid(new(name)).eval()
    batch = {key: value[:1] for key, value in inputs(adapted).items()}
    options = {"num_beams": 3, "num_return_sequences": 3, "output_scores": True}
    cached, whole = (generated(adapted, batch, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached.sequences, whole.sequences)
    near = outputs(whole.sequences_scores)
    torch.testing.assert_close(cached.sequences_scores, whole.sequences_scores, atol=near, rtol=0)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("name", DECODERS)
def test_no_token_sees_a_later_one(name: str, implementation: str) -> None:
    """Bit for bit, with and without a mask."""
    if (name, implementation) == ("gptj", "sdpa"):
        pytest.skip("GPT-J has no sdpa")
    adapted = hybrid(new(name, implementation))
    ids, mask = inputs(adapted).values()
    changed = ids.clone()
    changed[:, 5] = 77
    for options in ({"attention_mask": mask}, {}):
        before, after = (logits(adapted, input_ids=tokens, **options) for tokens in (ids, changed))
        assert torch.equal(after[:, :5], before[:, :5])
        assert not torch.allclose(after[:, 5], before[:, 5])


def test_two_prefixes_on_one_block_share_one_softmax() -> None:
    """As one of their lengths together, whatever the order in which they were made."""
    for gate in ("none", "prefix", "output"):
        half = {**PREFIX, "gate": gate}
        whole = hybrid(new("llama"), [{"index": 1, **half, "length": 6}])
        (both,) = parts_of(whole).values()
        parted = hybrid(new("llama"), [{"index": 1, **half}])
        parted.add_adapter("second", parted.peft_config["default"])
        parted.base_model.set_adapter(["default", "second"])
        (layer,) = [module for module in parted.modules() if hasattr(module, "hybrid_parts")]
        for part, rows in zip(layer.hybrid_parts.values(), (slice(0, 3), slice(3, 6)), strict=True):
            part.load_state_dict({**both.state_dict(), "keys": both.keys[rows], "values": both.values[rows]})
        torch.testing.assert_close(logits(parted), logits(whole), atol=outputs(logits(whole)), rtol=0)


@pytest.mark.parametrize("gate", ["prefix", "output"])
@pytest.mark.parametrize("name", ["llama", "gptj", "t5"])
def test_dropout_drops_each_token_of_a_prefix_by_itself(name: str, gate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here always the second one: then all is as if its value were zero."""
    model = hybrid(new(name, "eager", dropout=0.5), [{"index": 1, **PREFIX, "gate": gate}])
    batch = batch_for(model.get_base_model())
    length = PREFIX["length"] + batch["input_ids"].shape[1]

    def drop(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        kept = torch.ones_like(values)
        if training and p and values.shape[-1] == length:
            kept[..., 1] = 0
        return values * kept

    monkeypatch.setattr(torch.nn.functional, "dropout", drop)
    with torch.no_grad():
        found = model.train()(**batch).logits
        whole = logits(model, **batch)
        for part in parts_of(model).values():
            part.values[1] = 0
    torch.testing.assert_close(found, logits(model, **batch), atol=outputs(whole), rtol=0)
    assert not torch.allclose(found, whole, atol=1e-4)


def test_weights_that_the_model_gives_back_are_those_of_the_text() -> None:
    model = new("llama", "eager")
    shape = model(**inputs(model), output_attentions=True).attentions[1].shape
    weights = hybrid(model, BLOCKS)(**inputs(model), output_attentions=True).attentions[1]
    assert weights.shape == shape
    assert (weights.sum(-1) < 1).all(), "the rest is the prefix's"


def test_a_length_of_0_adds_nothing() -> None:
    model = new("llama")
    before = logits(model)
    adapted = hybrid(model, [{"index": 0, **PREFIX, "length": 0}, {"index": 1, **PREFIX}])
    assert list(parts_of(adapted)) == ["model.layers.1.self_attn"]
    assert torch.equal(logits(adapted.unload()), before)


def test_attention_of_its_own_is_refused_and_the_model_is_unchanged() -> None:
    model = tiny("deberta-v2")
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(UserError, match=r"^block 1: prefix: the attention of .* is not one of .*: use lora or a par"):
        hybrid(model, BLOCKS)
    assert [name for name, _ in model.named_modules()] == names


def test_an_attention_function_that_takes_no_mask_is_refused() -> None:
    message = (
        r"^prefix: the model's attention is flash_attention_2: load the model with attn_implementation=sdpa or eager$"
    )
    adapted = hybrid(new("llama"), [{"index": 0, **PREFIX}])
    adapted.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match=message):
        adapted(input_ids=batch_for(adapted)["input_ids"])
    with pytest.raises(UserError, match=message):
        hybrid(adapted.unload(), BLOCKS)


def test_nothing_is_left_on_the_attention_after_a_forward() -> None:
    for name in ("llama", "gptj"):
        model = new(name)
        attributes = {path: dict(vars(m)) for path, m in model.named_modules() if hookable(m)}
        adapted = hybrid(model, BLOCKS)
        adapted(**inputs(adapted))
        adapted.unload()
        for path, before in attributes.items():
            after = vars(model.get_submodule(path))
            assert after.keys() == before.keys()
            assert after["config"] is before["config"]
            assert attention_implementation(model.get_submodule(path)) == model.config._attn_implementation
