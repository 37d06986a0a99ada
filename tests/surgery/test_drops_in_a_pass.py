"""LayerDrop and AdapterDrop in single passes: against models without the blocks or adapters, on every architecture."""

from __future__ import annotations

import copy
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from architectures import ARCHITECTURES, batch_for, tiny
from frostline.anatomy import find_anatomy, notices
from frostline.checkpoints import merge, save_delta
from frostline.core.errors import FrostlineError, PlanError, UserError
from frostline.core.seeding import derive_seed
from frostline.hooks import SAME_NUMBERS as SAME
from frostline.hooks import begin_step, compare_training, undisturbed
from frostline.plan import (
    AdapterDrop,
    Bottleneck,
    Forward,
    Frozen,
    Full,
    LayerDrop,
    Lora,
    Mixture,
    Peft,
    Plan,
    Prefix,
    Residual,
    Unipelt,
    document,
    from_text,
    to_json,
    to_yaml,
)
from frostline.surgery import apply, check_plain
from frostline.surgery._forward import check_forward
from tolerances import GRADIENT, LOSS

ADAPTERS = {
    "lora": Lora(r=2, dropout=0.0),
    "prefix": Prefix(length=3),
    "series": Bottleneck(kind="series", bottleneck=3),
    "mixture": Mixture(experts=3, r=2, dropout=0.0, balance=0.0),
    "unipelt": Unipelt(r=2, length=3, bottleneck=3),
    "ia3": Peft(method="ia3"),
    "ln_tuning": Peft(method="ln_tuning"),
}
WITHOUT_CACHE = {"bert", "roberta", "deberta-v2", "distilbert", "modernbert"}


def dropping(model: Any, p: float = 0.5, frozen: int = 0, mode: Any = None, **more: Any) -> Plan:
    """Everything trains, or all blocks above a frozen bottom; with LayerDrop."""
    depth = len(find_anatomy(model).blocks)
    blocks = (Frozen(),) * frozen + (mode or Full(),) * (depth - frozen)
    whole = not frozen and mode is None
    ends = {"embeddings": Full(), "head": Full()} if whole else {"head": Frozen(), "final_norm": Frozen()}
    return Plan(blocks=blocks, **ends, forward=Forward(layerdrop=LayerDrop(p=p, seed=3), **more))


def drawn(seed: int, step: int, made: int, able: list[int], p: float, stack: str) -> set[int]:
    """Which blocks pass `made` of `step` skips, written out: never all of them."""
    generator = random.Random(derive_seed(seed, "layerdrop", stack, step, made))
    while True:
        skipped = {index for index in able if generator.random() < p}
        if skipped != set(able):
            return skipped


def ran(model: Any, anatomy: Any) -> set[int]:
    """The blocks of which some tensor has a gradient."""
    names = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {block.index for block in anatomy.blocks if any(n.startswith(f"{block.name}.") for n in names)}


class Through(nn.Module):
    """In the place of a block: gives back what it is given."""

    def __init__(self, block: Any, form: Any) -> None:
        super().__init__()
        self.form = form
        for name in ("attention_type", "layer_type", "is_sliding"):
            if hasattr(block, name):
                setattr(self, name, getattr(block, name))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return self.form(hidden, args)


FORMS = {
    "gptj": lambda hidden, _: (hidden, None),
    "deberta-v2": lambda hidden, _: (hidden, None),
    "t5": lambda hidden, given: (hidden, given[2], given[5]),  # the position biases of both attentions
}


def without(model: Any, anatomy: Any, skipped: set[int]) -> Any:
    """A copy of `model` that has no such blocks."""
    copied = copy.deepcopy(model)
    for block in anatomy.blocks:
        if block.index in skipped:
            above, _, name = block.name.rpartition(".")
            form = FORMS.get(anatomy.model_type, lambda hidden, _: hidden)
            setattr(copied.get_submodule(above), name, Through(copied.get_submodule(block.name), form))
    return copied


