"""Floating-point operations of a training step, by part: forward, input gradient, weight gradient.

    n   tokens of a step             r   LoRA rank
    t   tokens of a row              q   width of queries and keys, all heads together
    u   keys that a token attends    a   width of attention's output, all heads together

Counted are the matrix products, 2 m n k each: a matrix [out, in] over n tokens takes 2 n in out, and as much
again for the gradient of its input and for that of its weight, where autograd computes them (`_flow`). LoRA
adds two products of 2 n r in and 2 n r out. Attention multiplies queries by keys (2 n u q) and
probabilities by values (2 n u a); each has a gradient product per operand that carries a gradient.

Left out, because they are small beside these or do not multiply matrices: elementwise functions, softmax,
norms, dropout, embedding look-ups, rotary tables, the loss, the optimizer, and DeBERTa's relative-position
products. Every query attends all u = t keys: the half that a causal mask or a sliding window hides is
computed too, as eager attention does. A fused attention recomputes its scores on the way back, which is not
counted, so that plans compare alike under every attention. A matrix of which some rows train has its whole
weight gradient computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from frostline.anatomy import Anatomy
from frostline.cost._flow import AttentionFlow, BlockFlow, Flow, Matrix, flow
from frostline.cost._parameters import full_plan
from frostline.cost._workload import Workload
from frostline.plan import Plan


@dataclass(frozen=True)
class Flops:
    """Operations of one step in one part of the model."""

    forward: float = 0.0
    input_gradient: float = 0.0
    weight_gradient: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.input_gradient + self.weight_gradient

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            self.forward + other.forward,
            self.input_gradient + other.input_gradient,
            self.weight_gradient + other.weight_gradient,
        )


@dataclass(frozen=True)
class StepFlops:
    """Operations of one step: those of the embeddings, of each block, of the head."""

    embeddings: Flops
    blocks: tuple[Flops, ...]
    head: Flops

    @property
    def sum(self) -> Flops:
        return _sum((self.embeddings, *self.blocks, self.head))

    @property
    def total(self) -> float:
        return self.sum.total


def step_flops(plan: Plan, anatomy: Anatomy, workload: Workload) -> StepFlops:
    """Operations of one training step of `workload.batch` rows under `plan`."""
    step = flow(plan, anatomy)
    return StepFlops(
        embeddings=_sum(_matrix(matrix, workload.step_tokens("encoder", step.anatomy)) for matrix in step.embeddings),
        blocks=tuple(_block(block, step, workload) for block in step.blocks),
        head=_sum(
            _matrix(item.matrix, workload.batch if item.pooled else workload.step_tokens("decoder", step.anatomy))
            for item in step.head
        ),
    )


def run_flops(plan: Plan, anatomy: Anatomy, workload: Workload) -> float:
    """Operations of all steps of all epochs."""
    return step_flops(plan, anatomy, workload).total * workload.steps


def flops_ratio(plan: Plan, anatomy: Anatomy, workload: Workload) -> float:
    """Operations of a step relative to full fine-tuning's."""
    full = step_flops(full_plan(anatomy), anatomy, workload)
    return step_flops(plan, anatomy, workload).total / full.total


def run_flops_ratio(plan: Plan, anatomy: Anatomy, workload: Workload) -> float:
    """Operations of the whole run relative to full fine-tuning's."""
    return run_flops(plan, anatomy, workload) / run_flops(full_plan(anatomy), anatomy, workload)


def _block(block: BlockFlow, step: Flow, workload: Workload) -> Flops:
    n = workload.step_tokens(block.stack, step.anatomy)
    encoded = workload.step_tokens("encoder", step.anatomy)
    parts = [_matrix(matrix, n) for matrix in (*block.entering, *block.leaving)]
    for attention in block.attentions:
        cross = attention.attention.cross
        for matrix in (*attention.inputs, attention.output):
            from_encoder = cross and matrix in attention.from_encoder
            parts.append(_matrix(matrix, encoded if from_encoder else n))
        parts.append(_products(attention, n, (encoded if cross else n) / workload.batch))
    done = _sum(parts)
    if not (workload.checkpointing and block.trains):
        return done
    # Recomputing stops at the last matrix, whose output nobody keeps, unless something comes after it.
    last = block.structure.ends_in_norm or workload.dropout
    spared = 0.0 if last else _sum(_matrix(matrix, n) for matrix in block.leaving).forward
    return done + Flops(forward=done.forward - spared)


def _matrix(matrix: Matrix, n: float) -> Flops:
    linear = matrix.linear
    base = 2.0 * n * linear.active * linear.copies * linear.in_features * linear.out_features
    own = Flops(base, base * matrix.carries, base * matrix.trained)
    if matrix.lora is None:
        return own
    a, b = (2.0 * n * matrix.lora.r * width for width in (linear.in_features, linear.out_features))
    return own + Flops(a + b, a * matrix.carries + b, a + b)


def _products(attention: AttentionFlow, n: float, u: float) -> Flops:
    scores = 2.0 * n * u * attention.attention.q
    values = 2.0 * n * u * attention.attention.a
    back = scores * (attention.query + attention.key) + values * (attention.scores + attention.value)
    return Flops(scores + values, back)


def _sum(parts: Iterable[Flops]) -> Flops:
    return sum(parts, Flops())
