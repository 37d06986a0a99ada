"""Where gradients flow in a training step: what autograd computes for every matrix of a plan's model.

The rules are autograd's own. A tensor carries a gradient if something that trains lies before it. A matrix
whose input carries one computes its input's gradient; one that trains computes its weight's; one below the
boundary neither. So a frozen block above the boundary costs forward and input gradient, and the first
matrices of the lowest trained block cost an input gradient only if a norm before them trains.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

from frostline.adapters import Added, Branch, Shape, added_to
from frostline.anatomy import Anatomy, Attention, Block, Linear, Part, Role, select, sides, untied
from frostline.cost._structure import Structure, structures
from frostline.plan import BlockMode, Plan, Prefix


@dataclass(frozen=True)
class MatrixFlow:
    """One weight matrix in a step. `carries`: its input carries a gradient; `trained`: it trains, `partly`:
    only some of its rows; `biased`: its bias trains; `branch`: what an adapter adds to what it gives."""

    linear: Linear
    carries: bool
    trained: bool
    partly: bool = False
    biased: bool = False
    branch: Branch | None = None

    @property
    def passes(self) -> bool:
        """Whether its output carries a gradient."""
        return self.gives or self.branch is not None

    @property
    def gives(self) -> bool:
        """Whether what it gives by itself does, before an adapter adds to it."""
        return self.carries or self.trained or self.biased

    @property
    def branch_carries(self) -> bool:
        """Whether what its branch reads carries a gradient."""
        return self.branch is not None and (self.gives if self.branch.after else self.carries)

    @property
    def roundable(self) -> bool:
        """Whether it can be held in 8 or 4 bits: frozen, in a block, alone in its tensor."""
        return not self.trained and self.linear.part is Part.BLOCK and self.linear.copies == 1


@dataclass(frozen=True)
class AttentionFlow:
    """One attention in a step: which of its operands carry a gradient.

    `carries`: the hidden states that it reads do. `made`: which of q, k, v do as the block makes them. Without a gate
    a prefix is a part of the keys and values; with one, of the queries (`frostline.adapters`).
    """

    attention: Attention
    heads: int
    carries: bool
    inputs: tuple[MatrixFlow, ...]
    output: MatrixFlow
    made: frozenset[str]
    prefix: Prefix | None = None

    @property
    def query(self) -> bool:
        return "q" in self.made or self.gated

    @property
    def key(self) -> bool:
        return "k" in self.made or (self.length > 0 and not self.gated)

    @property
    def value(self) -> bool:
        return "v" in self.made or (self.length > 0 and not self.gated)

    @property
    def length(self) -> int:
        """How many prefix tokens its queries attend."""
        return 0 if self.prefix is None else self.prefix.length

    @property
    def gated(self) -> bool:
        return self.prefix is not None and self.prefix.gate != "none"

    @property
    def marks(self) -> int:
        """How many numbers a gated prefix adds to a token's queries, keys and values, all heads together."""
        return self.heads * self.length if self.gated else 0

    @property
    def from_encoder(self) -> tuple[MatrixFlow, ...]:
        """The matrices that multiply the encoder's states."""
        crosses = self.attention.cross
        return tuple(m for m in self.inputs if crosses and "q" not in sides(m.linear))

    @property
    def scores(self) -> bool:
        return self.query or self.key

    @property
    def passes(self) -> bool:
        return self.scores or self.value


@dataclass(frozen=True)
class BlockFlow:
    """One block in a step.

    `trains`: its mode is not frozen; `widened`: tensors of its own train, so all of them are float32. `added`: the
    shapes of what adapters add. `enters`, `middle`, `reads`, `leaves`: its hidden states carry a gradient before it,
    after its attention, where its feed-forward reads them, after it.
    """

    index: int
    stack: str
    structure: Structure
    trains: bool
    widened: bool
    norms_train: bool
    added: tuple[Shape, ...]
    enters: bool
    middle: bool
    reads: bool
    leaves: bool
    attentions: tuple[AttentionFlow, ...]
    entering: tuple[MatrixFlow, ...]
    leaving: tuple[MatrixFlow, ...]

    @property
    def matrices(self) -> Iterable[MatrixFlow]:
        for attention in self.attentions:
            yield from (*attention.inputs, attention.output)
        yield from (*self.entering, *self.leaving)

    @property
    def branches(self) -> list[Branch]:
        return [matrix.branch for matrix in self.matrices if matrix.branch is not None]

    @property
    def experts(self) -> int:
        """How many a mixture's router chooses among."""
        return max((branch.experts for branch in self.branches), default=0)


