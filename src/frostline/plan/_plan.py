"""The plan: a mode for every block, the embeddings, the final norm and the head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from frostline.core.errors import PlanError
from frostline.core.settings import Options, first_error
from frostline.plan._forward import Forward
from frostline.plan._modes import BlockMode, Frozen, Full, PartMode


class Plan(Options):
    """Which parts of a model train, and how. Pure data: it names blocks by number and holds no tensor.

    `blocks[i]` is the mode of block i, counted from the input. `untie` gives a tied head its own copy of
    the embedding, so that the head can train while the embeddings stay frozen. `forward` is what changes in the
    forward pass and the loss.
    """

    version: Literal[1] = 1
    strategy: str = "custom"
    embeddings: PartMode = Frozen()
    blocks: tuple[BlockMode, ...] = Field(min_length=1)
    final_norm: PartMode = Full()
    head: PartMode = Full()
    untie: bool = False
    forward: Forward = Forward()

    @field_validator("embeddings", "final_norm", "head", mode="before")
    @classmethod
    def _word_for_mode(cls, value: Any) -> Any:
        return _word_to_mode(value)

    @field_validator("blocks", mode="before")
    @classmethod
    def _expand_ranges(cls, value: Any) -> Any:
        return expand_blocks(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _trains_something(self) -> Plan:
        parts = (self.embeddings, *self.blocks, self.final_norm, self.head)
        if all(part.mode == "frozen" for part in parts):
            raise ValueError("nothing trains: give at least one block or the head a mode other than frozen")
        return self

    @model_validator(mode="after")
    def _forward_fits(self) -> Plan:
        weights, depth = self.forward.loss_weights, len(self.blocks)
        if weights is not None:
            if len(weights) != depth:
                raise ValueError(f"forward.loss_weights: {len(weights)} numbers for {depth} blocks: give one for each")
            highest = max((index for index, weight in enumerate(weights) if weight), default=-1)
            above = [i for i, block in enumerate(self.blocks) if i > highest and block.mode != "frozen"]
            if above or highest < 0:
                raise ValueError(
                    f"forward.loss_weights: no block from {highest + 1} on has a weight, so nothing there would learn: "
                    f"give block {depth - 1} one"
                )
        if self.forward.interacts and self.forward.residual.span > depth:
            raise ValueError(f"forward.residual.span: {self.forward.residual.span} reaches over all {depth} blocks")
        return self

    @property
    def boundary(self) -> int:
        """The lowest block that trains; below it no backward runs. 0 when the embeddings train, the number
        of blocks when none does."""
        if self.embeddings.mode != "frozen":
            return 0
        trained = (i for i, block in enumerate(self.blocks) if block.mode != "frozen")
        return next(trained, len(self.blocks))

    def reads_below(self, boundary: int) -> str | None:
        """Why blocks from `boundary` on, or the loss, read states before the one at the boundary; None when they do
        not. In one line.

        The boundary state itself may be read. An encoder-decoder's stacks are taken as one here: with the whole
        encoder below, a decoder that trains from its first block on would not read below.
        """
        if not 0 < boundary <= len(self.blocks):
            return None
        below = [index for index in self.forward.losses if index + 1 < boundary]
        if below:
            return f"the layered loss reads block {below[0]}, which lies below the boundary at {boundary}"
        if self.forward.interacts and self.forward.residual.span > 1 and boundary < len(self.blocks):
            return f"the residual interaction reads {self.forward.residual.span} blocks back, below the boundary"
        return None

    @classmethod
    def read(cls, document: Any, where: str = "plan") -> Plan:
        """A plan from a parsed document (YAML or JSON).

        Raises `PlanError` with one line that says what is wrong, where, and what would be right.
        """
        if not isinstance(document, dict):
            raise PlanError(f"{where}: a plan is a mapping with the key 'blocks', not {_kind(document)}")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise PlanError(f"{where}: {first_error(error)}") from None


def expand_blocks(entries: Sequence[Any]) -> list[Any]:
    """One mode document per block from entries such as ``{index: 0-7, mode: frozen}``, in any order.

    Every block from 0 to the highest named has to be there exactly once. Raises `ValueError` otherwise.
    """
    found = named_blocks(entries)
    missing = sorted(set(range(max(found, default=-1) + 1)) - set(found))
    if missing:
        raise ValueError(f"no mode is given for block {_ranges(missing)}: every block needs one")
    return [found[index] for index in sorted(found)]


def named_blocks(entries: Sequence[Any]) -> dict[int, Any]:
    """Block -> its mode document, from entries as `expand_blocks` takes. Raises `ValueError` for one given twice."""
    found: dict[int, Any] = {}
    for position, entry in enumerate(entries):
        options, index = _word_to_mode(entry), position
        if isinstance(options, dict):
            index = options.get("index", position)
            options = {key: value for key, value in options.items() if key != "index"}
        for block in _indices(index):
            if block in found:
                raise ValueError(f"block {block} is given twice")
            found[block] = options
    return found


def block_ranges(modes: Iterable[Options]) -> list[tuple[str, Options]]:
    """Runs of equal neighbouring modes, as ("0-7", mode)."""
    runs: list[tuple[int, int, Options]] = []
    for index, mode in enumerate(modes):
        if runs and runs[-1][2] == mode:
            runs[-1] = (runs[-1][0], index, mode)
        else:
            runs.append((index, index, mode))
    return [(str(a) if a == b else f"{a}-{b}", mode) for a, b, mode in runs]


_INDEX = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?", re.ASCII)


def _indices(index: Any) -> range:
    match = _INDEX.fullmatch(str(index))
    if match is None:
        raise ValueError(f"block index {index!r} is not a number from 0 to 9999 or a range such as 0-7")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ValueError(f"block index {index!r} runs backwards: the lowest comes first")
    return range(first, last + 1)


def _word_to_mode(value: Any) -> Any:
    return {"mode": value} if isinstance(value, str) else value


def _ranges(indices: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"
