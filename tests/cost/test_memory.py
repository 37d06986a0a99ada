"""Peak memory: exact parts against the model's own tensors, the whole against torch's allocator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cost_cases import base16, measured, named_plans, remove_bottom, small, training, whole_batch

from architectures import tiny
from frostline.anatomy import find_anatomy
from frostline.cost import Workload, memory
from frostline.loss_positions import use_loss_positions
from frostline.plan import FloraOptions, Frozen, Full, Plan
from frostline.surgery import apply
from grids import grid, slow_but


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gemma"])
def test_weights_gradients_and_optimizer_are_exact(family: str, dtype: str) -> None:
    anatomy = find_anatomy(small(family))
    for name, plan in named_plans(anatomy).items():
        model = small(family).to(getattr(torch, dtype))
        apply(plan, model)
        rows = [buffer for path, buffer in model.named_buffers() if path.endswith(".frozen")]
        weights = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *rows))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        predicted = memory(plan, anatomy, Workload(frozen_dtype=dtype))
        assert predicted.weights == weights, name
        assert predicted.gradients == 4 * trained, name
        assert predicted.optimizer == 8 * trained, name


def test_sgd_has_no_state() -> None:
    anatomy = find_anatomy(small("llama"))
    assert memory(named_plans(anatomy)["all"], anatomy, Workload(optim="sgd")).optimizer == 0


def test_flora_keeps_less_where_it_compresses() -> None:
    anatomy = find_anatomy(small("llama"))
    plan = named_plans(anatomy)["all"]
    for accumulation in (1, 2):
        adamw, flora, whole = (
            memory(plan, anatomy, Workload(optim=name, optim_args=options, gradient_accumulation_steps=accumulation))
            for name, options in (
                ("adamw_torch", None),
                ("flora", FloraOptions(rank=2)),
                ("flora", FloraOptions(rank=512)),
            )
        )
        assert whole.optimizer == adamw.optimizer, "no side is longer than the rank"
        assert whole.peak == adamw.peak
        saved = adamw.optimizer - flora.optimizer
        kept_less = 0 if accumulation == 1 else adamw.gradients - flora.gradients
        assert saved > 0.7 * adamw.optimizer
        assert adamw.peak - flora.peak >= saved + kept_less > 0


def test_options_are_those_of_flora_alone() -> None:
    with pytest.raises(ValueError, match="these are options of flora, and optim is adamw_torch_fused"):
        Workload(optim_args=FloraOptions())
    with pytest.raises(ValueError, match="flora runs on one device"):
        Workload(optim="flora", devices=2)


def test_peak_is_the_largest_moment_not_the_sum() -> None:
    anatomy = find_anatomy(small("llama"))
    plan = named_plans(anatomy)["all"]
    many, one = (memory(plan, anatomy, Workload(per_device_train_batch_size=batch, length=16)) for batch in (64, 1))
    assert many.peak == many.weights + many.optimizer + many.activations + many.logits
    assert one.peak < one.weights + one.optimizer + one.gradients + one.activations + one.logits
    assert one.peak >= one.weights + one.optimizer + one.gradients


def test_accumulated_gradients_stay() -> None:
    anatomy = find_anatomy(small("llama"))
    plan = named_plans(anatomy)["all"]
    once, twice = (memory(plan, anatomy, Workload(gradient_accumulation_steps=n)) for n in (1, 2))
    assert twice.peak == once.peak + once.gradients


def test_checkpointing_keeps_one_block_at_a_time() -> None:
    anatomy = find_anatomy(small("llama"))
    plans = named_plans(anatomy)
    for name in ("all", "bot50"):
        plain, saving = (
            memory(plans[name], anatomy, Workload(activation_checkpointing=flag)) for flag in (False, True)
        )
        assert saving.activations < plain.activations
        assert saving.peak < plain.peak
    plain, saving = (memory(plans["head"], anatomy, Workload(activation_checkpointing=flag)) for flag in (False, True))
    assert plain == saving


def test_less_trained_takes_less() -> None:
    anatomy = find_anatomy(small("llama"))
    plans = named_plans(anatomy)
    peaks = [memory(plans[name], anatomy, Workload()).peak for name in ("all", "bot25", "bot50", "bot75", "head")]
    assert peaks == sorted(peaks, reverse=True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "opt"])
def test_a_activation_cache_takes_the_bottom_out_of_memory(family: str) -> None:
    anatomy = find_anatomy(small(family))
    plain, cached = Workload(), Workload(activation_cache=True)
    for name in ("bot25", "bot75", "untied bot50"):
        plan = named_plans(anatomy).get(name)
        if plan is None:
            continue
        below = [tensor for block in anatomy.blocks[: plan.boundary] for tensor in block.tensors]
        shared = anatomy.tied and not plan.untie
        embeddings = [t for t in anatomy.embeddings if not (shared and t.shape[0] == anatomy.vocab_size)]
        freed = memory(plan, anatomy, plain).weights - memory(plan, anatomy, cached).weights
        assert freed == 4 * sum(tensor.numel for tensor in (*below, *embeddings)) > 0, name
        assert memory(plan, anatomy, cached).activations == memory(plan, anatomy, plain).activations


def test_what_the_top_still_reads_stays() -> None:
    anatomy = find_anatomy(small("t5"))
    cached = Workload(activation_cache=True)

    def freed(plan: Plan) -> int:
        return (memory(plan, anatomy, cached.plain).weights - memory(plan, anatomy, cached).weights) // 4

    sizes = [block.parameters for block in anatomy.blocks]
    encoder = Plan(blocks=(*[Frozen()] * 2, *[Full()] * 5), final_norm=Frozen(), head=Frozen())
    assert freed(encoder) == sizes[1]  # block 0 makes the position bias; the decoder embeds
    decoder = Plan(blocks=(*[Frozen()] * 6, Full()), final_norm=Frozen(), head=Frozen())
    assert freed(decoder) == sum(sizes[1:4]) + sizes[5]  # the head shares the embedding
    untied = find_anatomy(tiny("t5", tied=False))
    assert memory(decoder, untied, cached.plain).weights - memory(decoder, untied, cached).weights == 4 * (
        sum(sizes[1:4]) + sizes[5] + untied.vocab_size * untied.hidden_size
    )


@pytest.mark.parametrize(
    ("bf16", "frozen", "bytes_a_number"),
    [(False, "float32", 8), (False, "bfloat16", 4), (True, "bfloat16", 4), (True, "float32", 8)],
)
def test_states_are_read_ahead(bf16: bool, frozen: str, bytes_a_number: int) -> None:
    """Two batches of them; under autocast, from float32 blocks, two in bfloat16 and the one in use in float32."""
    work = {
        "per_device_train_batch_size": 4,
        "length": 16,
        "bf16": bf16,
        "frozen_dtype": frozen,
        "activation_cache": True,
    }
    anatomy = find_anatomy(small("llama"))
    assert memory(named_plans(anatomy)["bot50"], anatomy, Workload(**work)).read_ahead == 4 * 16 * 32 * bytes_a_number
    assert memory(named_plans(anatomy)["top50"], anatomy, Workload(**work)).read_ahead == 0
    pair = find_anatomy(small("t5"))
    both = Plan(blocks=(*[Frozen()] * 6, Full()), final_norm=Frozen(), head=Frozen())
    assert memory(both, pair, Workload(**work, label_tokens=6)).read_ahead == 4 * (16 + 6) * 32 * bytes_a_number


def test_logits_are_those_of_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    anatomy = find_anatomy(small("llama"))
    plan = named_plans(anatomy)["all"]
    reads = Workload(per_device_train_batch_size=4, length=16, label_share=0.25, loss_positions=True)
    assert memory(plan, anatomy, reads.plain).logits == 12 * 4 * 16 * anatomy.vocab_size
    assert memory(plan, anatomy, reads).logits == 12 * 4 * 4 * anatomy.vocab_size
    monkeypatch.setattr("frostline.cost._loss_positions.CHUNK_BYTES", 10 * 4 * anatomy.vocab_size)
    assert memory(plan, anatomy, reads).logits == 12 * 10 * anatomy.vocab_size


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    slow_but([("all", False), ("bot50", True)], grid(["all", "bot50", "lora", "head"], [False, True])),
)
def test_against_the_allocator(models_dir: Path, name: str, checkpointing: bool) -> None:
    model = base16(models_dir, "sdpa")
    anatomy = find_anatomy(model)
    plan = named_plans(anatomy)[name]
    apply(plan, model)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    step, optimizer = training(model, lambda: whole_batch(model, 8, 128))
    predicted = memory(
        plan, anatomy, Workload(per_device_train_batch_size=8, length=128, activation_checkpointing=checkpointing)
    ).peak
    assert predicted == pytest.approx(measured(model, step, optimizer), rel=0.05 if checkpointing else 0.002)


@pytest.mark.parametrize("name", slow_but(["bot50"], ["bot50", "untied bot75"]))
def test_from_a_activation_cache_against_the_allocator(models_dir: Path, name: str) -> None:
    """The model without its bottom, fed boundary states that lie in memory, the next batch's beside them."""
    model = base16(models_dir, "sdpa")
    anatomy = find_anatomy(model)
    plan = named_plans(anatomy)[name]
    apply(plan, model)
    remove_bottom(model, anatomy, plan.boundary)
    batch = whole_batch(model, 8, 128)
    labels, states = batch["labels"], [torch.randn(8, 128, anatomy.hidden_size) for _ in range(2)]
    step, optimizer = training(model, lambda: {"inputs_embeds": states[0], "labels": labels})
    gone = {"model.embed_tokens.weight"} if plan.untie else set()
    found = measured(model, step, optimizer, gone) + sum(state.nbytes for state in states)
    predicted = memory(plan, anatomy, Workload(per_device_train_batch_size=8, length=128, activation_cache=True))
    assert predicted.peak == pytest.approx(found, rel=0.002)
    assert predicted.read_ahead == sum(state.nbytes for state in states)


@pytest.mark.parametrize(
    ("name", "chunk"),
    slow_but([("untied bot75", 128)], [("bot50", 256), ("untied bot75", 128)]),
    ids=["one chunk", "two chunks"],
)
def test_loss_positions_against_the_allocator(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk: int
) -> None:
    model = base16(models_dir, "sdpa")
    anatomy = find_anatomy(model)
    plan = named_plans(anatomy)[name]
    apply(plan, model)
    batch = whole_batch(model, 8, 128)
    batch["labels"] = torch.where(torch.arange(128) < 96, -100, batch["input_ids"])
    monkeypatch.setattr("frostline.cost._loss_positions.CHUNK_BYTES", chunk * 4 * anatomy.vocab_size)
    use_loss_positions(model, anatomy, whole_batch(model, 2, 8), chunk=chunk)
    step, optimizer = training(model, lambda: batch)
    workload = Workload(per_device_train_batch_size=8, length=128, loss_positions=True, label_share=0.25)
    assert memory(plan, anatomy, workload).peak == pytest.approx(measured(model, step, optimizer), rel=0.005)