@dataclass(frozen=True)
class HeadMatrix:
    """A matrix after the blocks. `pooled`: it multiplies one token of each row, not all."""

    matrix: MatrixFlow
    pooled: bool


@dataclass(frozen=True)
class BlockLoss:
    """The loss, read off a block's output through final norm and head. `carries`: that output carries a gradient.

    Nothing of it is differentiated when the last block's output has no weight in a layered loss.
    """

    carries: bool
    matrices: tuple[HeadMatrix, ...]


@dataclass(frozen=True)
class Flow:
    """A whole step. `anatomy` is that of the model as the plan trains it (untied if it unties).

    `block_losses`: of the blocks that a layered loss gives weight, and last that of the last block. `kept_states`:
    hidden states that a residual interaction keeps until it adds them.
    """

    anatomy: Anatomy
    embeddings_train: bool
    embeddings: tuple[MatrixFlow, ...]
    blocks: tuple[BlockFlow, ...]
    final_norm_trains: bool
    block_losses: tuple[BlockLoss, ...]
    kept_states: int = 0

    @property
    def head(self) -> tuple[HeadMatrix, ...]:
        """The matrices that multiply the last block's output."""
        return self.block_losses[-1].matrices

    @cached_property
    def bottom(self) -> int:
        """How many blocks, from the input, nothing that trains reaches: they compute the same in every step.

        The plan's boundary, but in an encoder-decoder whose encoder's final norm trains: that norm lies below
        every decoder block.
        """
        return next((block.index for block in self.blocks if block.trains or block.leaves), len(self.blocks))

    @property
    def classifies(self) -> bool:
        """Whether the loss reads one position of each row."""
        return self.anatomy.model_class.endswith("ForSequenceClassification")

    @property
    def has_positions(self) -> bool:
        """Whether the loss tells where it reads: not in extracted answers, and not in a choice among texts."""
        return "ForQuestionAnswering" not in self.anatomy.model_class and not _chooses(self.anatomy.model_class)


def as_trained(plan: Plan, anatomy: Anatomy) -> Anatomy:
    """The anatomy of the model as the plan trains it: with a head of its own if it unties."""
    return untied(anatomy) if plan.untie and anatomy.tied else anatomy


def flow(plan: Plan, anatomy: Anatomy) -> Flow:
    """Where gradients flow when `anatomy`'s model trains under `plan`.

    Raises `UserError` when the plan does not fit the anatomy.
    """
    trained = {item.tensor.name: item.rows < 1 for item in select(plan, anatomy)}
    added = [added_to(mode, block, anatomy) for mode, block in zip(plan.blocks, anatomy.blocks, strict=True)]
    beside = {name: branch for block in added for name, branch in block.branches.items()}
    anatomy = as_trained(plan, anatomy)

    def matrix(linear: Linear, carries: bool) -> MatrixFlow:
        weight, bias = linear.weight, f"{linear.name}.bias"
        return MatrixFlow(
            linear, carries, weight in trained, trained.get(weight, False), bias in trained, beside.get(linear.name)
        )

    embeddings_train = plan.embeddings.own is not None
    final_norm_trains = plan.final_norm.own is not None and bool(anatomy.final_norm)
    blocks: list[BlockFlow] = []
    hidden = embeddings_train
    encoded = False
    last = len(anatomy.blocks) - 1
    losses = plan.forward.losses or {last: 1.0}
    for mode, block, shape in zip(plan.blocks, anatomy.blocks, structures(anatomy), strict=True):
        if anatomy.encoder_decoder and block.stack == "decoder" and blocks and blocks[-1].stack == "encoder":
            hidden, encoded = embeddings_train, hidden or final_norm_trains
        blocks.append(
            _block(block, shape, mode, added[block.index], trained, matrix, hidden, encoded, anatomy.num_heads)
        )
        hidden = blocks[-1].leaves and block.index < max(losses)

    def block_loss(block: BlockFlow) -> BlockLoss:
        if block.index not in losses:
            untrained = (MatrixFlow(linear, carries=False, trained=False) for linear in anatomy.head_linears)
            return BlockLoss(False, tuple(HeadMatrix(m, _pooled(m.linear, anatomy.model_class)) for m in untrained))
        head: list[HeadMatrix] = []
        carries = block.leaves or final_norm_trains
        for linear in anatomy.head_linears:
            head.append(HeadMatrix(matrix(linear, carries), _pooled(linear, anatomy.model_class)))
            carries = head[-1].matrix.passes
        return BlockLoss(block.leaves, tuple(head))

    return Flow(
        anatomy=anatomy,
        embeddings_train=embeddings_train,
        embeddings=tuple(matrix(linear, embeddings_train) for linear in anatomy.embedding_linears),
        blocks=tuple(blocks),
        final_norm_trains=final_norm_trains,
        block_losses=tuple(block_loss(block) for block in blocks if block.index in losses or block.index == last),
        kept_states=plan.forward.residual.span if plan.forward.interacts else 0,
    )


