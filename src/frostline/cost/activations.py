"""What autograd keeps from the forward pass for the backward pass, in bytes.

Per token, with widths as in `structure` (d hidden, f = `inner`, q k v a of attention), h heads, u keys that a
token attends, and bytes per number: c as matrices are multiplied, s of the hidden states between blocks,
4 where torch computes in float32 whatever the rest is. A term is kept only under its condition; "carries" is
autograd's: something that trains lies before it.

    matrix         its input, c in, if it trains; matrices that read one tensor share it in float32, while
                   autocast makes a copy for each
    LoRA           c in of A and c r of B; with dropout its mask, 4 in, if the input carries
    RMSNorm        its input, 4 d, and 4 for the factor, if the input carries; the normed, s d, if it trains
    LayerNorm      its input, s d, and 8 for mean and factor, if it trains or its input carries
    attention      eager: queries and keys, c q each, if the other carries; values, c a, and the softmax, 4 h u,
                   if scores carry; the probabilities, c h u, if values carry (in float32 they are the
                   softmax); fused: c (q + k + v + a) + 4 h if anything carries
    feed-forward   the activation function's operands, m c f; if gated, c f each of the two factors
    dropout        masks, c d behind attention and behind feed-forward; with it attention also keeps a mask
                   and the dropped probabilities
    cast weights   under autocast, 2 bytes per parameter of every matrix whose input carries and whose weight
                   is not of that type already
    embeddings, final norm and head follow the same rules; a loss over tokens keeps 4 bytes per logit.

Left out: rotary tables, masks, token ids, router statistics, tensors that live within a single operation.
Dropout is as torch has it on a CPU: masks as wide as the data (CUDA: one byte), and fused attention with
dropout keeps its probabilities (CUDA: not).

Against `torch.autograd.graph.saved_tensors_hooks` (distinct storages, parameters left out) this is within
2% for Llama, GPT-2, GPT-NeoX, Gemma 2, Qwen3, OPT and BERT, in float32 and under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frostline.anatomy import Tensor
from frostline.cost.flow import AttentionFlow, BlockFlow, Flow, Matrix
from frostline.cost.structure import Norm
from frostline.cost.workload import BYTES, Workload

_FLOAT = 4


@dataclass(frozen=True)
class Saved:
    """Bytes saved in one part of the model: of activations, and of weights cast by autocast."""

    activations: float = 0.0
    weights: float = 0.0

    @property
    def total(self) -> float:
        return self.activations + self.weights


@dataclass(frozen=True)
class SavedByPart:
    """Bytes saved in a step. `head` includes the final norm, not the logits."""

    embeddings: Saved
    blocks: tuple[Saved, ...]
    head: Saved
    logits: float

    @property
    def total(self) -> float:
        parts = (self.embeddings, *self.blocks, self.head)
        return sum(part.total for part in parts) + self.logits


def saved(step: Flow, workload: Workload) -> SavedByPart:
    """What a step of `workload.batch` rows keeps, without checkpointing."""
    numbers = _Numbers(step, workload)
    return SavedByPart(
        embeddings=numbers.embeddings(),
        blocks=tuple(numbers.block(block) for block in step.blocks),
        head=numbers.head(),
        logits=numbers.logits(),
    )


class _Numbers:
    """The formulas above for one step."""

    def __init__(self, step: Flow, workload: Workload) -> None:
        self.step = step
        self.workload = workload
        self.hidden = step.anatomy.hidden_size
        self.heads = step.anatomy.num_heads
        self.autocast = workload.dtype == "bfloat16"
        self.c = BYTES[workload.dtype]
        narrow = self.autocast and not step.embeddings_train
        self.s = BYTES[workload.frozen_dtype] if narrow else _FLOAT

    def tokens(self, stack: str) -> int:
        return self.workload.batch * self.workload.tokens_per_row(stack, self.step.anatomy.encoder_decoder)

    def block(self, block: BlockFlow) -> Saved:
        n = self.tokens(block.stack)
        per_token = self._norms(block) + self._feed_forward(block)
        for attention in block.attentions:
            per_token += self._attention(attention, block)
        if self.workload.dropout and block.trains:
            branches = (*(attention.output for attention in block.attentions), *block.leaving[-1:])
            per_token += self.c * self.hidden * sum(matrix.passes for matrix in branches)
        return Saved(n * per_token, sum(map(self._cast, block.matrices)))

    def embeddings(self) -> Saved:
        if not self.step.embeddings_train:
            return Saved()
        n = self.tokens("encoder")
        norms = _outer_norms(self.step.anatomy.embeddings)
        per_token = sum(self._norm(norm, carries=True, trains=True) for norm in norms)
        if self.workload.dropout:
            per_token += _FLOAT * self.hidden
        return Saved(n * per_token, sum(map(self._cast, self.step.embeddings)))

    def head(self) -> Saved:
        n = self.tokens("decoder")
        carries, trains = self.step.final_norm_carries, self.step.final_norm_trains
        norms = _outer_norms(self.step.anatomy.final_norm)
        total = n * sum(self._norm(norm, carries, trains) for norm in norms)
        for position, item in enumerate(self.step.head):
            # In float32 a pooled token is a view that keeps the states of all tokens.
            whole = not item.pooled or (position == 0 and not self.autocast)
            rows = n if whole else self.workload.batch
            total += rows * self._inputs([item.matrix], item.matrix.linear.in_features, _FLOAT)
        return Saved(total, sum(self._cast(item.matrix) for item in self.step.head))

    def logits(self) -> float:
        """The log-probabilities; a softcap keeps its tanh too."""
        if not self.step.head or any(item.pooled for item in self.step.head):
            return 0.0
        last = self.step.head[-1].matrix
        softcap = self.step.blocks[-1].structure.family.softcap
        per_logit = _FLOAT + self.c * softcap if last.passes else 0
        return self.tokens("decoder") * per_logit * last.linear.out_features

    def _norms(self, block: BlockFlow) -> float:
        total = 0.0
        first = block.structure.normed_first
        shared = False
        for norm in block.structure.norms:
            if norm.side:
                flows = block.attentions[0]
                carries = flows.query if norm.side == "q" else flows.key
            else:
                carries = block.enters if first else block.leaves
                first = False
            kept = self._norm(norm, carries, block.norms_train)
            if shared and kept:  # parallel parts norm one and the same input
                kept -= self.s * norm.width
            shared = block.structure.family.parallel
            total += kept
        return total

    def _norm(self, norm: Norm, carries: bool, trains: bool) -> float:
        if norm.centres:
            return (carries or trains) * (self.s * norm.width + 2 * _FLOAT * norm.groups)
        factor = carries * (_FLOAT * norm.width + _FLOAT * norm.groups)
        return factor + trains * (self.c if norm.side else self.s) * norm.width

    def _attention(self, flow: AttentionFlow, block: BlockFlow) -> float:
        attention, c = flow.attention, self.c
        held = self._normed(block)
        hidden = [m for m in flow.inputs if m.linear.in_features == self.hidden and m not in flow.from_encoder]
        total = self._inputs(hidden, self.hidden, held)
        for matrix in flow.inputs:
            if matrix.linear.in_features != self.hidden:
                total += self._inputs([matrix], matrix.linear.in_features, held)
            elif matrix in flow.from_encoder and self.autocast:
                total += self._inputs([matrix], self.hidden, held)
        u = self.workload.tokens_per_row(
            "encoder" if attention.cross else block.stack, self.step.anatomy.encoder_decoder
        )
        dropped = self.workload.dropout and block.trains
        fused = self.workload.attention == "sdpa" and not dropped
        if fused:
            total += flow.passes * (c * (attention.q + attention.k + attention.v + attention.a))
            total += flow.passes * _FLOAT * self.heads
        else:
            if self.workload.attention == "sdpa":
                c = _FLOAT  # torch's own unfused attention leaves autocast
            total += c * attention.q * (flow.query + flow.key) + c * attention.a * flow.scores
            total += self.heads * u * self._probabilities(flow, c, dropped, block.structure.family.softcap)
        kept_already = fused and flow.passes
        return total + self._inputs([flow.output], attention.a, self.c, kept_already)

    def _probabilities(self, flow: AttentionFlow, c: int, dropped: bool, softcap: bool) -> int:
        """Bytes per head and key."""
        total = c * (dropped + softcap) * flow.scores
        if c == _FLOAT and not dropped:
            return total + _FLOAT * flow.passes
        return total + _FLOAT * flow.scores + c * flow.value

    def _feed_forward(self, block: BlockFlow) -> float:
        shape, c = block.structure, self.c
        carries = any(matrix.passes for matrix in block.entering)
        fused = [m for m in block.entering if m.linear.copies > 1]
        plain = [m for m in block.entering if m.linear.copies == 1]
        # In parallel blocks with one norm, feed-forward and attention keep one and the same input.
        shared = shape.family.parallel and len(shape.norms) == 1 and not self.autocast
        kept_already = shared and any(m.trained for flow in block.attentions for m in flow.inputs)
        total = self._inputs(plain, self.hidden, self._normed(block), kept_already)
        for matrix in (*fused, *(m for m in block.leaving if m.linear.copies > 1)):
            # Experts gather their tokens; what leaves them is weighted by the router.
            chosen = matrix.linear.copies * matrix.linear.active
            total += chosen * c * self.hidden * (matrix.trained if matrix in fused else carries)
        factors = 2 if shape.gated else 0
        total += carries * (shape.family.activation_tensors + factors) * c * shape.inner
        kept_already = shape.family.keeps_output and not shape.gated and carries
        if any(matrix.linear.copies > 1 for matrix in block.leaving):
            return total + c * shape.inner * any(matrix.trained for matrix in block.leaving)
        return total + sum(
            self._inputs([m], m.linear.in_features * m.linear.active, c, kept_already) for m in block.leaving
        )

    def _inputs(self, matrices: Sequence[Matrix], width: float, held: int, kept_already: bool = False) -> float:
        """What matrices that read one tensor keep of it; `held` is its bytes per number."""
        c = self.c
        trained = sum(matrix.trained for matrix in matrices)
        adapted = [matrix for matrix in matrices if matrix.lora]
        plain = [matrix for matrix in adapted if matrix.lora and not matrix.lora.dropout]
        shares = held == c
        readers = trained + (len(plain) if c == _FLOAT or not shares else 0)
        copies = (readers > 0 and not kept_already) if shares else readers
        total = c * width * copies
        if shares and c != _FLOAT:
            total += c * width * len(plain)
        for matrix in adapted:
            assert matrix.lora is not None
            total += c * matrix.lora.r
            if matrix.lora.dropout:
                total += c * width + _FLOAT * width * matrix.carries
        return total

    def _normed(self, block: BlockFlow) -> int:
        """Bytes per number of what a norm hands on."""
        if not self.autocast:
            return _FLOAT
        weight = _FLOAT if block.norms_train else BYTES[self.workload.frozen_dtype]
        return max(self.s, weight)

    def _cast(self, matrix: Matrix) -> float:
        own = _FLOAT if matrix.trained else BYTES[self.workload.frozen_dtype]
        linear = matrix.linear
        total = 0.0
        if self.autocast and matrix.carries and own != self.c:
            total += self.c * linear.copies * linear.in_features * linear.out_features
        if self.autocast and matrix.lora:
            total += self.c * matrix.lora.r * (matrix.carries * linear.in_features + linear.out_features)
        return total


def _outer_norms(tensors: Sequence[Tensor]) -> list[Norm]:
    """The norms among tensors outside the blocks."""
    named = {tensor.name: tensor for tensor in tensors if "norm" in tensor.name.lower() and len(tensor.shape) == 1}
    return [
        Norm(tensor.shape[0], 1, "", name.removesuffix("weight") + "bias" in named)
        for name, tensor in named.items()
        if not tensor.is_bias
    ]
