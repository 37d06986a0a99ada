"""Peak memory of an evaluation, in bytes.

    weights      all of the model: trained tensors in float32, the others in the checkpoint's type, or quantized
    optimizer    what the optimizer keeps: it is there in the evaluation after training; and so are DDP's buckets
    passing      a block's input, output and inner tensors, as below the boundary (`_memory`): nothing waits for a
                 backward pass
    keys         and values of all blocks, where a decoder's forward pass keeps them; until the loss is computed
    logits       three tensors of float32 at every position: logits, a copy in float32, log-probabilities
    generation   keys and values of all blocks for prompt and text, and the logits of one position of each beam

Where devices share a model, each has all of it in the evaluations before and after training; in the second, its own
share of the weights too.

Passing and logits follow one another, so the larger of them counts, or generation with the passing of its prompts.

Left out: what `_memory` leaves out, and sliding windows, which keep fewer keys and values.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from frostline.anatomy import Anatomy
from frostline.cost._flow import Flow, flow
from frostline.cost._held import held, on_a_device, own_share
from frostline.cost._memory import memory
from frostline.cost._workload import FLOAT, Workload, state_bytes
from frostline.plan import Plan

LOGIT_TENSORS = 3


@dataclass(frozen=True)
class EvaluationWork:
    """The largest batches of an evaluation.

    Attributes:
        rows: of a forward pass.
        length: tokens of its longest row (of each of its texts).
        positions: of a row at which the head gives logits; `width` numbers each.
        width: the vocabulary, or the number of labels.
        prompts: for which texts are generated together; 0: none.
        new_tokens: of each text, at most.
        beams: of each text.
        keeps: whether a forward pass keeps keys and values, as decoders do outside training.
        texts: texts of a row: the choices of a multiple-choice head.
        stored: whether rows are evaluated from stored states, so that no frozen bottom is in memory (streaming).
    """

    rows: int
    length: int
    positions: int
    width: int
    prompts: int = 0
    new_tokens: int = 0
    beams: int = 1
    keeps: bool = False
    texts: int = 1
    stored: bool = False

    def at_most(self, rows: int) -> EvaluationWork:
        """The same in batches of at most `rows` rows, or of as many prompts."""
        return replace(self, rows=min(rows, self.rows), prompts=min(rows, self.prompts))


def evaluation_memory(plan: Plan, anatomy: Anatomy, workload: Workload, work: EvaluationWork) -> int:
    """Peak memory of an evaluation, before training or after it.

    Args:
        plan: what trains.
        anatomy: of the model.
        workload: the training, which decides the types of the weights, and what the optimizer keeps. The bottom is in
            memory, also where training goes on from an activation cache, unless rows are evaluated from stored states.
        work: the evaluation.

    Raises `PlanError` when the plan does not fit the anatomy.
    """
    step = flow(plan, anatomy)
    whole = workload.model_copy(update={"activation_cache": work.stored, "devices": 1})
    tensors, training = held(plan, anatomy, step, whole), memory(plan, anatomy, workload)
    stays = training.optimizer + training.buckets + (own_share(tensors, workload) if workload.devices > 1 else 0)
    tokens = work.rows * work.texts * work.length
    logits = FLOAT * work.rows * work.texts * work.positions * work.width
    kept = work.keeps * tokens * _kept_per_token(step, whole)
    loss = max(kept + max(_passing(step, whole, tokens), logits), LOGIT_TENSORS * logits)
    writing = 0.0
    if work.prompts:
        texts = work.prompts * work.beams
        tokens = texts * (work.length + work.new_tokens)
        logits = LOGIT_TENSORS * FLOAT * texts * work.width
        writing = tokens * _kept_per_token(step, whole) + max(logits, _passing(step, whole, texts * work.length))
    return round(on_a_device(tensors, whole) + stays + max(loss, writing))


def rows_within(limit: float, plan: Plan, anatomy: Anatomy, workload: Workload, work: EvaluationWork) -> int:
    """The most rows of a batch with which an evaluation stays within `limit` bytes; 1 where none does.

    Args:
        limit: in bytes.
        plan, anatomy, workload: as in `evaluation_memory`.
        work: the largest batches that are wanted.
    """

    def too_large(rows: int) -> bool:
        return evaluation_memory(plan, anatomy, workload, work.at_most(rows)) > limit

    return 1 + bisect_left(range(2, max(work.rows, work.prompts) + 1), True, key=too_large)


def _passing(step: Flow, workload: Workload, tokens: int) -> float:
    hidden = step.anatomy.hidden_size
    return tokens * max(
        state_bytes(block.widened, workload)
        * ((2 + step.kept_states) * hidden + (2 + block.structure.gated) * block.structure.inner)
        for block in step.blocks
    )


def _kept_per_token(step: Flow, workload: Workload) -> float:
    """Bytes of the keys and values that a token leaves."""
    return sum(
        (2 if workload.bf16 else state_bytes(block.widened, workload)) * (attention.k + attention.v)
        for block in step.blocks
        for attention in block.structure.attentions
    )
