"""The plan: a mode for every block, the embeddings, the final norm and the head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from frostline.core.errors import UserError
from frostline.plan.modes import BlockMode, Frozen, Full, Options, PartMode


class Plan(Options):
    """Which parts of a model train, and how. Pure data: it names blocks by number and holds no tensor.

    `blocks[i]` is the mode of block i, counted from the input. `untie` gives a tied head its own copy of
    the embedding, so that the head can train while the embeddings stay frozen.
    """

    version: Literal[1] = 1
    strategy: str = "custom"
    embeddings: PartMode = Frozen()
    blocks: tuple[BlockMode, ...] = Field(min_length=1)
    final_norm: PartMode = Full()
    head: PartMode = Full()
    untie: bool = False

    @field_validator("embeddings", "final_norm", "head", mode="before")
    @classmethod
    def _word_for_mode(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value

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

    @property
    def boundary(self) -> int:
        """The lowest block that trains; below it no backward runs. 0 when the embeddings train, the number
        of blocks when none does."""
        if self.embeddings.mode != "frozen":
            return 0
        trained = (i for i, block in enumerate(self.blocks) if block.mode != "frozen")
        return next(trained, len(self.blocks))

    @classmethod
    def read(cls, document: Any, where: str = "plan") -> Plan:
        """A plan from a parsed document (YAML or JSON).

        Raises `UserError` with one line that says what is wrong, where, and what would be right.
        """
        if not isinstance(document, dict):
            raise UserError(f"{where}: a plan is a mapping with the key 'blocks', not {_kind(document)}")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise UserError(f"{where}: {first_error(error)}") from None


def expand_blocks(entries: Sequence[Any]) -> list[Any]:
    """One mode document per block from entries such as ``{index: 0-7, mode: frozen}``, in any order.

    Every block from 0 to the highest named has to be there exactly once. Raises `ValueError` otherwise.
    """
    found: dict[int, Any] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            found[position] = entry  # an already validated mode
            continue
        options = {key: value for key, value in entry.items() if key != "index"}
        for index in _indices(entry.get("index", position), len(entries)):
            if index in found:
                raise ValueError(f"block {index} is given twice")
            found[index] = options
    missing = sorted(set(range(max(found, default=-1) + 1)) - set(found))
    if missing:
        raise ValueError(f"blocks {_ranges(missing)} have no mode: every block needs one")
    return [found[index] for index in sorted(found)]


def first_error(error: ValidationError) -> str:
    """The first of pydantic's errors as one line: place, what is wrong, what would be right."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(piece) for piece in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ").replace("Input should", "it should")
    if first["type"] == "extra_forbidden":
        message = "no such key"
    elif first["type"] == "union_tag_invalid":
        context = first["ctx"]
        message = f"unknown mode '{context['tag']}', it should be one of {context['expected_tags']}"
    elif first["type"] == "union_tag_not_found":
        message = "the key 'mode' is missing"
    given = first.get("input")
    shown = f" (given: {given!r})" if isinstance(given, (str, int, float, bool)) else ""
    return f"{place}: {message}{shown}" if place else message


def block_ranges(modes: Iterable[Options]) -> list[tuple[str, Options]]:
    """Runs of equal neighbouring modes, as ("0-7", mode)."""
    runs: list[tuple[int, int, Options]] = []
    for index, mode in enumerate(modes):
        if runs and runs[-1][2] == mode:
            runs[-1] = (runs[-1][0], index, mode)
        else:
            runs.append((index, index, mode))
    return [(str(a) if a == b else f"{a}-{b}", mode) for a, b, mode in runs]


def _indices(index: Any, count: int) -> range:
    try:
        if isinstance(index, bool):
            raise ValueError
        first, last = (int(piece) for piece in index.split("-")) if "-" in str(index) else (int(index),) * 2
    except (ValueError, AttributeError):
        raise ValueError(f"block index {index!r} is not a number or a range such as 0-7") from None
    if not 0 <= first <= last < 10_000:
        raise ValueError(f"block index {index!r} is out of range: blocks count from 0, lowest first")
    return range(first, last + 1)


def _ranges(indices: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
