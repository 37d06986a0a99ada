"""What autograd keeps from the forward pass for the backward pass, in bytes.

All terms are bytes per token. Widths are those of `_structure`: d hidden, f inner, q k v a of attention; h heads; u
keys that a token attends to. Bytes per number: w of the block's weights and hidden states; c of its matrix products (2
under autocast, else w); 4 where torch always computes in float32. A term is kept only under its condition. A tensor
"carries" a gradient if something that trains is before it. Why a term is kept at all: the gradient of a weight needs
the input of its matrix product, and the gradient of a non-linear function needs its operands.

    matrix        its input, c in, if it trains; matrices that read one tensor share it, except that autocast
                  makes a copy of a float32 one for each
    LoRA          the input of A, and r numbers, the input of B; with dropout a mask, 4 in, if its input carries; a gate
                  reads the input too, and makes it 2 r + 1 numbers
    adapter       parallel: the matrix's input; series: its output, float32; between, b numbers (gelu, silu: 2 b)
    prefix        as `_prefix` says
    mixture       k experts a token: the feed-forward's terms k times; d for the router, its N probabilities, and
                  the k outputs, c d k, that are summed
    PEFT's other  roughly as LoRA with as many parameters; DoRA keeps more: the widths that it scales
    RMSNorm       its input, 4 d, and 4 for the factor, if the input carries; the normed, w d, if it trains
    LayerNorm     its input, w d, and 8 for mean and factor, if it trains or its input carries
    attention     eager: queries and keys, c q each, if the other carries; values, c a, and the softmax, 4 h u,
                  if scores carry; the probabilities, c h u, if values carry (in float32 they are the
                  softmax); fused: c (q + k + v + a) + 4 h if anything carries
    feed-forward  the activation function's operands, c f each; if gated, c f each of the two factors
    dropout       masks, c d behind attention and behind feed-forward; attention keeps a mask and the
                  dropped probabilities too
    weights       under autocast a copy, 2 bytes per number, of each matrix whose input carries and whose
                  weight is not of that type; of a matrix that trains in part, the whole as put together

Embeddings, final norm and head follow the same rules; a loss over tokens keeps 4 bytes per logit.

With loss positions, the last block keeps keys and values, and what makes them, of all positions, and everything else
of the loss positions alone. What comes before both (the first norm, a matrix that makes queries, keys and values) it
keeps of both. The head keeps the final norm's output; at label positions it keeps it once more, with its gradient; and
the logits of one chunk.

Left out: rotary tables, masks, token ids, router statistics, DeBERTa's relative positions, T5's trained
position table (under it attention is never fused), and what lives only within an operation. Eager attention
is taken to compute its softmax in float32. Dropout is as torch has it on a CPU: masks as wide as the data
(CUDA: one byte), and fused attention with dropout keeps its probabilities (CUDA: not).

Compared with what `torch.autograd.graph.saved_tensors_hooks` sees (distinct storages, parameters left out): a
16-block Llama and a 6-block BERT are within 0.2% for `all`, botP, topP, intP, LoRA and partial blocks, in
float32 and under autocast; within 4% where the frozen blocks are bfloat16 (what is converted between blocks
is not counted), and 4-8% too high for BERT with eager attention under autocast, whose softmax is narrow. Tiny
Llama, Qwen3, Gemma 2, GPT-2, GPT-NeoX, OPT, Phi, Mixtral and OLMo 2 are within 5% in float32; so are classifiers
whose last block is read at one position, under autocast too; so are gated LoRA, adapters, prefixes and mixtures, to 3%.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from frostline.anatomy import Tensor, sides
from frostline.cost import _prefix
from frostline.cost._flow import AttentionFlow, BlockFlow, BlockLoss, Flow, MatrixFlow
from frostline.cost._kept import inputs_kept, norm_kept, weights_kept
from frostline.cost._loss_positions import block_positions, chunked, head_positions, logit_positions
from frostline.cost._structure import Norm
from frostline.cost._workload import FLOAT, Workload, state_bytes

_INDEX = 8
"""Bytes of a row's or an expert's number."""


@dataclass(frozen=True)
class Saved:
    """Bytes kept in one part of the model: of activations, and of weights (cast, or put together)."""

    activations: float = 0.0
    weights: float = 0.0

    @property
    def total(self) -> float:
        return self.activations + self.weights


@dataclass(frozen=True)
class SavedByPart:
    """Bytes kept in a step. `head` includes the final norm; `logits` is what the loss keeps, of each block loss."""

    embeddings: Saved
    blocks: tuple[Saved, ...]
    head: Saved
    logits: tuple[float, ...]

    @property
    def total(self) -> float:
        parts = (self.embeddings, *self.blocks, self.head)
        return sum(part.total for part in parts) + sum(self.logits)


def saved(step: Flow, workload: Workload) -> SavedByPart:
    """What a step of `workload.per_device_train_batch_size` rows keeps, without checkpointing."""
    heads = [_head(block_loss, step, workload) for block_loss in step.block_losses]
    return SavedByPart(
        embeddings=_embeddings(step, workload),
        blocks=tuple(_Block(block, step, workload).saved() for block in step.blocks),
        # One copy of a weight serves all block losses.
        head=Saved(sum(head.activations for head in heads), max(head.weights for head in heads)),
        logits=tuple(_logits(block_loss, step, workload) for block_loss in step.block_losses),
    )


class _Block:
    """The formulas above for one block; results are bytes per token unless they say otherwise."""

    def __init__(self, block: BlockFlow, step: Flow, workload: Workload) -> None:
        self.block = block
        self.step = step
        self.shape = block.structure
        self.workload = workload
        self.anatomy = step.anatomy
        self.hidden = step.anatomy.hidden_size
        self.w = state_bytes(block.widened, workload)
        self.c = 2 if workload.bf16 else self.w
        self.drops = workload.dropout and block.trains
        self.narrow = block_positions(block, step, workload) != workload.step_tokens(block.stack, step.anatomy)

    def saved(self) -> Saved:
        # The sum of the terms in the module's docstring, times the tokens of a batch. Copies of weights do not depend
        # on the number of tokens.
        per_token = self._norms() + self._feed_forward() + self._experts() + self._dropout()
        per_token += sum(map(self._attention, self.block.attentions))
        weights = sum(weights_kept(matrix, self.w, self.workload) for matrix in self.block.matrices)
        n = self.workload.step_tokens(self.block.stack, self.anatomy)
        read = block_positions(self.block, self.step, self.workload)
        if read == n:
            return Saved(n * per_token, weights)
        # With loss positions this (last) block runs in two parts: keys and values at all n positions, the rest at the
        # `read` ones. `of_them_once` is in both sums, and is taken out of the second.
        everywhere, of_them_once = self._keys_and_values()
        return Saved(n * everywhere + read * (per_token - of_them_once), weights)

    def _keys_and_values(self) -> tuple[float, float]:
        """What keys and values keep, with what makes them; and the part of it that queries do not need.

        Queries need the first norm too, and the input of a matrix that makes queries with keys and values. These are
        kept at all positions for keys and values, and at the loss positions once more for queries.
        """
        flow = self.block.attentions[0]
        attention = flow.attention
        makers = [m for m in flow.inputs if set(sides(m.linear) or "qkv") & set("kv")]
        of_queries = [m for m in flow.inputs if "q" in (sides(m.linear) or "qkv")]
        norms = sum(
            norm_kept(norm, "k" in flow.made, self.block.norms_train, self.w)
            for norm in self.shape.norms
            if norm.side == "k"
        )
        longer = self._longer(flow)
        keys, values = longer.key_numbers, longer.value_numbers
        if not self._fuses or self.drops:
            # Eager: keys are kept if queries carry (their gradient is scores' gradient x keys), values if scores do.
            c = FLOAT if self._fuses else self.c
            made = alone = c * keys * flow.query + c * values * flow.scores
        elif flow.length:
            # A prefix makes longer keys and values of its own: both are new tensors.
            made = alone = self.c * (keys + values)
        else:
            # Fused kernels keep their operands. With rotary positions keys are a new tensor; of one matrix that makes
            # all three, values stay a view that keeps the whole output.
            rotated = attention.k * (self.shape.family.rotary or not attention.fused)
            made = flow.passes * self.c * (rotated + float(attention.fused or attention.v))
            alone = flow.passes * self.c * (rotated + (0.0 if attention.fused else attention.v))
        everywhere = self._first_norm() + norms + self._sources(makers) + made
        return everywhere, norms + self._sources(flow.inputs) - self._sources(of_queries) + alone

    @property
    def _fuses(self) -> bool:
        return self.workload.attention == "sdpa" and not self.shape.family.unfused

    def _first_norm(self) -> float:
        """The norm before attention, where there is one."""
        if not self.shape.normed_first:
            return 0.0
        first = next(norm for norm in self.shape.norms if not norm.side)
        return norm_kept(first, self.block.enters, self.block.norms_train, self.w)

    def _inputs(self, matrices: Sequence[MatrixFlow], width: float, held: int, kept_already: bool = False) -> float:
        return inputs_kept(matrices, width, held, self.c, self.workload, kept_already)

    def _norms(self) -> float:
        total = 0.0
        # `around`: norms of the residual stream, in order; the others belong to queries or keys. A norm's input carries
        # a gradient if what is before it trains: for the first that is the block's input, for the last its output.
        around = [norm for norm in self.shape.norms if not norm.side]
        carried = [self.block.middle] * len(around)
        if around and self.shape.ends_in_norm:
            carried[-1] = self.block.leaves
        if around and self.shape.normed_first:
            carried[0] = self.block.enters
        for position, (norm, carries) in enumerate(zip(around, carried, strict=True)):
            kept = norm_kept(norm, carries, self.block.norms_train, self.w)
            # In parallel blocks all norms read one and the same input.
            total += kept - (self.w * norm.width if kept and position and self.shape.family.parallel else 0)
        for norm in self.shape.norms:
            if norm.side:
                attention = self.block.attentions[0]
                total += norm_kept(norm, norm.side in attention.made, self.block.norms_train, self.w)
        return total

    def _attention(self, flow: AttentionFlow) -> float:
        attention = flow.attention
        # 1. The inputs of the matrices that make queries, keys and values.
        total = self._sources([matrix for matrix in flow.inputs if matrix not in flow.from_encoder])
        for matrix in flow.from_encoder:
            # Without autocast every decoder block keeps one and the same tensor, the encoder's output.
            total += self._inputs([matrix], self.hidden, self.w, kept_already=not self.workload.bf16)
        longer = self._longer(flow)
        keys, values, marks = longer.key_numbers, longer.value_numbers, longer.marks
        # 2. Fused attention keeps queries, keys, values, its output, and a float32 number (log-sum-exp) for each head.
        if self._fuses and not self.drops:
            made = float(attention.q + attention.k + attention.v)
            if attention.fused:  # values stay a part of what one matrix made of all three
                made = attention.fused + (attention.q + attention.k) * self.shape.family.rotary
            if flow.length:
                of_its_own = flow.gated or self.shape.family.rotary or not attention.fused or not longer.masked
                queries = (attention.q + marks) * longer.ahead if of_its_own else attention.fused
                made = queries + keys + values
                total += self._of_prefix(longer, self.c) + self._mask_of_prefix(longer)
            output = (attention.a + marks) * longer.ahead
            total += flow.passes * (self.c * (made + output) + FLOAT * self.anatomy.num_heads * longer.ahead)
            # The attention's output is the input of the output matrix: kept once, unless the model copies it.
            kept_already = flow.passes and not self.shape.family.output_copied
            return total + self._inputs([flow.output], attention.a, self.c, kept_already)
        # 3. Eager attention: each operand of the two products, and the scores after softmax, [heads, tokens, keys].
        c = FLOAT if self._fuses else self.c  # with dropout, torch's own attention leaves autocast
        total += c * keys * flow.query + c * (attention.q + marks) * flow.key + c * values * flow.scores
        attended = self._attended(flow) + longer.added
        total += self.anatomy.num_heads * attended * self._probabilities(flow, c) + self._of_prefix(longer, c)
        return total + self._inputs([flow.output], attention.a, self.c)

    def _attended(self, flow: AttentionFlow) -> int:
        """How many tokens of the text a token attends to."""
        return self.workload.row_tokens("encoder" if flow.attention.cross else self.block.stack, self.anatomy)

    def _longer(self, flow: AttentionFlow) -> _prefix.Longer:
        separate = self.drops or self.shape.family.softcap
        unmasked = self._causal and not self.narrow and flow.added_keys(separate) == 1
        return _prefix.Longer(flow, self._attended(flow), separate, masked=not unmasked)

    @property
    def _causal(self) -> bool:
        """Whether fused attention knows the causal order by itself."""
        return self._fuses and not self.drops and self.block.stack == "decoder"

    def _of_prefix(self, longer: _prefix.Longer, c: int) -> float:
        """What the gate of a prefix keeps, and the tensors that are joined with the prefix."""
        own = 2 if self.workload.bf16 else FLOAT
        # LoRA of the same attention keeps what the gate reads.
        kept_already = self.w == self.c and any(matrix.branch is not None for matrix in longer.flow.inputs)
        return longer.beside(c) + own * _prefix.of_its_gate(longer.flow, 0 if kept_already else self.hidden)

    def _mask_of_prefix(self, longer: _prefix.Longer) -> float:
        # A longer mask, in place of the causal order: a new tensor [tokens, keys], one for the whole batch.
        longer_mask = self._causal * longer.masked * self.c * (longer.keys + longer.added)
        return longer_mask / self.workload.batch_texts

    def _sources(self, matrices: Sequence[MatrixFlow]) -> float:
        """The inputs of the matrices that make queries, keys and values: hidden states, or latent vectors."""
        together = [matrix for matrix in matrices if matrix.linear.in_features == self.hidden]
        latent = [matrix for matrix in matrices if matrix.linear.in_features != self.hidden]
        total = sum(self._inputs([matrix], matrix.linear.in_features, self.w) for matrix in latent)
        return total + self._inputs(together, self.hidden, self.w)

    def _probabilities(self, flow: AttentionFlow, c: int) -> int:
        """Per head and key, of unfused attention."""
        # With dropout the mask is kept, with a softcap its tanh; then the softmax, in float32, and the probabilities
        # that multiply the values. Without dropout and in float32 these two are one tensor.
        total = c * (self.drops + self.shape.family.softcap) * flow.scores
        if c == FLOAT and not self.drops:
            return total + FLOAT * flow.passes
        return total + FLOAT * flow.scores + c * flow.value

    def _feed_forward(self) -> float:
        family, gated = self.shape.family, self.shape.gated
        entering = [m for m in self.block.entering if m.linear.copies == 1]
        leaving = [m for m in self.block.leaving if m.linear.copies == 1]
        carries = any(matrix.passes for matrix in entering)
        # In parallel blocks with one norm, feed-forward and attention keep one and the same input.
        one_input = family.parallel and len(self.shape.norms) == 1 and not self.workload.bf16
        kept_already = one_input and any(m.trained for flow in self.block.attentions for m in flow.inputs)
        total = self._inputs(entering, self.hidden, self.w, kept_already)
        # The output of the activation function (times the gate) is the input of the matrix that follows: where the
        # function keeps its own output, it is there already.
        kept_already = family.keeps_output and not gated and carries
        for matrix in leaving:
            inner = matrix.linear.in_features * matrix.linear.active
            rows = matrix.branch.rows if matrix.branch else 1
            # Operands of the activation function, and of the gate's product: both factors.
            total += self.c * inner * rows * (family.activation_tensors + 2 * gated) * carries
            total += self._inputs([matrix], inner, self.c, kept_already)
            if rows > 1:
                total += self._mixed(rows)
        return total

    def _mixed(self, rows: int) -> float:
        """What a mixture's router keeps, and the experts' outputs that are summed."""
        routed = (2 if self.workload.bf16 else FLOAT) * self.hidden + FLOAT * self.block.experts
        return routed + self.c * rows * self.hidden + (FLOAT + _INDEX) * 3 * rows

    def _experts(self) -> float:
        """Experts whose weights are one tensor. They gather their tokens and compute in their weights' type, also under
        autocast; the router's weights multiply their outputs."""
        entering = [m for m in self.block.entering if m.linear.copies > 1]
        carries, trained = any(m.passes for m in entering), any(m.trained for m in entering)
        total = 0.0
        for matrix in (m for m in self.block.leaving if m.linear.copies > 1):
            inner = matrix.linear.in_features * (3 * carries + matrix.trained)
            outer = self.hidden * (carries + trained)
            total += matrix.linear.copies * matrix.linear.active * (inner + outer) * self.w
        return total

    def _dropout(self) -> float:
        # A mask of the hidden width behind attention and behind the feed-forward, where a gradient passes.
        branches = (*(attention.output for attention in self.block.attentions), *self.block.leaving[-1:])
        return self.drops * self.c * self.hidden * sum(matrix.passes for matrix in branches)


