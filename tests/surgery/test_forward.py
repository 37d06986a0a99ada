"""Residual interaction and layered loss, against loops written by hand over a model's own modules."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, LlamaForCausalLM, TrainingArguments
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from architectures import ARCHITECTURES, batch_for, tiny
from frostline.anatomy import find_anatomy, get_block
from frostline.checkpoints import load, merge, save_delta
from frostline.core.errors import CheckpointError, FrostlineError, PlanError
from frostline.engine import Trainer
from frostline.loss_positions import use_loss_positions
from frostline.plan import Forward, Frozen, Full, Plan, Residual
from frostline.surgery import applied_to, apply
from frostline.surgery._forward import check_forward, check_loss_is_the_models, install_forward

ALPHA = 0.3


def lively(name: str, **options: Any) -> Any:
    """A tiny model whose blocks change their states by as much as these are; drawn as usual, most hardly do."""
    model: Any = tiny(name, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and name != "t5":
                parameter.mul_(5)
    return model


def planned(model: Any, alpha: float = 0.0, span: int = 1, weights: tuple[float, ...] | None = None) -> Plan:
    """Everything trains but blocks above the highest one that has a weight."""
    forward = Forward(loss_weights=weights, residual=Residual(alpha=alpha, span=span))
    depth = len(find_anatomy(model).blocks)
    learning = depth if weights is None else 1 + max(index for index, weight in enumerate(weights) if weight)
    blocks = (Full(),) * learning + (Frozen(),) * (depth - learning)
    return Plan(embeddings=Full(), blocks=blocks, forward=forward)


# The same computations by hand.


def causal(mask: Tensor) -> Tensor:
    """Additive, [B, 1, T, T]."""
    seen = torch.ones(mask.shape[1], mask.shape[1]).tril().bool() & mask[:, None, None, :].bool()
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def states_of(blocks: Any, state: Tensor, run: Callable[[Any, Tensor], Any], alpha: float, span: int) -> list[Tensor]:
    states = [state]
    for number, block in enumerate(blocks, start=1):
        out = run(block, states[-1])
        out = out[0] if isinstance(out, tuple) else out
        states.append(out + alpha * states[number - span] if number >= span else out)
    return states


def llama(model: Any, batch: dict[str, Tensor], alpha: float, span: int) -> tuple[list[Tensor], Callable[..., Any]]:
    trunk, state = model.model, model.model.embed_tokens(batch["input_ids"])
    tables = trunk.rotary_emb(state, torch.arange(state.shape[1])[None])
    mask = causal(batch["attention_mask"])
    states = states_of(
        trunk.layers, state, lambda b, h: b(h, attention_mask=mask, position_embeddings=tables), alpha, span
    )
    return states, lambda h: model.lm_head(trunk.norm(h))


def gpt2(model: Any, batch: dict[str, Tensor], alpha: float, span: int) -> tuple[list[Tensor], Callable[..., Any]]:
    trunk, ids = model.transformer, batch["input_ids"]
    state, mask = trunk.wte(ids) + trunk.wpe(torch.arange(ids.shape[1])), causal(batch["attention_mask"])
    states = states_of(trunk.h, state, lambda b, h: b(h, attention_mask=mask), alpha, span)
    return states, lambda h: model.lm_head(trunk.ln_f(h))


def bert(model: Any, batch: dict[str, Tensor], alpha: float, span: int) -> tuple[list[Tensor], Callable[..., Any]]:
    trunk = model.bert
    keys = batch["attention_mask"][:, None, None, :].expand(-1, 1, batch["attention_mask"].shape[1], -1)
    mask = torch.zeros(keys.shape).masked_fill(keys == 0, torch.finfo(torch.float32).min)
    states = states_of(trunk.encoder.layer, trunk.embeddings(batch["input_ids"]), lambda b, h: b(h, mask), alpha, span)
    return states, lambda h: model.classifier(trunk.pooler(h))


def t5(model: Any, batch: dict[str, Tensor], alpha: float, span: int) -> tuple[list[Tensor], Callable[..., Any]]:
    def stack(part: Any, state: Tensor, mask: Tensor, **encoder: Any) -> list[Tensor]:
        bias: dict[str, Any] = {}

        def run(block: Any, h: Tensor) -> Any:
            out = block(h, attention_mask=mask, **encoder, **bias)
            bias["position_bias"] = out[1]
            if encoder:
                bias["encoder_decoder_position_bias"] = out[2]
            return out

        return states_of(part.block, state, run, alpha, span)

    given, labels = batch["attention_mask"], batch["labels"]
    keys = given[:, None, None, :]
    padding = torch.zeros(keys.shape).masked_fill(keys == 0, torch.finfo(torch.float32).min)
    length = given.shape[1]
    encoded = model.encoder.final_layer_norm(
        stack(model.encoder, model.shared(batch["input_ids"]), padding.expand(-1, 1, length, length))[-1]
    )
    states = stack(
        model.decoder,
        model.shared(F.pad(labels[:, :-1], (1, 0), value=0)),
        causal(torch.ones_like(labels)),
        encoder_hidden_states=encoded,
        encoder_attention_mask=padding.expand(-1, 1, labels.shape[1], length),
    )
    scale = model.model_dim**-0.5 if model.config.scale_decoder_outputs else 1.0
    return states, lambda h: model.lm_head(model.decoder.final_layer_norm(h) * scale)


BY_HAND = {"llama": llama, "gpt2": gpt2, "bert": bert, "t5": t5}


def loss_by_hand(model: Any, logits: Tensor, labels: Tensor) -> Tensor:
    if labels.dim() == 1:
        return F.cross_entropy(logits, labels)
    if not model.config.is_encoder_decoder:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    named = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.norm() > 0 or "bias" in name, name
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


# Residual interaction.


@pytest.mark.parametrize(("name", "span"), [("llama", 1), ("llama", 2), ("llama", 4), ("gpt2", 2), ("bert", 3)])
def test_residual_interaction_is_the_one_by_hand(name: str, span: int) -> None:
    model = lively(name)
    batch = batch_for(model)
    plain = model.eval()(**batch)
    states, head = BY_HAND[name](model, batch, ALPHA, span)
    wanted = loss_by_hand(model, head(states[-1]), batch["labels"])
    wanted_gradients = gradients(model, wanted)
    apply(planned(model, ALPHA, span), model)
    out = model(**batch)
    torch.testing.assert_close(out.logits, head(states[-1]), rtol=1e-5, atol=1e-5)
    assert (plain.logits - out.logits).abs().max() > 1e-2, "the interaction does something"
    assert_same(gradients(model, out.loss), wanted_gradients)


@pytest.mark.parametrize("span", [1, 2])
def test_each_stack_of_an_encoder_decoder_interacts_for_itself(span: int) -> None:
    model = lively("t5")
    batch = batch_for(model)
    states, head = t5(model.eval(), batch, ALPHA, span)
    wanted = loss_by_hand(model, head(states[-1]), batch["labels"])
    wanted_gradients = gradients(model, wanted)
    apply(planned(model, ALPHA, span), model)
    out = model(**batch)
    torch.testing.assert_close(out.logits, head(states[-1]), rtol=1e-5, atol=1e-5)
    assert_same(gradients(model, out.loss), wanted_gradients)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_equation_holds_at_every_block(name: str) -> None:
    model = lively(name).eval()
    anatomy = find_anatomy(model)
    handles = install_forward(model, planned(model, ALPHA, 2), anatomy)
    given: list[Any] = []
    notes = [
        get_block(model, anatomy, block.index).register_forward_pre_hook(
            lambda _module, args, kwargs: given.append((args, kwargs)), with_kwargs=True
        )
        for block in anatomy.blocks
    ]
    with torch.no_grad():
        model(**batch_for(model), use_cache=False) if name != "distilbert" else model(**batch_for(model))
    for handle in (*handles, *notes):
        handle.remove()
    state = [args[0] if args else kwargs["hidden_states"] for args, kwargs in given]
    depth = sum(block.stack == anatomy.blocks[0].stack for block in anatomy.blocks)
    for index, (args, kwargs) in enumerate(given[:-1]):
        if index + 1 == depth:
            continue  # the encoder's last: its output goes through a norm
        with torch.no_grad():
            out = get_block(model, anatomy, index)(*args, **kwargs)
        out = out[0] if isinstance(out, tuple) else out
        number = index + 1 if index < depth else index + 1 - depth
        wanted = out + ALPHA * state[index - 1] if number >= 2 else out
        torch.testing.assert_close(state[index + 1], wanted)


def test_hidden_states_and_checkpointing_see_the_interaction() -> None:
    model, batch = lively("llama"), batch_for(tiny("llama"))
    model(**batch, output_hidden_states=True)  # installs transformers' own hooks before the plan's
    states, _ = llama(model, batch, ALPHA, 2)
    apply(planned(model, ALPHA, 2, (0.0, 0.5, 0.0, 1.0)), model)
    out = model.train()(**batch, output_hidden_states=True)
    for mine, wanted in zip(out.hidden_states[:-1], states[:-1], strict=True):
        torch.testing.assert_close(mine, wanted)
    without = gradients(model, out.loss)
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert_same(gradients(model, model(**batch).loss), without)


def test_two_forward_passes_before_a_backward() -> None:
    model = lively("llama").train()
    apply(planned(model, ALPHA, 2, (0.0, 0.5, 0.0, 1.0)), model)
    first, second = batch_for(model), batch_for(model, length=6, seed=1)
    one_by_one = [gradients(model, model(**batch).loss) for batch in (first, second)]
    losses = [model(**batch).loss for batch in (first, second)]
    both = gradients(model, losses[0] + losses[1])
    assert_same(both, {name: one_by_one[0][name] + one_by_one[1][name] for name in both})


@pytest.mark.parametrize("name", ["llama", "t5"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache_is_generation_without(name: str, beams: int) -> None:
    model = lively(name).eval()
    batch = batch_for(model)
    ids, mask = batch["input_ids"][:1], batch["attention_mask"][:1]

    def generate(cache: bool) -> tuple[Tensor, Tensor]:
        options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "num_beams": beams}
        wanted = {"return_dict_in_generate": True, "output_logits": True}
        out = model.generate(input_ids=ids, attention_mask=mask, use_cache=cache, **options, **wanted)
        return out.sequences, torch.stack(out.logits)

    _, base = generate(True)
    apply(planned(model, ALPHA, 2), model)
    model.eval()
    (tokens, scores), (others, other_scores) = generate(True), generate(False)
    assert torch.equal(tokens, others)
    torch.testing.assert_close(scores, other_scores, rtol=1e-4, atol=1e-4)
    assert (scores[0] - base[0]).abs().max() > 1e-2


def test_autocast_computes_what_the_loop_does_under_it() -> None:
    model, batch = lively("llama"), batch_for(tiny("llama"))
    with torch.autocast("cpu", torch.bfloat16):
        states, head = llama(model, batch, ALPHA, 2)
        wanted = 0.5 * loss_by_hand(model, head(states[2]).float(), batch["labels"])
        wanted = wanted + loss_by_hand(model, head(states[4]).float(), batch["labels"])
    apply(planned(model, ALPHA, 2, (0.0, 0.5, 0.0, 1.0)), model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(**batch).loss
    torch.testing.assert_close(loss, wanted, rtol=2e-3, atol=0)


def test_a_frozen_bottom_in_bfloat16_under_float32() -> None:
    forward = Forward(loss_weights=(0.0, 0.5, 0.0, 1.0), residual=Residual(alpha=ALPHA, span=2))
    plan = Plan(blocks=(Frozen(), Frozen(), Full(), Full()), forward=forward)
    whole, mixed = lively("llama"), lively("llama").to(torch.bfloat16)
    batch = batch_for(whole)
    losses = []
    for model in (whole, mixed):
        apply(plan, model)
        losses.append(model.train()(**batch).loss)
        losses[-1].backward()
        trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert trained == set(applied_to(model).lr_scales)  # type: ignore[union-attr]
    torch.testing.assert_close(losses[1].float(), losses[0], rtol=3e-2, atol=0)


def test_a_state_is_read_as_it_was_made_also_above_which_the_dtype_changes() -> None:
    """h_2 leaves a float32 block and enters a bfloat16 one."""
    forward = Forward(loss_weights=(0.0, 0.5, 0.0, 1.0), residual=Residual(alpha=ALPHA, span=2))
    model = lively("llama").to(torch.bfloat16)
    batch = batch_for(model)
    apply(Plan(blocks=(Frozen(), Full(), Frozen(), Full()), forward=forward), model)
    second, last = model.model.layers[1], model.model.layers[3]
    seen: dict[str, Tensor] = {}
    second.register_forward_hook(lambda _module, _inputs, output: seen.update(made=output))
    last.register_forward_hook(lambda _module, _inputs, output: seen.update(own=output), prepend=True)
    last.register_forward_hook(lambda _module, _inputs, output: seen.update(given=output))
    loss = model.train()(**batch).loss
    made = seen["made"]
    assert made.dtype == torch.float32 and not torch.equal(made, made.bfloat16().float())
    assert torch.equal(seen["given"], seen["own"] + ALPHA * made)
    terms = [loss_by_hand(model, model.lm_head(model.model.norm(h)), batch["labels"]) for h in (made, seen["given"])]
    torch.testing.assert_close(loss, 0.5 * terms[0] + terms[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_no_state_outlives_the_pass(training: bool) -> None:
    model, batch = lively("llama"), batch_for(tiny("llama"))
    apply(planned(model, ALPHA, 2, (0.0, 0.5, 0.0, 1.0)), model)
    seen: list[weakref.ref[Tensor]] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(weakref.ref(output)))
    model.train(training)
    with torch.no_grad():
        model(**batch)
    gc.collect()
    assert len(seen) >= 4 and all(state() is None for state in seen)


@pytest.mark.parametrize("weights", [None, (0.0, 0.0, 0.0, 1.0)])
def test_off_is_the_base_model_bit_for_bit(weights: tuple[float, ...] | None) -> None:
    model, batch = lively("llama"), batch_for(tiny("llama"))
    plain = model.train()(**batch)
    plan = planned(model, 0.0, 3, weights)
    assert install_forward(model, plan, find_anatomy(model)) == []
    apply(plan, model)
    out = model.train()(**batch)
    assert torch.equal(out.logits, plain.logits) and torch.equal(out.loss, plain.loss)


# Layered loss.


@pytest.mark.parametrize("name", list(BY_HAND))
@pytest.mark.parametrize(("alpha", "own"), [(0.0, 1.0), (ALPHA, 0.0)])
def test_the_layered_loss_is_the_one_by_hand(name: str, alpha: float, own: float) -> None:
    model = lively(name)
    batch = batch_for(model)
    if name == "t5":
        batch["labels"] = batch["labels"][:, :5].contiguous()
    states, head = BY_HAND[name](model, batch, alpha, 2)
    lower = {1: 0.25, 2: -0.5}
    weights = {**lower, len(states) - 1: own}
    plain = loss_by_hand(model, head(states[-1]), batch["labels"])
    wanted = sum(weight * loss_by_hand(model, head(states[l]), batch["labels"]) for l, weight in weights.items())  # noqa: E741
    wanted_gradients = gradients(model, wanted)
    total = len(find_anatomy(model).blocks)
    first = total - (len(states) - 1)
    plan = planned(model, alpha, 2, tuple(weights.get(index + 1 - first, 0.0) for index in range(total)))
    apply(plan, model)
    out = model.train()(**batch)
    torch.testing.assert_close(out.loss, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out["loss"], out.loss)
    torch.testing.assert_close(out.logits, head(states[-1]), rtol=1e-5, atol=1e-5)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert_same(
        gradients(model, out.loss), {name: wanted_gradients[name] for name in wanted_gradients if name in learning}
    )
    torch.testing.assert_close(model.eval()(**batch).loss, plain, rtol=1e-5, atol=1e-5)


def test_every_architecture_gives_its_own_loss_for_its_own_last_state() -> None:
    """Weights of 0.5 on each of two equal states: a last block that changes nothing."""
    for name in ARCHITECTURES:
        model = lively(name)
        batch, anatomy = batch_for(model), find_anatomy(model)
        last = len(anatomy.blocks) - 1
        weights = tuple(0.5 if index >= last - 1 else 0.0 for index in range(last + 1))
        block = get_block(model, anatomy, last)

        def nothing(_module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        block.register_forward_hook(nothing, with_kwargs=True)
        plain = model.train()(**batch)
        install_forward(model, planned(model, weights=weights), anatomy)
        out = model(**batch)
        torch.testing.assert_close(out.loss, plain.loss, msg=name)
        assert torch.equal(out.logits, plain.logits), name


@pytest.mark.parametrize("own", [1.0, 0.4])
def test_a_router_loss_counts_once(own: float) -> None:
    model = lively("mixtral", output_router_logits=True, router_aux_loss_coef=0.5)
    batch = batch_for(model)
    plain = model.eval()(**batch, output_hidden_states=True)
    router = load_balancing_loss_func(plain.router_logits, 4, 2, batch["attention_mask"])
    lower = loss_by_hand(model, model.lm_head(model.model.norm(plain.hidden_states[2])), batch["labels"])
    task = loss_by_hand(model, plain.logits, batch["labels"])
    wanted = 0.25 * lower + own * task + 0.5 * router
    wanted_gradients = gradients(model, wanted)
    apply(planned(model, weights=(0.0, 0.25, 0.0, own)), model)
    out = model.train()(**batch)
    torch.testing.assert_close(out.loss, wanted)
    assert_same(gradients(model, out.loss), wanted_gradients)


def test_the_number_of_items_divides_every_term() -> None:
    model, batch = lively("llama"), batch_for(tiny("llama"))
    apply(planned(model, weights=(0.0, 0.5, 0.0, 1.0)), model)
    items = int((batch["labels"][:, 1:] != -100).sum())
    whole = model.train()(**batch).loss
    torch.testing.assert_close(model(**batch, num_items_in_batch=2 * items).loss, whole / 2)


def test_what_a_layered_loss_needs_of_a_call() -> None:
    model, batch = lively("llama"), batch_for(tiny("llama"))
    apply(planned(model, weights=(0.0, 0.5, 0.0, 1.0)), model)
    model.train()
    assert model(input_ids=batch["input_ids"]).loss is None
    with pytest.raises(FrostlineError, match="leave out return_dict=False"):
        model(**batch, return_dict=False)
    assert torch.isfinite(model(**batch).loss), "a pass that was broken off leaves nothing behind"


# Refusals: one line each.


class Skipping(LlamaForCausalLM):
    """Its logits read the second block too."""

    def forward(self, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        seen: list[Tensor] = []
        handle = self.model.layers[1].register_forward_hook(lambda _m, _i, output: seen.append(output * 1.5))
        try:
            out = super().forward(*args, labels=labels, **kwargs)
        finally:
            handle.remove()
        out.logits = out.logits + self.lm_head(seen[0] if seen else 0 * self.model.norm.weight)
        return out


@pytest.mark.parametrize(
    ("model", "forward", "line"),
    [
        (
            lambda: tiny("t5"),
            {"loss_weights": (0, 0, 1, 0, 0, 0, 1)},
            r"the states of an encoder do not go through .*: use weight 0 for the first 4 of the 7 blocks",
        ),
        (
            lambda: tiny("t5"),
            {"residual": {"alpha": 1, "span": 5}},
            r"5 is more than the 4 blocks of a stack of .*: use at most 4",
        ),
        (
            lambda: tiny("opt", layerdrop=0.1),
            {"residual": {"alpha": 1}},
            r"skips blocks at random.*layerdrop=0",
        ),
        (
            lambda: AutoModel.from_config(tiny("bert").config),
            {"loss_weights": (0, 0, 1, 1)},
            r"BertModel computes no loss of its own",
        ),
        (
            lambda: Skipping(tiny("llama").config),
            {"loss_weights": (0, 0, 1, 1)},
            r"what follows the blocks reads more than the states of the last one: use no loss_weights for Skipping",
        ),
    ],
)
def test_what_cannot_be_exact_is_refused(model: Callable[[], Any], forward: dict[str, Any], line: str) -> None:
    made = model()
    anatomy = find_anatomy(made)
    blocks = (Frozen(),) * (len(anatomy.blocks) - 1) + (Full(),)
    plan = Plan(blocks=blocks, forward=Forward(**forward))
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in made.modules())
    with pytest.raises(PlanError, match=rf"^forward.*{line}[^\n]*$"):
        check_forward(made, plan, anatomy)
    left = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in made.modules())
    assert left == hooks, "no hook stays"


def test_a_router_loss_that_cannot_be_told_apart_is_refused() -> None:
    model = lively("mixtral", output_router_logits=True)
    del model.router_aux_loss_coef
    with pytest.raises(PlanError, match="router loss of MixtralForCausalLM cannot be separated"):
        apply(planned(model, weights=(0.0, 1.0, 0.0, 1.0)), model)


def test_a_loss_from_outside_is_refused() -> None:
    layered = planned(tiny("llama"), weights=(0.0, 1.0, 0.0, 1.0))
    check_loss_is_the_models(layered, False)
    check_loss_is_the_models(planned(tiny("llama"), ALPHA), True)
    with pytest.raises(PlanError, match="leave out label_smoothing_factor"):
        check_loss_is_the_models(layered, True)


@pytest.mark.parametrize(
    ("boundary", "forward", "reason"),
    [
        (2, {}, None),
        (2, {"residual": {"alpha": 1, "span": 1}}, None),
        (2, {"residual": {"alpha": 0, "span": 3}}, None),
        (0, {"residual": {"alpha": 1, "span": 3}, "loss_weights": (1, 0, 0, 1)}, None),
        (2, {"residual": {"alpha": 1, "span": 2}}, "reaches 2 blocks back"),
        (4, {"residual": {"alpha": 1, "span": 2}}, None),
        (2, {"loss_weights": (0, 1, 0, 1)}, None),
        (2, {"loss_weights": (1, 0, 0, 1)}, "the layered loss reads the output of block 0"),
    ],
)
def test_what_reads_below_the_boundary(boundary: int, forward: dict[str, Any], reason: str | None) -> None:
    blocks = (Frozen(),) * boundary + (Full(),) * (4 - boundary)
    found = Plan(blocks=blocks, forward=Forward(**forward)).reads_below(boundary)
    assert found is None if reason is None else found is not None and reason in found and "\n" not in found


# Saved, loaded, merged, trained.


def steps(model: Any, batch: dict[str, Tensor], count: int = 3) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def trained(tmp_path: Path, alpha: float) -> Any:
    lively("llama").save_pretrained(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    apply(planned(model, alpha, 2, (0.0, 0.5, 0.0, 1.0)), model)
    steps(model, batch_for(model))
    save_delta(model, tmp_path / "run")
    return model.eval()


def test_a_loaded_model_computes_what_the_trained_one_does(tmp_path: Path) -> None:
    model = trained(tmp_path, ALPHA)
    batch = batch_for(model)
    loaded = load(tmp_path / "run")
    out = loaded(**batch)
    assert torch.equal(out.logits, model(**batch).logits) and torch.equal(out.loss, model(**batch).loss)
    assert torch.equal(loaded.train()(**batch).loss, model.train()(**batch).loss), "and trains on with the same loss"
    with pytest.raises(
        CheckpointError, match=r"forward\.residual.*: use frostline\.load, which loads it without merging$"
    ):
        merge(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_layered_loss_alone_merges_bit_for_bit(tmp_path: Path) -> None:
    model = trained(tmp_path, 0.0)
    merge(tmp_path / "run", tmp_path / "out")
    merged, batch = LlamaForCausalLM.from_pretrained(tmp_path / "out").train(), batch_for(model)
    assert torch.equal(merged(**batch).logits, model(**batch).logits)
    assert torch.equal(merged(**batch).loss, model(**batch).loss), "trained on by others, its loss is the ordinary one"


def fl_trainer(folder: Path, model: Any, plan: Plan, batch: dict[str, Tensor], **options: Any) -> Trainer:
    rows = [{name: value[index] for name, value in batch.items()} for index in range(len(batch["input_ids"]))]
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=len(rows),
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return Trainer(model, args, plan=plan, train_dataset=rows, **options)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_every_term_may_be_computed_only_where_it_is_read(name: str) -> None:
    model, batch = lively(name), batch_for(tiny(name), batch=3)
    if name == "llama":
        batch["labels"][:, :5] = -100
    applied = apply(planned(model, ALPHA, 2, (0.0, 0.5, 0.25, 1.0)), model)
    whole = model.train()(**batch).loss
    whole_gradients = gradients(model, whole)
    positions = use_loss_positions(model, applied.anatomy, batch)
    assert positions.last_block and positions.chunked_head == (name == "llama"), positions.notices
    out = model.train()(**batch)
    torch.testing.assert_close(out.loss, whole)
    assert_same(gradients(model, out.loss), whole_gradients)
    positions.remove()


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_trainer_trains_as_a_plain_loop_does(tmp_path: Path, name: str) -> None:
    batch = batch_for(tiny(name), batch=4)
    plan = planned(tiny(name), ALPHA, 2, (0.25, 0.5, 0.0, 1.0))
    by_hand, model = lively(name), lively(name)
    apply(plan, by_hand)
    wanted = steps(by_hand, batch)
    trainer = fl_trainer(tmp_path, model, plan, batch)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx(wanted, rel=1e-4)
    assert wanted[0] > 1.2 * model.eval()(**batch).loss.item() > 0


def test_the_activation_cache_goes_with_what_reads_the_boundary_state_alone(tmp_path: Path) -> None:
    forward = Forward(loss_weights=(0.0, 0.5, 0.25, 1.0), residual=Residual(alpha=ALPHA, span=1))
    plan = Plan(blocks=(Frozen(), Frozen(), Full(), Full()), forward=forward)
    batch = batch_for(tiny("llama"), batch=4)
    losses = {}
    for mode in ("off", "on"):
        trainer = fl_trainer(tmp_path / mode, lively("llama"), plan, batch, activation_cache=mode)
        trainer.train()
        assert trainer.cache_report.used == (mode == "on"), trainer.cache_report
        losses[mode] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-5)
