"""Floating-point operations of a training step, by part: forward, input gradient, weight gradient.

    n   tokens of a step             r   LoRA rank
    t   tokens of a row              q   width of queries and keys, all heads together
    u   keys that a token attends    a   width of attention's output, all heads together

Counted are the matrix products, 2 m n k each: a matrix [out, in] over n tokens takes 2 n in out, and as much
again for the gradient of its input and for that of its weight, where autograd computes them (`_flow`). LoRA
adds two products of 2 n r in and 2 n r out, and its gate one of 2 n in; an adapter of bottleneck b 2 n b in
and 2 n b out (one in series reads what the matrix gives: 2 n b out twice); the gradient of what they read is
computed where that carries one. Attention multiplies queries by keys (2 n u q) and
probabilities by values (2 n u a); each has a gradient product per operand that carries a gradient.

A prefix of l tokens makes that u + l keys. With a gate it makes that u + 1 keys and vectors of one more number for
each of h heads, q + h and a + h (u + l, q + h l and a + h l with dropout or a soft cap); beside them it multiplies
queries by its keys (2 n l q), weights by its values (2 n l a), and reads its gate (2 n d). In a mixture with k experts
of N for a token, matrices that read the block's hidden states run once, those that lead back k times, and low-rank
updates k times; the router adds 2 n d N. Other methods of PEFT are counted as 2 n for each parameter that they add, in
each of the three parts: roughly right for those that multiply tokens by low-rank matrices, too little for those that
make a weight anew in every step (DoRA, OFT, LoHa ...).

Left out, because they are small beside these or do not multiply matrices: elementwise functions, softmax,
norms, dropout, embedding look-ups, rotary tables, the loss, the optimizer, and DeBERTa's relative-position
products. Every query attends all u = t keys: the half that a causal mask or a sliding window hides is
computed too, as eager attention does. A fused attention recomputes its scores on the way back, which is not
counted, so that plans compare alike under every attention. A matrix of which some rows train has its whole
weight gradient computed.

From an activation cache the blocks below the boundary, and embeddings that only they read, cost nothing in a step; the
run begins with their forward pass over the rows that are not stored, each once, as long as a training row is on
average. Left out: rows for evaluation, which are stored too.

Where only what the loss reads is computed, the last block's queries, attention's output and feed-forward run at
the read positions m of its n: keys and values are computed at all n, and attention takes 2 m u q and 2 m u a. A
matrix that makes queries, keys and values at once runs at all n positions and again at the m. The head runs at
the label positions. A layered loss runs the head once more for each block, below the last, that has a weight in it.
Left out: that the last block pads each row's m to the batch's largest, and the few positions
that a decoder's shift spares.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from frostline.anatomy import Anatomy, sides
from frostline.cost._bottom import embeddings_run, replaced
from frostline.cost._drops import drawn_plans, running
from frostline.cost._flow import AttentionFlow, BlockFlow, Flow, MatrixFlow, flow
from frostline.cost._loss_positions import block_positions, head_positions
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

    def __mul__(self, factor: float) -> Flops:
        return Flops(self.forward * factor, self.input_gradient * factor, self.weight_gradient * factor)


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
    """Operations of one training step of one device's batch under `plan`; with an activation cache, of a step after
    the caching pass. Where blocks or adapters are left out at random, what is expected of them (`_drops`)."""
    step, shares, passes = flow(plan, anatomy), running(plan, anatomy), drawn_plans(plan)
    gone, embedded = replaced(step, workload), embeddings_run(step, workload)
    drawn = [step] if passes == [plan] else [flow(each, anatomy) for each in passes]
    part = 1 / len(drawn)
    return StepFlops(
        embeddings=_sum(_embeddings(each, workload) * part for each in drawn) if embedded else Flops(),
        blocks=tuple(
            Flops()
            if index in gone
            else _sum(_block(each.blocks[index], each, workload) * (part * share) for each in drawn)
            for index, share in enumerate(shares)
        ),
        head=_sum(
            _matrix(item.matrix, head_positions(item, each, workload)) * part
            for each in drawn
            for block_loss in each.block_losses
            for item in block_loss.matrices
        ),
    )


def bottom_flops(plan: Plan, anatomy: Anatomy, workload: Workload) -> float:
    """Operations of one epoch in the blocks below the boundary and the embeddings before them, forward: what a
    activation cache spares."""
    step = flow(plan, anatomy)
    if step.bottom == 0:
        return 0.0
    below = [_embeddings(step, workload), *(_block(b, step, workload.plain) for b in step.blocks[: step.bottom])]
    return _sum(below).forward * workload.rows / workload.per_device_train_batch_size


def caching_flops(plan: Plan, anatomy: Anatomy, workload: Workload) -> float:
    """Operations of the caching pass: every row that is not stored yet goes through the frozen bottom once."""
    if not workload.activation_cache:
        return 0.0
    return (1 - workload.stored_share) * bottom_flops(plan, anatomy, workload)


def run_flops(plan: Plan, anatomy: Anatomy, workload: Workload) -> float:
    """Operations of the caching pass, if there is one, and of all steps of all epochs; of all devices together."""
    steps = step_flops(plan, anatomy, workload).total * workload.steps * workload.side_by_side
    return caching_flops(plan, anatomy, workload) + steps


def flops_ratio(plan: Plan, anatomy: Anatomy, workload: Workload) -> float:
    """Operations of a step relative to those of full fine-tuning, which computes all of it in every step."""
    full = step_flops(full_plan(anatomy), anatomy, workload.plain)
    return step_flops(plan, anatomy, workload).total / full.total


def run_flops_ratio(plan: Plan, anatomy: Anatomy, workload: Workload) -> float:
    """Operations of the whole run, caching pass included, relative to full fine-tuning's."""
    return run_flops(plan, anatomy, workload) / run_flops(full_plan(anatomy), anatomy, workload.plain)