def step(model: Any, **options: Any) -> float:
    cache = {} if model.config.model_type in WITHOUT_CACHE else {"use_cache": False}
    loss = model.train()(**batch_for(model), **cache, **options).loss
    loss.backward()
    return float(loss.detach())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_pass_is_that_of_a_model_without_the_skipped_blocks(name: str) -> None:
    """Loss and gradients, on every architecture: masks by type of layer, tuples, a position bias that others read."""
    plain = tiny(name, dropout=0.0)
    model, anatomy = copy.deepcopy(plain), find_anatomy(plain)
    apply(dropping(plain), model)
    able = {"encoder": [1, 2, 3], "decoder": [5, 6]} if name == "t5" else {anatomy.blocks[0].stack: [0, 1, 2, 3]}
    seen = set()
    for made in range(4):
        model.zero_grad()
        loss = step(model)
        skipped: set[int] = set()
        for stack, blocks in able.items():
            found = random.Random(derive_seed(3, "layerdrop", stack, 0, made))
            gone = {index for index in blocks if found.random() < 0.5}
            while name != "t5" and gone == set(blocks):
                gone = {index for index in blocks if found.random() < 0.5}
            skipped |= gone
        seen |= skipped
        assert ran(model, anatomy) == set(range(len(anatomy.blocks))) - skipped
        reference = without(plain, anatomy, skipped)
        assert loss == pytest.approx(step(reference), rel=LOSS)
        theirs = dict(reference.named_parameters())
        for key, parameter in model.named_parameters():
            if parameter.grad is not None and key in theirs:
                own = theirs[key].grad
                own = torch.zeros_like(parameter) if own is None else own
                near = GRADIENT * max(1.0, float(own.norm()))
                torch.testing.assert_close(parameter.grad, own, atol=near, rtol=0, msg=f"{name}: {key}")
    assert seen, "some block was skipped"


def test_the_blocks_that_others_read_always_run_and_a_notice_says_so() -> None:
    anatomy = find_anatomy(tiny("t5"))
    lines = [line for line in notices(dropping(tiny("t5")), anatomy) if line.startswith("layerdrop")]
    assert lines == [
        f"layerdrop: block {index} is never skipped, because other blocks read what it makes (position bias)"
        for index in (0, 4)
    ]
    assert not [line for line in notices(dropping(tiny("llama")), find_anatomy(tiny("llama"))) if "layerdrop" in line]


@pytest.mark.parametrize("mode", [None, Lora(r=2, dropout=0.0)])
def test_frozen_blocks_and_evaluation_run_whole(mode: Any) -> None:
    plain = tiny("llama", dropout=0.0)
    model, anatomy = copy.deepcopy(plain), find_anatomy(plain)
    apply(dropping(plain, p=0.9, frozen=2, mode=mode), model)
    batch = batch_for(plain)
    torch.testing.assert_close(model.eval()(**batch).logits, plain.eval()(**batch).logits)
    for made in range(8):
        model.zero_grad()
        skipped = drawn(3, 0, made, [2, 3], 0.9, "decoder")
        assert step(model) == pytest.approx(step(without(plain, anatomy, skipped)), rel=LOSS)
        assert ran(model, anatomy) == {2, 3} - skipped != set()


@pytest.mark.parametrize("p", [0.5, 0.0])
@pytest.mark.parametrize("name", ["llama", "gemma3", "bert", "t5", "opt"])
def test_every_other_block_runs_in_evaluation(name: str, p: float) -> None:
    plain = tiny(name)
    anatomy = find_anatomy(plain)
    plan = dropping(plain).model_copy(update={"forward": Forward(layerdrop=LayerDrop(p=p, evaluate="every_other"))})
    model = copy.deepcopy(plain)
    apply(plan, model)
    gone = {2, 6} if name == "t5" else {1, 3}
    batch, reference = batch_for(plain), without(plain, anatomy, gone)
    expected = reference.eval()(**batch).logits
    torch.testing.assert_close(model.eval()(**batch).logits, expected)
    assert not torch.allclose(expected, plain.eval()(**batch).logits)
    with pytest.raises(UserError, match=r"nothing can be merged, .* without every other block .*: use the model as"):
        check_plain(model)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt2", "gptj", "t5"])
def test_decoding_with_a_cache_is_a_full_pass_where_blocks_are_left_out(name: str) -> None:
    model = tiny(name)
    plan = dropping(model).model_copy(update={"forward": Forward(layerdrop=LayerDrop(p=0.5, evaluate="every_other"))})
    apply(plan, model)
    ids = torch.randint(3, 128, (2, 7), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with torch.no_grad():
        kept = model.eval().generate(ids, attention_mask=torch.ones_like(ids), use_cache=True, **options)
        plain = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **options)
    assert torch.equal(kept, plain)


