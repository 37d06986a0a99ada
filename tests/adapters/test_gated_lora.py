"""Gated LoRA: its formula, when it is the base model, and which of it is a change of weights."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from frostline.adapters._lora import LowRank
from frostline.plan import Lora
from hybrids import FAMILIES, GATED_LORA, PLAIN_LORA, added, hybrid, inputs, logits, new, stir
from tolerances import outputs, rounding


def part(gate: bool = True, dropout: float = 0.0) -> LowRank:
    torch.manual_seed(0)
    made = LowRank(6, 4, Lora(r=3, alpha=5, dropout=dropout, gate=gate))
    torch.nn.init.normal_(made.B)
    return made


def test_a_token_is_changed_as_much_as_its_gate_says() -> None:
    made, base = part(), torch.nn.Linear(6, 4)
    tokens = torch.randn(2, 3, 6, requires_grad=True)
    found = made(base, base, tokens)

    def slowly(token: Tensor) -> Tensor:
        gate = 1 / (1 + torch.exp(-(made.gate.weight[0] @ token + made.gate.bias[0])))
        return base.weight @ token + base.bias + gate * 5 / 3 * (made.B @ (made.A @ token))

    expected = torch.stack([torch.stack([slowly(token) for token in row]) for row in tokens])
    near = rounding(20, expected)  # sums of 6, 6, 3 and 3 terms, and the gate
    torch.testing.assert_close(found, expected, atol=near, rtol=0)
    weights, wanted = torch.randn_like(found), [tokens, *made.parameters()]
    for gradient, own in zip(
        torch.autograd.grad((found * weights).sum(), wanted),
        torch.autograd.grad((expected * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(gradient, own, atol=1e-5, rtol=1e-5)


def test_it_begins_with_b_at_0_and_kaiming_uniform_elsewhere() -> None:
    made = LowRank(10_000, 4, Lora(gate=True))
    assert not made.B.any()
    bound = 1 / math.sqrt(10_000)
    for drawn in (made.A, made.gate.weight):
        assert 0.9 * bound < drawn.abs().max() <= bound
        assert abs(drawn.var() / (bound**2 / 3) - 1) < 0.1


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shut_gate_is_the_base_model_bit_for_bit(name: str) -> None:
    base = logits(new(name))
    adapted = hybrid(new(name), [{"index": "0-3", **GATED_LORA}])
    assert not torch.allclose(logits(adapted), base, atol=1e-4)
    for key, parameter in added(adapted).items():
        if "gate" in key:
            parameter.data.fill_(-torch.inf if "bias" in key else 0)
    assert torch.equal(logits(adapted), base)


@pytest.mark.parametrize("name", FAMILIES)
def test_b_at_0_and_switched_off_are_the_base_model_bit_for_bit(name: str) -> None:
    base = logits(new(name))
    adapted = hybrid(new(name), [{"index": "0-3", **GATED_LORA}])
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), base)
    for key, parameter in added(adapted).items():
        if key.endswith(".B"):
            parameter.data.zero_()
    assert torch.equal(logits(adapted), base)


def test_a_gate_adds_a_weight_for_each_input_and_a_bias() -> None:
    gated, plain = (sum(p.numel() for p in part(gate=gate).parameters()) for gate in (True, False))
    assert plain == 3 * (6 + 4)
    assert gated == plain + 6 + 1


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_without_gates_it_is_pefts_lora(name: str) -> None:
    """The same outputs bit for bit, merged bit for bit the same weights, and the trained model's logits."""
    ours = hybrid(new(name), [{"index": "0-3", **PLAIN_LORA}])
    stir(ours, 0.1)
    paths = [key.removesuffix(".hybrid_parts.default.A") for key in added(ours) if key.endswith(".A")]
    config = LoraConfig(
        r=2, lora_alpha=4, target_modules=[path.removeprefix("base_model.model.") for path in paths],
        fan_in_fan_out=name == "gpt2",
    )  # fmt: skip
    theirs = get_peft_model(new(name), config)
    values = {
        key.replace(".hybrid_parts.default.", ".lora_") + ".default.weight": value for key, value in added(ours).items()
    }
    theirs.load_state_dict(values, strict=False)
    trained = logits(ours)
    assert torch.equal(trained, logits(theirs))
    merged, reference = ours.merge_and_unload(), theirs.merge_and_unload()
    own, expected = merged.state_dict(), reference.state_dict()
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[key], expected[key]) for key in own)
    torch.testing.assert_close(logits(merged), trained, atol=outputs(trained), rtol=0)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_over_a_bfloat16_base_it_is_float32_and_computes_so(name: str) -> None:
    adapted = hybrid(new(name).to(torch.bfloat16), [{"index": "0-3", **GATED_LORA}])
    assert {value.dtype for value in added(adapted).values()} == {torch.float32}
    output = adapted.train()(**inputs(adapted)).logits
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert all(value.grad is not None and value.grad.dtype == torch.float32 for value in added(adapted).values())


def test_dropout_is_before_a_and_not_before_the_gate() -> None:
    made, base = part(dropout=1 - 1e-9), torch.nn.Linear(6, 4)
    tokens = torch.randn(2, 6)
    seen = []
    made.gate.register_forward_hook(lambda _module, args, _output: seen.append(args[0]))
    assert torch.equal(made.train()(base, base, tokens), base(tokens))
    assert seen[0] is tokens
    assert not torch.equal(made.eval()(base, base, tokens), base(tokens))


def test_stirring_reaches_every_parameter() -> None:
    """What the tests here rest on."""
    adapted = hybrid(new("llama"))
    before = {key: value.clone() for key, value in added(adapted).items()}
    stir(adapted, seed=2)
    assert before
    assert not any(torch.equal(value, before[key]) for key, value in added(adapted).items())