def _embeddings(step: Flow, workload: Workload) -> Flops:
    return _sum(_matrix(matrix, workload.step_tokens("encoder", step.anatomy)) for matrix in step.embeddings)


def _block(block: BlockFlow, step: Flow, workload: Workload) -> Flops:
    n = workload.step_tokens(block.stack, step.anatomy)
    read = block_positions(block, step, workload)
    encoded = workload.step_tokens("encoder", step.anatomy)
    parts = [_matrix(matrix, read) for matrix in (*block.entering, *block.leaving)]
    parts.append(_router(block, read, step))
    for attention in block.attentions:
        cross = attention.attention.cross
        for matrix in attention.inputs:
            positions = encoded if matrix in attention.from_encoder else _positions(matrix, n, read)
            parts.append(_matrix(matrix, positions))
        parts.append(_matrix(attention.output, read))
        attended = (encoded if cross else n) / workload.batch_texts
        separate = workload.dropout or block.structure.family.softcap
        parts.append(_products(attention, read, attended, step.anatomy.hidden_size, separate))
    done = _sum(parts)
    if not (workload.activation_checkpointing and block.trains):
        return done
    # Recomputing stops at the last matrix, whose output nobody keeps, unless something comes after it.
    last = block.structure.ends_in_norm or workload.dropout or read < n
    spared = 0.0 if last else _sum(_matrix(matrix, read) for matrix in block.leaving).forward
    return done + Flops(forward=done.forward - spared)


def _positions(matrix: MatrixFlow, n: float, read: float) -> float:
    """Where a matrix that makes queries, keys or values runs, when queries are wanted at `read` of `n` positions."""
    made = sides(matrix.linear) or "qkv"
    if read == n or "q" not in made:
        return n
    return read if made == "q" else n + read


def _matrix(matrix: MatrixFlow, n: float) -> Flops:
    linear = matrix.linear
    branch = matrix.branch
    base = 2.0 * n * linear.active * linear.copies * linear.in_features * linear.out_features
    base *= branch.matrix_rows if branch else 1
    own = Flops(base, base * matrix.carries, base * matrix.trained)
    if branch is None:
        return own
    down, up = 2.0 * n * branch.rows * branch.down, 2.0 * n * branch.rows * branch.up
    return own + Flops(down + up, down * matrix.branch_carries + up, down + up)


def _router(block: BlockFlow, n: float, step: Flow) -> Flops:
    work = 2.0 * n * block.experts * step.anatomy.hidden_size
    return Flops(work, work * block.reads, work)


def _products(attention: AttentionFlow, n: float, u: float, hidden: int, separate: bool) -> Flops:
    q, a = attention.attention.q, attention.attention.a
    keys, marks = u + attention.added_keys(separate), attention.marks(separate)
    scores = 2.0 * n * keys * (q + marks)
    values = 2.0 * n * keys * (a + marks)
    back = scores * (attention.query + attention.key) + values * (attention.scores + attention.value)
    if not attention.gated:
        return Flops(scores + values, back)
    read, added = 2.0 * n * attention.length * q, 2.0 * n * attention.length * a
    gate = 2.0 * n * hidden
    carried = gate * attention.carries + read * ("q" in attention.made) + added
    return Flops(scores + values + gate + read + added, back + carried, gate + read + added)


def _sum(parts: Iterable[Flops]) -> Flops:
    return sum(parts, Flops())