def by_place(model: Any) -> dict[str, Any]:
    """The parameters, by names in which neither modules around others nor an adapter's number are."""
    named = model.named_parameters()
    return {re.sub(r"-\d{3}\b", "", name.replace(".base_layer", "")): parameter for name, parameter in named}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_robust_adapterdrop_is_the_plan_without_the_lowest_adapters(kind: str) -> None:
    """Loss and gradients in training, and in evaluation with a fixed number."""
    mode, seen = ADAPTERS[kind], set()
    robust = Forward(adapterdrop=AdapterDrop(robust=True, seed=1, evaluate=2))
    plan = Plan(blocks=(Frozen(), *(mode,) * 3), final_norm=Frozen(), head=Frozen(), forward=robust)
    model = tiny("llama", dropout=0.0)
    apply(plan, model, seed=5)
    for made in range(7):
        count = random.Random(derive_seed(1, "adapterdrop", 0, made)).randrange(3)
        seen.add(count)
        blocks = (Frozen(),) * (1 + count) + (mode,) * (3 - count)
        reference = tiny("llama", dropout=0.0)
        apply(plan.model_copy(update={"blocks": blocks, "forward": Forward()}), reference, seed=5)
        values = by_place(model)
        with torch.no_grad():
            for key, parameter in by_place(reference).items():
                parameter.copy_(values[key])
        model.zero_grad()
        assert step(model) == pytest.approx(step(reference), rel=LOSS)
        theirs = by_place(reference)
        for key, parameter in values.items():
            own = theirs[key].grad if key in theirs else None
            assert (parameter.grad is None) == (own is None), key
            if own is not None:
                torch.testing.assert_close(parameter.grad, own, atol=GRADIENT * max(1.0, float(own.norm())), rtol=0)
        if count == 2:
            expected = reference.eval()(**batch_for(reference)).logits
            torch.testing.assert_close(model.eval()(**batch_for(model)).logits, expected)
        with torch.no_grad():  # so that adapters matter
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(made))
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
@pytest.mark.parametrize("kind", ["layerdrop", "adapterdrop"])
def test_activation_checkpointing_changes_nothing(name: str, kind: str) -> None:
    """Also where the input of the blocks is made to require gradients, as PEFT does."""
    found: list[Any] = []
    for checkpointed in (False, True):
        model = tiny(name, dropout=0.0)
        mode = Full() if kind == "layerdrop" else Lora(r=2, dropout=0.0)
        plan = dropping(model, mode=mode)
        if kind == "adapterdrop":
            plan = plan.model_copy(update={"forward": Forward(adapterdrop=AdapterDrop(robust=True, seed=2))})
        apply(plan, model)
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        losses = []
        for _ in range(4):
            losses.append(step(model))
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        found.append((losses, gradients))
    assert found[0][0] == pytest.approx(found[1][0], rel=LOSS)  # not equal: memory need not begin alike
    assert found[0][1].keys() == found[1][1].keys()
    for key, gradient in found[0][1].items():
        near = GRADIENT * max(1.0, float(gradient.norm()))
        torch.testing.assert_close(gradient, found[1][1][key], atol=near, rtol=0, msg=key)


def test_no_backward_pass_crosses_a_block_whose_adapter_is_left_out() -> None:
    """Even where the embeddings are made to require gradients, as with activation checkpointing."""
    model = tiny("llama", dropout=0.0)
    plan = Plan(blocks=(Lora(r=2, dropout=0.0),) * 4, final_norm=Frozen(), head=Frozen())
    apply(plan.model_copy(update={"forward": Forward(adapterdrop=AdapterDrop(robust=True))}), model)
    model.enable_input_require_grads()
    crossed: list[bool] = []
    for block in model.model.layers:
        block.register_forward_hook(lambda _block, _inputs, output: crossed.append(output.requires_grad))
    for made in range(4):
        crossed.clear()
        step(model)
        count = random.Random(derive_seed(0, "adapterdrop", 0, made)).randrange(4)
        assert crossed == [index >= count for index in range(4)]


