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

    Attributes:
        strategy: the name of the strategy that made it.
        embeddings: mode of the embeddings, `frozen` or `full`.
        blocks: a mode for each block, counted from the input.
        final_norm: mode of the final norm, `frozen` or `full`.
        head: mode of the head, `frozen` or `full`.
        untie: give a tied head its own copy of the embedding, so that it can train while the embeddings stay frozen.
        frozen_dropout: let dropout act in frozen blocks and embeddings, as freezing by `requires_grad` alone does. By
            default they are in eval mode. Where dropout acts below the boundary, no activation cache is possible.
        forward: changes of the forward pass and of the loss.
        learning_rate: the learning rate that the plan was chosen for, where a planner chose one.
        max_steps: the number of optimizer steps that it was chosen for, where a planner chose one.
    """

    version: Literal[1] = 1
    strategy: str = "custom"
    embeddings: PartMode = Frozen()
    blocks: tuple[BlockMode, ...] = Field(min_length=1)
    final_norm: PartMode = Full()
    head: PartMode = Full()
    untie: bool = False
    frozen_dropout: bool = False
    forward: Forward = Forward()
    learning_rate: float | None = Field(None, gt=0)
    max_steps: int | None = Field(None, gt=0)

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
            raise ValueError("nothing trains: use a mode other than frozen for at least one block or the head")
        return self

    @model_validator(mode="after")
    def _forward_fits(self) -> Plan:
        weights, depth = self.forward.loss_weights, len(self.blocks)
        if weights is not None:
            if len(weights) != depth:
                raise ValueError(
                    f"forward.loss_weights: {len(weights)} numbers for {depth} blocks: use one for each block"
                )
            highest = max((index for index, weight in enumerate(weights) if weight), default=-1)
            above = [i for i, block in enumerate(self.blocks) if i > highest and block.mode != "frozen"]
            if above or highest < 0:
                raise ValueError(
                    f"forward.loss_weights: every weight from block {highest + 1} on is 0, so nothing there would "
                    f"learn: use a weight other than 0 for block {depth - 1}"
                )
        if self.forward.interacts and self.forward.residual.span > depth:
            raise ValueError(
                f"forward.residual.span: {self.forward.residual.span} of {depth} blocks: use at most {depth}"
            )
        return self

    @property
    def boundary(self) -> int:
        """The lowest block that trains. No backward pass runs below it.

        0 when the embeddings train; the number of blocks when no block trains.
        """
        if self.embeddings.mode != "frozen":
            return 0
        trained = (i for i, block in enumerate(self.blocks) if block.mode != "frozen")
        return next(trained, len(self.blocks))

    def reads_below(self, boundary: int) -> str | None:
        """Why the blocks from `boundary` on, or the loss, need states from below the boundary, in one line.

        None when they need none. They may read the boundary state itself. The stacks of an encoder-decoder count as
        one here, so the answer is too careful where the boundary lies between them.
        """
        if not 0 < boundary <= len(self.blocks):
            return None
        below = [index for index in self.forward.losses if index + 1 < boundary]
        if below:
            return (
                f"the layered loss reads the output of block {below[0]}, which is below the boundary (block {boundary})"
            )
        if self.forward.interacts and self.forward.residual.span > 1 and boundary < len(self.blocks):
            return f"the residual interaction reaches {self.forward.residual.span} blocks back, below the boundary"
        return None

    @classmethod
    def read(cls, document: Any, where: str = "plan") -> Plan:
        """A plan from a parsed document (YAML or JSON).

        Raises `PlanError` with one line: what is wrong, where (`where` is the file), and what to do.
        """
        if not isinstance(document, dict):
            raise PlanError(f"{where}: a plan has to be a mapping with the key 'blocks', not {_kind(document)}")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise PlanError(f"{where}: {first_error(error)}") from None


def expand_blocks(entries: Sequence[Any]) -> list[Any]:
    """One mode document per block, from entries such as ``{index: 0-7, mode: frozen}`` in any order.

    Raises `ValueError` unless every block from 0 to the highest one is named exactly once.
    """
    found = named_blocks(entries)
    missing = sorted(set(range(max(found, default=-1) + 1)) - set(found))
    if missing:
        raise ValueError(f"block {_ranges(missing)} has no mode: give every block one")
    return [found[index] for index in sorted(found)]


def named_blocks(entries: Sequence[Any]) -> dict[int, Any]:
    """Block -> its mode document, from entries as in `expand_blocks`. Raises `ValueError` for a block given twice."""
    found: dict[int, Any] = {}
    for position, entry in enumerate(entries):
        options, index = _word_to_mode(entry), position
        if isinstance(options, dict):
            index = options.get("index", position)
            options = {key: value for key, value in options.items() if key != "index"}
        for block in _indices(index):
            if block in found:
                raise ValueError(f"block {block} is given twice: give each block one mode")
            found[block] = options
    return found


def block_ranges(modes: Iterable[Options]) -> list[tuple[str, Options]]:
    """Neighbouring blocks with equal modes, as ("0-7", mode)."""
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
        raise ValueError(f"block index {index!r}: use a number from 0 to 9999 or a range such as 0-7")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ValueError(f"block index {index!r}: use the lower number first, as in 0-7")
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