def _embeddings(step: Flow, workload: Workload) -> Saved:
    if not step.embeddings_train:
        return Saved()  # token ids alone are needed, and they are not counted
    per_token = sum(norm_kept(norm, True, True, FLOAT) for norm in _norms_among(step.anatomy.embeddings))
    per_token += workload.dropout * FLOAT * step.anatomy.hidden_size
    weights = sum(weights_kept(matrix, FLOAT, workload) for matrix in step.embeddings)
    return Saved(workload.step_tokens("encoder", step.anatomy) * per_token, weights)


def _head(block_loss: BlockLoss, step: Flow, workload: Workload) -> Saved:
    n = workload.step_tokens("decoder", step.anatomy)
    carries, trains = block_loss.carries, step.final_norm_trains
    norms = _norms_among(step.anatomy.final_norm)
    total = n * sum(norm_kept(norm, carries, trains, state_bytes(trains, workload)) for norm in norms)
    weights = 0.0
    chunks = chunked(step, workload)
    for position, item in enumerate(block_loss.matrices):
        w = state_bytes(item.matrix.trained, workload)
        # Without autocast a pooled token is a view that keeps the states of all tokens.
        whole = not item.pooled or (position == 0 and not workload.bf16)
        c = 2 if workload.bf16 else w
        per_token = inputs_kept([item.matrix], item.matrix.linear.in_features, w, c, workload)
        if not chunks:
            total += (n if whole else workload.batch_texts) * per_token
        weights += weights_kept(item.matrix, w, workload)
    if chunks:
        # The final norm's output everywhere, and at label positions a copy of it and that copy's gradient.
        read = head_positions(block_loss.matrices[-1], step, workload)
        total += (n + 2 * read) * state_bytes(trains, workload) * step.anatomy.hidden_size
    return Saved(total, weights)


def _logits(block_loss: BlockLoss, step: Flow, workload: Workload) -> float:
    """What a loss over tokens keeps: the log-probabilities; with a softcap its tanh too."""
    head = block_loss.matrices
    if not head or any(item.pooled for item in head) or not head[-1].matrix.passes:
        return 0.0
    last = head[-1].matrix
    narrow = 2 if workload.bf16 else state_bytes(last.trained, workload)
    per_logit = FLOAT + narrow * step.blocks[-1].structure.family.softcap
    return logit_positions(step, workload) * per_logit * last.linear.out_features


def _norms_among(tensors: Sequence[Tensor]) -> list[Norm]:
    """The norms among tensors outside the blocks."""
    named = {t.name: t for t in tensors if re.search(r"norm|\bln_", t.name.lower()) and len(t.shape) == 1}
    return [
        Norm(tensor.shape[0], 1, "", name.removesuffix("weight") + "bias" in named)
        for name, tensor in named.items()
        if not tensor.is_bias
    ]