def test_two_passes_before_a_backward_pass_keep_their_own_draws() -> None:
    plain = tiny("llama", dropout=0.0)
    model, anatomy, batch = copy.deepcopy(plain), find_anatomy(plain), batch_for(plain)
    apply(dropping(plain), model)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    (model(**batch, use_cache=False).loss + model(**batch, use_cache=False).loss).backward()
    total = {key: torch.zeros_like(p) for key, p in plain.named_parameters()}
    for made in (0, 1):
        reference = without(plain, anatomy, drawn(3, 0, made, [0, 1, 2, 3], 0.5, "decoder"))
        step(reference)
        for key, parameter in reference.named_parameters():
            if parameter.grad is not None:
                total[key] += parameter.grad
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, total[key], atol=GRADIENT * 10, rtol=0, msg=key)


def test_draws_depend_on_seed_step_and_pass_alone() -> None:
    def sequence(seed: int, steps: list[int]) -> list[set[int]]:
        model = tiny("llama", dropout=0.0)
        plan = dropping(model)
        forward = Forward(layerdrop=LayerDrop(p=0.5, seed=seed))
        anatomy = apply(plan.model_copy(update={"forward": forward}), model).anatomy
        found = []
        for number in steps:
            begin_step(model, number)
            for _ in range(2):
                model.zero_grad()
                torch.manual_seed(number)  # no generator of torch's matters
                step(model)
                found.append(ran(model, anatomy))
        return found

    whole = sequence(1, [0, 1, 2, 3, 4, 5])
    assert sequence(1, [3, 4, 5]) == whole[6:]
    assert sequence(2, [0, 1, 2, 3, 4, 5]) != whole
    assert len({frozenset(blocks) for blocks in whole}) > 3
    assert any(whole[i] != whole[i + 1] for i in range(0, 12, 2)), "each pass of a step has a draw of its own"


def test_checks_of_shortcuts_do_not_move_the_draws() -> None:
    model = tiny("llama", dropout=0.0)
    anatomy = apply(dropping(model), model).anatomy
    batch = batch_for(model)
    begin_step(model, 7)
    with undisturbed(model, training=True):
        model(**batch)

    def loss() -> torch.Tensor:
        found: torch.Tensor = model(**batch).loss
        return found

    assert compare_training(model, loss, loss, SAME, training=True) is None
    step(model)
    assert ran(model, anatomy) == {0, 1, 2, 3} - drawn(3, 7, 0, [0, 1, 2, 3], 0.5, "decoder")


