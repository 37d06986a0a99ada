"""Plans, models and measurements that the cost tests share."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers import logging as transformers_logging

from allocator import live_bytes_at_peak
from architectures import batch_for, tiny
from frostline.anatomy import Anatomy
from frostline.cost import full_plan
from frostline.plan import BlockMode, Frozen, Full, Lora, Partial, Plan
from frostline.surgery import apply


def named_plans(anatomy: Anatomy) -> dict[str, Plan]:
    """Plans by name; but for `all`, embeddings are frozen, and with them a head that is tied to them."""
    count = len(anatomy.blocks)
    head = Frozen() if anatomy.tied else Full()

    def where(chosen: Callable[[int], bool], mode: BlockMode) -> Plan:
        return Plan(blocks=tuple(mode if chosen(i) else Frozen() for i in range(count)), head=head)

    def bottom_frozen(percent: int, mode: BlockMode) -> Plan:
        return where(lambda i: i >= round(count * percent / 100), mode)

    plans = {
        "all": full_plan(anatomy),
        **{f"bot{percent}": bottom_frozen(percent, Full()) for percent in (25, 50, 75)},
        "top50": where(lambda i: i < count // 2, Full()),
        "int50": where(lambda i: i % 2 == 0, Full()),
        "lora": where(lambda i: True, Lora()),
        "lora on all of the top": bottom_frozen(50, Lora(targets="all", dropout=0.0)),
        "attention of the top": bottom_frozen(50, Partial(train="attention")),
        "feed-forward of the top": bottom_frozen(50, Partial(train="feed_forward")),
        "norms of the top": bottom_frozen(50, Partial(train="norms_and_biases")),
        "rows of the top": bottom_frozen(50, Partial(rows=0.3)),
        "head": where(lambda i: False, Full()),
    }
    if anatomy.tied:
        plans["untied bot50"] = bottom_frozen(50, Full()).model_copy(update={"head": Full(), "untie": True})
        plans["untied bot75"] = bottom_frozen(75, Full()).model_copy(update={"head": Full(), "untie": True})
    return plans


def base16(models_dir: Path, attention: str = "eager", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A Llama of 16 blocks, tied."""
    return AutoModelForCausalLM.from_pretrained(models_dir / "base16", dtype=dtype, attn_implementation=attention)


def minilm(models_dir: Path, attention: str = "eager", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A BERT of 6 blocks with a new classifier; it has dropout."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            models_dir / "all-MiniLM-L6-v2", num_labels=2, dtype=dtype, attn_implementation=attention
        )
    finally:
        transformers_logging.set_verbosity(level)


def small(family: str, attention: str = "eager") -> PreTrainedModel:
    """A tiny model."""
    model = tiny(family)
    model.set_attn_implementation(attention)
    return model


def whole_batch(model: PreTrainedModel, batch: int, length: int) -> dict[str, torch.Tensor]:
    """A batch without padding. As in training by transformers, keys and values are not cached."""
    model.config.use_cache = False
    inputs = batch_for(model, batch, length)
    return {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}


def remove_bottom(model: PreTrainedModel, anatomy: Anatomy, count: int) -> None:
    """Take its first `count` blocks out of a model (not of an encoder-decoder), and its hook."""
    if count:
        model._forward_pre_hooks.clear()
        where, _, _ = anatomy.blocks[0].name.rpartition(".")
        del model.get_submodule(where)[:count]


def counted(
    model: PreTrainedModel, plan: Plan, batch: int, length: int, checkpointing: bool = False, without: int = 0
) -> int:
    """Operations of a real step under `plan`, as torch counts them, in the model without its first blocks."""
    remove_bottom(model, apply(plan, model).anatomy, without)
    model.train()
    # The counter does not see the products of experts that are computed together.
    model.config._experts_implementation = "eager"
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    with FlopCounterMode(display=False) as counter:
        model(**whole_batch(model, batch, length)).loss.backward()
    return counter.get_total_flops()


def measured(
    model: PreTrainedModel, step: Callable[[], None], optimizer: torch.optim.Optimizer, gone: Container[str] = ()
) -> int:
    """Bytes at the peak of a `step`: what it makes, the weights but those that are `gone`, the optimizer's state."""
    step()  # the optimizer's state is there from the first step on
    kept = [parameter for name, parameter in model.named_parameters() if name not in gone]
    kept += [item for state in optimizer.state.values() for item in state.values()]
    return live_bytes_at_peak(step) + sum(tensor.numel() * tensor.element_size() for tensor in kept)


def training(
    model: PreTrainedModel, batch: Callable[[], dict[str, torch.Tensor]], bfloat16: bool = False
) -> tuple[Callable[[], None], torch.optim.Optimizer]:
    """A training step of the model, and its optimizer."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = model(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, optimizer
