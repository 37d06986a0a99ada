"""UniPELT against its formula, its average gates, saving and loading, and what refuses it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from architectures import batch_for, tiny
from frostline.adapters import HybridConfig, added_parameters
from frostline.anatomy import find_anatomy
from frostline.checkpoints import load, merge, save_delta
from frostline.core.errors import UserError
from frostline.loss_positions import use_loss_positions
from frostline.plan import Frozen, Plan, Unipelt
from frostline.surgery import apply, check_plain
from hybrids import added, hybrid, inputs, logits, new, stir
from tolerances import GRADIENT, outputs
from unipelt_by_hand import bert_logits, llama_logits

SMALL = {"mode": "adapter", "kind": "unipelt", "r": 2, "alpha": 4, "length": 3, "bottleneck": 12}
AVERAGED = {**SMALL, "gates": "sequence"}
FAMILIES = [
    "llama",
    "qwen3",
    "gemma3",
    "gpt2",
    "gptj",
    "gpt_neox",
    "opt",
    "bert",
    "roberta",
    "distilbert",
    "modernbert",
]
ENCODERS = ["bert", "roberta", "distilbert", "modernbert"]
BY_HAND = {"llama": llama_logits, "bert": bert_logits}


def adapted(name: str, options: dict[str, Any] = SMALL, attention: str | None = None, **more: Any) -> Any:
    """A tiny model with the adapter on every block."""
    model = new(name, attention, **more)
    return hybrid(model, [{"index": f"0-{len(find_anatomy(model).blocks) - 1}", **options}])


def gradients(model: Any, output: Tensor) -> dict[str, Tensor]:
    wanted = added(model)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    found = torch.autograd.grad((output * weights).sum(), list(wanted.values()))
    return dict(zip(wanted, found, strict=True))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("name", "options"), [("llama", SMALL), ("bert", SMALL), ("bert", AVERAGED)])
def test_as_the_formula_written_out(name: str, options: dict[str, Any], attention: str) -> None:
    """Forward and backward, with padding and without."""
    model = adapted(name, options, attention).eval()
    base = model.get_base_model()
    extra = {"averaged": options is AVERAGED} if name == "bert" else {}
    padded = inputs(base)
    for batch in (padded, {**padded, "attention_mask": torch.ones_like(padded["attention_mask"])}):
        read = batch["attention_mask"].bool() if name == "llama" else slice(None)
        found, expected = model(**batch).logits[read], BY_HAND[name](base, batch, **extra)[read]
        torch.testing.assert_close(found, expected, atol=outputs(expected), rtol=0)
        ours, own = gradients(model, found), gradients(model, expected)
        for key, gradient in ours.items():
            near = GRADIENT * max(1.0, float(own[key].abs().max()))
            torch.testing.assert_close(gradient, own[key], atol=near, rtol=0, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", [*FAMILIES, "t5"])
def test_every_gate_matters_and_everything_learns(name: str) -> None:
    model = adapted(name, dropout=0.0)
    batch = batch_for(model.get_base_model())
    model.train()(**batch).loss.backward()
    for key, parameter in added(model).items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
    with torch.no_grad():
        before = model.eval()(**batch).loss
        gates = [module for key, module in model.named_modules() if key.endswith(("default.gate", "lora_gate"))]
        assert len(gates) == 3 * len(find_anatomy(tiny(name)).blocks)
        for gate in gates:
            kept = gate.bias.clone()
            gate.bias += 3
            assert model(**batch).loss != before
            gate.bias.copy_(kept)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ENCODERS])
def test_no_token_sees_a_later_one(name: str) -> None:
    model = adapted(name)
    ids = torch.randint(3, 128, (2, 9), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, 6:] = 5
    found, changed = logits(model, input_ids=ids), logits(model, input_ids=other)
    torch.testing.assert_close(found[:, :6], changed[:, :6], atol=outputs(found), rtol=0)
    assert (found[:, 6:] - changed[:, 6:]).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ENCODERS)
def test_padding_does_not_count_in_an_average(name: str, attention: str) -> None:
    model = adapted(name, AVERAGED, attention)
    ids = torch.randint(3, 128, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    found = logits(model, input_ids=ids, attention_mask=mask)
    alone = logits(model, input_ids=ids[1:, :5], attention_mask=mask[1:, :5])
    torch.testing.assert_close(found[1:], alone, atol=outputs(alone), rtol=0)
    per_token = logits(adapted(name, SMALL, attention), input_ids=ids, attention_mask=mask)
    assert (found - per_token).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_an_average_in_a_decoder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^block \d: unipelt: the average .* would show later tokens .*: use gates"):
        adapted(name, AVERAGED)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("mixtral", "block 0: unipelt: it has no feed-forward of plain matrices: use lora"),
        ("minicpm3", "block 0: prefix: the attention computes keys and values from a latent vector"),
        ("deberta-v2", "block 0: prefix: the attention of DebertaV2ForSequenceClassification is not one of"),
    ],
)
def test_models_that_it_does_not_fit(name: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        adapted(name)


def test_its_parameters_are_those_of_the_paper() -> None:
    """r 8, length 10, bottleneck 48 on BERT-base: 1.2 million, of which the gates are 3 (d + 1) in a block."""
    d, blocks = 32, 4
    anatomy = find_anatomy(tiny("bert"))
    plan = Plan(blocks=(Unipelt(),) * blocks, final_norm=Frozen())
    lora, prefix, adapter, gates = 4 * 8 * d, 2 * 10 * d, 2 * 48 * d + 48 + d, 3 * (d + 1)
    assert added_parameters(plan, anatomy) == (lora + prefix + adapter + gates,) * blocks


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_switched_off_it_is_the_base_model(name: str) -> None:
    model, base = adapted(name), logits(new(name))
    assert not torch.equal(logits(model), base)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)


@pytest.mark.parametrize(("name", "options"), [("llama", SMALL), ("bert", AVERAGED)])
def test_saved_and_loaded_it_is_the_same(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = adapted(name, options)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(new(name), tmp_path)
    assert torch.equal(logits(model), logits(again))
    assert torch.equal(logits(model), logits(copy.deepcopy(model)))


def test_a_delta_holds_it_and_nothing_can_merge_it(tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = tiny("llama")
    model.save_pretrained(base)
    model = type(model).from_pretrained(base)
    apply(Plan(blocks=(Unipelt(r=2),) * 4, final_norm=Frozen(), head=Frozen()), model)
    stir(model)
    save_delta(model, tmp_path / "delta")
    assert torch.equal(logits(load(tmp_path / "delta")), logits(model))
    with pytest.raises(UserError, match=r"cannot be merged: .*: use the model with its adapter"):
        check_plain(model)
    with pytest.raises(UserError, match=r"cannot be merged"):
        merge(tmp_path / "delta", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_two_of_them_in_one_model_keep_apart() -> None:
    model = adapted("llama")
    alone = logits(model)
    model.add_adapter("second", HybridConfig(blocks=[{"index": "1-2", **SMALL}]))
    assert torch.equal(logits(model), alone)
    model.set_adapter("second")
    stir(model, seed=2)
    second = logits(model)
    assert not torch.equal(second, alone)
    with pytest.raises(UserError, match="adapter_names: prefixes and mixtures do not work row by row"):
        model.eval()(**inputs(model.get_base_model()), adapter_names=["default", "second", "default"])


@pytest.mark.parametrize(("name", "options"), [("llama", SMALL), ("bert", SMALL), ("bert", AVERAGED)])
def test_activation_checkpointing_changes_nothing(name: str, options: dict[str, Any]) -> None:
    found = []
    for checkpointed in (False, True):
        model = adapted(name, options, dropout=0.0)
        if checkpointed:
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
        model.train()(
            **batch_for(model.get_base_model()), **({} if name == "bert" else {"use_cache": False})
        ).loss.backward()
        found.append({key: parameter.grad for key, parameter in added(model).items()})
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize(("options", "narrow"), [(SMALL, True), (AVERAGED, False)])
def test_the_last_block_runs_at_the_loss_positions_where_tokens_keep_apart(options: Any, narrow: bool) -> None:
    model = adapted("bert", options, dropout=0.0).get_base_model()
    batch = batch_for(model)
    expected = float(model.train()(**batch).loss.detach())
    positions = use_loss_positions(model, find_anatomy(tiny("bert")), batch)
    assert positions.last_block == narrow
    assert any("its gates are averages over the sequence" in notice for notice in positions.notices) != narrow
    assert float(model.train()(**batch).loss.detach()) == pytest.approx(expected, abs=1e-5)