def test_an_error_in_a_pass_leaves_a_whole_model() -> None:
    model = tiny("llama", dropout=0.0)
    apply(dropping(model), model)
    plain = model.eval()(**batch_for(model)).logits
    hook = model.model.layers[3].register_forward_pre_hook(lambda *_: 1 / 0)
    hook2 = model.model.norm.register_forward_pre_hook(lambda *_: 1 / 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            step(model)
    hook.remove()
    hook2.remove()
    assert all("forward" not in vars(block) for block in model.model.layers)
    assert torch.equal(model.eval()(**batch_for(model)).logits, plain)


def test_a_copy_draws_for_itself() -> None:
    model = tiny("llama", dropout=0.0)
    anatomy = apply(dropping(model), model).anatomy
    copied = copy.deepcopy(model)
    for _ in range(3):
        step(model)
    model.zero_grad()
    step(copied)
    assert ran(copied, anatomy) == {0, 1, 2, 3} - drawn(3, 0, 0, [0, 1, 2, 3], 0.5, "decoder")
    assert not ran(model, anatomy)


def test_with_residual_interaction_and_layered_loss() -> None:
    """A skipped block returns its input, to which the earlier state is added; its state counts in a layered loss."""
    plain = tiny("gpt2", dropout=0.0)
    model = copy.deepcopy(plain)
    forward = {"residual": Residual(alpha=0.3), "loss_weights": (0.0, 0.5, 0.0, 1.0)}
    apply(dropping(plain, **forward), model)
    batch = batch_for(plain)
    skipped = drawn(3, 0, 0, [0, 1, 2, 3], 0.5, "decoder")
    trunk, ids = plain.transformer, batch["input_ids"]
    length = ids.shape[1]
    seen = torch.ones(length, length).tril().bool() & batch["attention_mask"][:, None, None, :].bool()
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    state, total = trunk.wte(ids) + trunk.wpe(torch.arange(length)), torch.zeros(())
    for index, block in enumerate(trunk.h):
        own = state if index in skipped else block(state, attention_mask=mask)
        state = own + 0.3 * state
        if weight := forward["loss_weights"][index]:
            logits = plain.lm_head(trunk.ln_f(state))[:, :-1].flatten(0, 1)
            total = total + weight * functional.cross_entropy(logits, batch["labels"][:, 1:].flatten())
    assert step(model) == pytest.approx(float(total.detach()), rel=LOSS)


@pytest.mark.parametrize(
    ("plan", "what"),
    [
        (Plan(blocks=(Frozen(),) * 4, forward=Forward(layerdrop=LayerDrop(p=0.2))), "layerdrop: no block trains"),
        (Plan(blocks=(Full(),) * 4, forward=Forward(adapterdrop=AdapterDrop(robust=True))), "no block has an adapter"),
        (
            Plan(blocks=(Full(), *(Lora(),) * 3), forward=Forward(adapterdrop=AdapterDrop(robust=True))),
            "adapterdrop: block 0 trains its own tensors",
        ),
        (
            Plan(blocks=(Lora(),) * 4, forward=Forward(adapterdrop=AdapterDrop(evaluate=4))),
            "4 of 4 blocks with adapters",
        ),
        (
            Plan(blocks=(Peft(method="adalora"),) * 4, forward=Forward(layerdrop=LayerDrop(p=0.2))),
            "block 0: AdaLoRA divides its ranks among all blocks",
        ),
    ],
)
def test_what_cannot_be_left_out_is_refused(plan: Plan, what: str) -> None:
    model = tiny("llama")
    before = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    with pytest.raises(PlanError, match=f"^forward.*{what}.*: use "):
        apply(plan, model)
    assert {key: parameter.requires_grad for key, parameter in model.named_parameters()} == before


def test_a_model_that_is_not_in_memory_is_refused() -> None:
    model = tiny("llama")
    model.model.layers[0].to("meta")
    plan = dropping(model, frozen=2)
    with pytest.raises(PlanError, match=r"^forward.layerdrop: a part of the model is not in memory.*: use the whole"):
        check_forward(model, plan, find_anatomy(model))


def test_a_model_that_drops_layers_itself_is_refused() -> None:
    model = tiny("opt")
    model.model.decoder.layerdrop = 0.1  # as its config had it when it was made; the config may say otherwise by now
    with pytest.raises(PlanError, match=r"^forward: OPTForCausalLM skips blocks at random in training: load it with"):
        apply(dropping(model), model)


def test_what_a_skipped_block_would_have_made_cannot_be_used() -> None:
    model = tiny("gptj", dropout=0.0)
    apply(dropping(model, p=0.9), model)
    output = model.train()(**batch_for(model), output_attentions=True)
    unmade = [one for one in output.attentions if not isinstance(one, torch.Tensor)]
    assert unmade
    with pytest.raises(FrostlineError, match=r"block \d was skipped, and the model reads .*: leave out output_attent"):
        torch.stack([torch.zeros(1)]) + unmade[0]


def test_a_plan_with_drops_is_read_and_written() -> None:
    forward = Forward(layerdrop=LayerDrop(p=0.2), adapterdrop=AdapterDrop(robust=True, seed=4, evaluate=1))
    plan = Plan(blocks=(Lora(),) * 2, forward=forward)
    assert from_text(to_yaml(plan)) == from_text(to_json(plan)) == plan
    assert "forward: {layerdrop: {p: 0.2}, adapterdrop: {robust: true, seed: 4, evaluate: 1}}" in to_yaml(plan)
    said = document(plan.model_copy(update={"forward": Forward(layerdrop=LayerDrop(p=0.2))}))["forward"]
    assert said == {
        "loss_weights": None,
        "residual": {"alpha": 0.0, "span": 1},
        "layerdrop": {"p": 0.2, "seed": 0, "evaluate": "all"},
    }
    with pytest.raises(PlanError, match=r"forward.layerdrop.p"):
        from_text(to_yaml(plan).replace("0.2", "1.0"))


def test_what_training_drops_does_not_keep_it_from_being_merged(tmp_path: Path) -> None:
    model = tiny("llama")
    model.save_pretrained(tmp_path / "base")
    model = type(model).from_pretrained(tmp_path / "base")
    apply(dropping(model, mode=Lora(r=2)), model)
    save_delta(model, tmp_path / "delta")
    merge(tmp_path / "delta", tmp_path / "merged")
    batch = batch_for(model)
    merged = type(model).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged.eval()(**batch).logits, model.eval()(**batch).logits)
