"""How long training takes: operations become seconds, by speeds that were measured.

The seconds of a batch follow from the work of `_flops` and the speeds of one machine, for one model, batch size,
length and precision:

    sum over blocks  F forward + I input_gradient + W weight_gradient + A lora
    + H head + E embeddings + batch

F, I, W are the operations of a block's forward pass and of its two kinds of gradient, H those of the head, A the
numbers that adapters read and make, E the trained parameters of the embeddings. An optimizer step takes this for each
of its batches, and `parameter` for each trained parameter: clipping, the step itself, zeroing.

A speed includes more than matrix products: everything that grows with them. `forward` has the elementwise
work of a frozen block's forward pass; `input_gradient` what a block takes more when a gradient passes it, saved
activations included; `weight_gradient` what it takes more when it trains, dropout included; `head` the loss, and what
what loss positions cost and save. So a speed is right for the batch, the length and the
precision that it was measured at, and roughly right near them: on one core, MiniLM and base16, one of 8 rows of 64
tokens gave other speeds' steps within 11% from half to four times as many tokens, within 17% at a quarter.

A caching pass takes its forward operations. Before the cache is used, a few rows are compared: with the bottom, with
its own states put back, and from the cache.

Left out: reading an activation cache, which happens beside the step; evaluation, logging and saving; loading the
model, and what else a run does once before its first step; communication between devices; and that blocks which train
need no unpacking where frozen ones are quantized, once that costs more than weight gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import mul

from pydantic import BaseModel, ConfigDict, Field

from frostline.anatomy import Anatomy, Part, select
from frostline.cost._drops import drawn_plans, running
from frostline.cost._flops import Flops, bottom_flops, caching_flops, step_flops
from frostline.cost._flow import BlockFlow, Flow, flow
from frostline.cost._parameters import trainable_parameters
from frostline.cost._workload import Workload
from frostline.plan import Plan

CHECKED, CHECKS, PASSED_FOR_CHECK = 4, 3, 8
"""Before an activation cache is used: rows whose loss and gradients are compared, how often they are computed, and how
many rows pass the bottom for it."""


class Speed(BaseModel):
    """Seconds per unit of work, as the module says; `batch` is what every batch takes under any plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    forward: float = Field(ge=0)
    input_gradient: float = Field(ge=0)
    weight_gradient: float = Field(ge=0)
    lora: float = Field(ge=0)
    head: float = Field(ge=0)
    embeddings: float = Field(ge=0)
    parameter: float = Field(ge=0)
    batch: float = Field(ge=0)


@dataclass(frozen=True)
class StepTimes:
    """Measured seconds of a step of one batch, by part, that together are the step.

    `blocks`: forward and backward of each block but the last; `top`: of the last block, final norm, head and loss;
    `optimizer`: from the end of the backward pass to the end of the step; `rest`: everything else. `embeddings` is no
    part of the step: the gradient of the token embedding, measured by itself, per parameter of it.
    """

    blocks: Sequence[float]
    top: float
    optimizer: float
    rest: float
    embeddings: float = 0.0


def step_seconds(plan: Plan, anatomy: Anatomy, workload: Workload, speed: Speed) -> float:
    """Predicted seconds of one optimizer step, of `workload.gradient_accumulation_steps` batches.

    Raises `UserError` when the plan does not fit the anatomy.
    """
    trained = trainable_parameters(plan, anatomy) / workload.devices
    return (
        workload.gradient_accumulation_steps * _batch_seconds(plan, anatomy, workload, speed)
        + trained * speed.parameter
    )


def run_seconds(plan: Plan, anatomy: Anatomy, workload: Workload, speed: Speed) -> float:
    """Predicted seconds of a run: what comes before an activation cache is used, if one is, and the steps of all
    epochs."""
    steps = workload.steps / workload.gradient_accumulation_steps
    before = _caching_seconds(plan, anatomy, workload, speed) if workload.activation_cache else 0.0
    return before + steps * step_seconds(plan, anatomy, workload, speed)


