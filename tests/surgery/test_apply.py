"""What a plan does to a model, in a plain PyTorch loop, on every architecture."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from architectures import ARCHITECTURES, batch_for, natural_task, tiny
from frostline.anatomy import find_anatomy
from frostline.core.errors import PlanError
from frostline.plan import Frozen, Full, Lora, Partial, Plan
from frostline.run import make_plan
from frostline.surgery import applied_to, apply, to_plain

TIEABLE = [name for name in ARCHITECTURES if natural_task(name) != "classification" and name != "gptj"]


def step(model: Any, steps: int = 1, lr: float = 1e-2) -> None:
    """AdamW with weight decay over everything that requires gradients, as a user's own loop would."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.1)
    for index in range(steps):
        model.train()
        # Every token id, so that every row of a trained embedding is reached.
        model(**batch_for(model, batch=4, length=16, seed=index)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def changed(before: dict[str, torch.Tensor], model: Any) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}


def frozen_names(model: Any) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_step_of_bot50_moves_what_trains_and_nothing_else(name: str) -> None:
    model = tiny(name)
    apply(make_plan(model, "bot50"), model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    step(model)
    moved = changed(before, model)
    assert not moved & frozen_names(model)
    still = set(before) - frozen_names(model) - moved
    assert not {n for n in still if "expert" not in n}, "experts that no token reached may stay"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", TIEABLE)
def test_tied_and_untied_heads(name: str, tied: bool) -> None:
    model = tiny(name, tied=tied)
    anatomy = find_anatomy(model)
    assert anatomy.tied is tied
    applied = apply(make_plan(model, "bot50"), model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    step(model)
    moved = changed(before, model)
    assert not moved & frozen_names(model)
    assert bool(applied.notices) is tied
    head = {linear.weight for linear in anatomy.head_linears}
    assert bool(head & moved) is not tied


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
def test_matches_a_plain_loop_with_requires_grad(name: str) -> None:
    ours, plain = tiny(name), tiny(name)
    apply(make_plan(ours, "bot50"), ours)
    for p, q in zip(plain.parameters(), ours.parameters(), strict=True):
        p.requires_grad_(q.requires_grad)
    ours.eval(), plain.eval()
    for model in (ours, plain):
        model.train = lambda mode=True, model=model: model  # type: ignore[method-assign]  # no dropout in either
        step(model, steps=3)
    for (n, p), q in zip(plain.named_parameters(), ours.parameters(), strict=True):
        assert torch.equal(p, q), n


def test_frozen_parts_stay_in_eval_mode_in_any_loop() -> None:
    model = tiny("bert", dropout=0.5)
    apply(make_plan(model, "bot50"), model)
    model.train()
    model(**batch_for(model))
    blocks = model.bert.encoder.layer
    assert [block.training for block in blocks] == [False, False, True, True]
    assert not model.bert.embeddings.dropout.training
    assert model.dropout.training, "the head's dropout belongs to the head"


def test_the_frozen_bottom_gives_the_same_states_twice() -> None:
    model = tiny("gpt2", dropout=0.5)
    apply(make_plan(model, "bot50"), model)
    seen: list[torch.Tensor] = []
    model.transformer.h[2].register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    model.train()
    batch = batch_for(model)
    first, second = (model(**batch).logits for _ in range(2))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(first, second), "the trained blocks still drop"


def test_partial_modes_train_exactly_what_they_name() -> None:
    model = tiny("bert")
    modes = (
        Partial(train="attention"),
        Partial(train="feed_forward"),
        Partial(train="norms_and_biases"),
        Partial(rows=0.25, rows_seed=3),
    )
    plan = Plan(blocks=modes)
    apply(plan, model)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    prefix = "bert.encoder.layer"
    assert f"{prefix}.0.attention.self.query.weight" in trained
    assert f"{prefix}.0.intermediate.dense.weight" not in trained
    assert f"{prefix}.1.intermediate.dense.weight" in trained
    assert f"{prefix}.1.attention.self.query.weight" not in trained
    assert f"{prefix}.2.intermediate.dense.bias" in trained
    assert f"{prefix}.2.intermediate.dense.weight" not in trained
    assert f"{prefix}.3.intermediate.dense.parametrizations.weight.original" in trained


def test_a_share_of_rows_moves_only_those_rows() -> None:
    model = tiny("llama")
    before = model.model.layers[3].mlp.gate_proj.weight.detach().clone()  # [64, 32]
    apply(Plan(blocks=(Frozen(),) * 3 + (Partial(rows=0.25, rows_seed=7),)), model)
    step(model, steps=3)
    plain = to_plain(model)
    after = plain.model.layers[3].mlp.gate_proj.weight
    moved = (after != before).any(dim=1)
    assert int(moved.sum()) == 16
    again = tiny("llama")
    apply(Plan(blocks=(Frozen(),) * 3 + (Partial(rows=0.25, rows_seed=7),)), again)
    index = again.model.layers[3].mlp.gate_proj.parametrizations.weight[0].index
    assert moved.nonzero().flatten().tolist() == index.tolist()


def test_a_copy_is_made_plain_and_its_model_goes_on() -> None:
    model = tiny("llama")
    apply(Plan(blocks=(Frozen(), Frozen(), Partial(rows=0.5), Partial(rows=0.5))), model)
    ids = torch.arange(4, 12)[None]
    before = model(ids).logits
    plain = to_plain(copy.deepcopy(model))
    assert torch.equal(plain(ids).logits, before) and torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
def test_nothing_changes_before_the_first_step(name: str) -> None:
    for strategy in ("bot50", "lora", "head", "all"):
        model, reference = tiny(name).eval(), tiny(name).eval()
        batch = batch_for(model)
        apply(make_plan(model, strategy), model)
        with torch.no_grad():
            assert torch.equal(model(**batch).logits, reference(**batch).logits), strategy


def test_untie_gives_the_head_a_copy() -> None:
    model = tiny("llama", tied=True)
    apply(make_plan(model, "head"), model)
    embedding = model.get_input_embeddings().weight.detach().clone()
    step(model)
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    assert not torch.equal(model.get_output_embeddings().weight, embedding)
    assert model.config.tie_word_embeddings is False


def test_mixed_precision_trains_in_float32_over_a_bfloat16_bottom() -> None:
    model = tiny("llama").bfloat16()
    reference = tiny("llama").bfloat16().float()
    apply(make_plan(model, "int50"), model)
    apply(make_plan(reference, "int50"), reference)
    for index, block in enumerate(model.model.layers):
        dtype = torch.bfloat16 if index % 2 else torch.float32
        assert {p.dtype for p in block.parameters()} == {dtype}
    batch = batch_for(model)
    ours, exact = model(**batch).loss, reference(**batch).loss
    assert ours.item() == pytest.approx(exact.item(), abs=2e-2)
    ours.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_a_padded_batch_survives_mixed_dtypes_in_eager_attention() -> None:
    model = tiny("llama", attn_implementation="eager").bfloat16()
    apply(make_plan(model, "int50"), model)
    batch = batch_for(model)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][0, :3] = 0
    assert torch.isfinite(model(**batch).loss)


def test_a_second_plan_is_refused() -> None:
    model = tiny("llama")
    apply(make_plan(model, "bot50"), model)
    with pytest.raises(PlanError, match="already has the plan 'bot50'"):
        apply(Plan(blocks=(Full(),) * 4), model)
    to_plain(model)
    assert applied_to(model) is None
    apply(Plan(blocks=(Full(),) * 4), model)


def test_lora_blocks_beside_full_ones() -> None:
    model = tiny("llama")
    apply(Plan(blocks=(Frozen(), Lora(r=2), Lora(r=4), Full()), final_norm=Frozen(), head=Frozen()), model)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[2] for n in trained if "lora_" in n} == {"1", "2"}
    assert {n.split(".")[2] for n in trained if "lora_" not in n} == {"3"}
    assert model.model.layers[2].self_attn.q_proj.lora_A["default"].weight.shape == (4, 32)


def test_a_plan_that_is_no_plan_is_refused() -> None:
    with pytest.raises(PlanError, match=r"it should be a frostline\.Plan, not str: use frostline.make_plan"):
        apply("bot50", tiny("llama"))  # type: ignore[arg-type]