MakeMatrix = Callable[[Linear, bool], MatrixFlow]


def _block(
    block: Block,
    structure: Structure,
    mode: BlockMode,
    added: Added,
    trained: Collection[str],
    make: MakeMatrix,
    enters: bool,
    encoded: bool,
    heads: int,
) -> BlockFlow:
    own = {tensor.role for tensor in block.tensors if tensor.name in trained}
    own |= {tensor.role for tensor in added.copied}
    norms_train = Role.NORM in own
    normed_first = norms_train and structure.normed_first
    here = enters
    attentions: list[AttentionFlow] = []
    for position, attention in enumerate(structure.attentions):
        prefix = added.prefix if not position else None
        reads = here or normed_first
        attentions.append(_attention(attention, structure, make, reads, encoded, norms_train, heads, prefix))
        here = here or attentions[-1].output.passes or norms_train
    entered = (enters if structure.family.parallel else here) or norms_train
    entering = tuple(make(linear, entered) for linear in structure.entering)
    inner = any(matrix.passes for matrix in entering)
    leaving = tuple(make(linear, inner) for linear in structure.leaving)
    leaves = here or bool(own) or any(matrix.passes for matrix in leaving)
    return BlockFlow(
        index=block.index,
        stack=block.stack,
        structure=structure,
        trains=mode.mode != "frozen",
        widened=bool(own),
        norms_train=norms_train,
        added=added.shapes,
        enters=enters,
        middle=here or (norms_train and structure.family.parallel),
        reads=entered,
        leaves=leaves,
        attentions=tuple(attentions),
        entering=entering,
        leaving=leaving,
    )


def _attention(
    attention: Attention,
    structure: Structure,
    make: MakeMatrix,
    reads: bool,
    encoded: bool,
    norms_train: bool,
    heads: int,
    prefix: Prefix | None,
) -> AttentionFlow:
    inputs: list[MatrixFlow] = []
    for linear in attention.inputs:
        made_of = sides(linear)
        if linear.in_features != structure.hidden:  # from a latent vector
            carries = norms_train or any(m.passes for m in inputs if set(sides(m.linear)) & set(made_of))
        else:
            carries = encoded if attention.cross and "q" not in made_of else reads
        inputs.append(make(linear, carries))

    def side(name: str) -> bool:
        normed = norms_train and any(norm.side == name for norm in structure.norms)
        return normed or any(m.passes for m in inputs if name in (sides(m.linear) or "qkv"))

    made = frozenset(filter(side, "qkv"))
    output = make(attention.output, bool(made) or prefix is not None)
    return AttentionFlow(attention, heads, reads, tuple(inputs), output, made, prefix)


def _pooled(linear: Linear, model_class: str) -> bool:
    """Encoders classify by one token; decoders' `score` runs at every position (transformers picks later)."""
    leaf = linear.name.rpartition(".")[2]
    classifies = model_class.endswith("ForSequenceClassification") or _chooses(model_class)
    return "pooler" in linear.name or (classifies and leaf != "score")


def _chooses(model_class: str) -> bool:
    return model_class.endswith("ForMultipleChoice")