def fit_speed(plan: Plan, anatomy: Anatomy, workload: Workload, times: StepTimes) -> Speed:
    """The speed at which a batch of `plan` takes `times`.

    The plan freezes the first block, trains the last one whole, and has between them blocks that train whole, frozen
    ones, and some with LoRA. The unknowns are found one after the other: the forward pass from the blocks that no
    gradient reaches, input gradients from the frozen ones that one passes, weight gradients from those that train,
    LoRA from those that have it, the head from what the last block leaves of `top`.
    """
    step = flow(plan, anatomy)
    amounts = step_flops(plan, anatomy, workload)
    numbers = _adapter_numbers(step, workload)
    inner = list(zip(step.blocks, amounts.blocks, numbers, times.blocks, strict=False))  # the last block is in `top`

    forward = _rate((seconds, work.forward) for block, work, _, seconds in inner if not block.leaves)
    input_gradient = _rate(
        (seconds - forward * work.forward, work.input_gradient)
        for block, work, _, seconds in inner
        if block.leaves and not block.trains
    )
    weight_gradient = _rate(
        (seconds - forward * work.forward - input_gradient * work.input_gradient, work.weight_gradient)
        for block, work, own, seconds in inner
        if block.trains and not own
    )
    rates = forward, input_gradient, weight_gradient
    return Speed(
        forward=forward,
        input_gradient=input_gradient,
        weight_gradient=weight_gradient,
        lora=_rate((seconds - _seconds(work, rates), own) for _, work, own, seconds in inner if own),
        head=_rate([(times.top - _seconds(amounts.blocks[-1], rates), amounts.head.total)]),
        embeddings=times.embeddings,
        parameter=_rate([(times.optimizer, trainable_parameters(plan, anatomy))]),
        batch=times.rest,
    )


def _rate(measured: Iterable[tuple[float, float]]) -> float:
    """Seconds per unit, of pairs of seconds and units; what came out as less than nothing took nothing."""
    pairs = list(measured)
    units = sum(amount for _, amount in pairs)
    return max(0.0, sum(seconds for seconds, _ in pairs) / units) if units else 0.0


def _seconds(work: Flops, rates: tuple[float, float, float]) -> float:
    forward, input_gradient, weight_gradient = rates
    return forward * work.forward + input_gradient * work.input_gradient + weight_gradient * work.weight_gradient


def _batch_seconds(plan: Plan, anatomy: Anatomy, workload: Workload, speed: Speed) -> float:
    amounts = step_flops(plan, anatomy, workload)
    rates = speed.forward, speed.input_gradient, speed.weight_gradient
    embedded = sum(item.parameters for item in select(plan, anatomy) if item.tensor.part is Part.EMBEDDINGS)
    return (
        sum(_seconds(work, rates) for work in (amounts.embeddings, *amounts.blocks))
        + speed.lora * _expected_numbers(plan, anatomy, workload)
        + speed.head * amounts.head.total
        + speed.embeddings * embedded
        + speed.batch
    )


def _caching_seconds(plan: Plan, anatomy: Anatomy, workload: Workload, speed: Speed) -> float:
    """The caching pass, and the comparison of a few rows with and without the store."""
    epoch = bottom_flops(plan, anatomy, workload)
    if not epoch:
        return 0.0
    passing = caching_flops(plan, anatomy, workload) / workload.side_by_side + epoch * PASSED_FOR_CHECK / workload.rows
    batches = CHECKS * min(1.0, CHECKED / workload.per_device_train_batch_size)
    return passing * speed.forward + batches * _batch_seconds(plan, anatomy, workload, speed)


def _expected_numbers(plan: Plan, anatomy: Anatomy, workload: Workload) -> float:
    """Those of all blocks together, where some may be left out at random."""
    shares, drawn = running(plan, anatomy), drawn_plans(plan)
    found = [_adapter_numbers(flow(each, anatomy), workload) for each in drawn]
    return sum(sum(map(mul, shares, numbers)) for numbers in found) / len(drawn)


def _adapter_numbers(step: Flow, workload: Workload) -> list[float]:
    """The numbers that each block's adapters read and make in a batch."""
    return [workload.step_tokens(block.stack, step.anatomy) * _numbers_per_token(block, step) for block in step.blocks]


def _numbers_per_token(block: BlockFlow, step: Flow) -> float:
    total = float(sum(branch.reads * (1 + branch.gated) + branch.out for branch in block.branches))
    for attention in block.attentions:
        if attention.length:
            longer = attention.attention.q + attention.attention.k + attention.attention.a
            total += (
                longer
                + attention.gated * step.anatomy.hidden_size
                + 4 * attention.gated * attention.heads * attention.length
            )
    return total
