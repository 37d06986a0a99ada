"""Noise in the texts that a model reads, to measure how sensitive a training is to it."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import replace
from typing import overload

from frostline.core.errors import ConfigError
from frostline.core.seeding import derive_seed
from frostline.rows import TaskKind
from frostline.tasks._task import Example, Task

_CANNOT = {
    TaskKind.TAGGING: "each word has a tag",
    TaskKind.EXTRACTION: "answers are found by their place in the text",
    TaskKind.LANGUAGE: "what the model reads is also what it learns",
}
"""Kinds of task whose texts cannot be changed, and why."""


def with_noise(task: Task, share: float, seed: int) -> Task:
    """The task with noise in the texts that the model reads, in both splits. What it has to answer stays.

    Each character is changed with probability `share`: another letter takes its place, a letter is put before it, or it
    is left out. The same seed gives the same noise in each example, whatever the other examples are.

    Args:
        task: the task.
        share: the share of the characters that are changed; with 0 the task stays as it is.
        seed: draws the noise.

    Raises `ConfigError` for a kind of task whose texts cannot be changed.
    """
    if not share:
        return task
    chats = any(example.messages for example in (*task.train[:1], *task.eval[:1]))
    if task.kind in _CANNOT and not chats:
        raise ConfigError(f"data.noise: a {task.kind} task has none, since {_CANNOT[task.kind]}: leave it out")
    train, judged, questions = (_Noisy(part, share, seed) for part in (task.train, task.eval, task.questions))
    notice = f"noise: {share:g} of the characters of the texts that are read are changed"
    return replace(task, train=train, eval=judged, questions=questions, notices=(*task.notices, notice))


class _Noisy(Sequence[Example]):
    """Examples, each with noise when it is asked for."""

    def __init__(self, examples: Sequence[Example], share: float, seed: int) -> None:
        self._examples, self._share, self._seed = examples, share, seed

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self._noisy(example) for example in self._examples[index]]
        return self._noisy(self._examples[index])

    def _noisy(self, example: Example) -> Example:
        draw = random.Random(derive_seed(self._seed, "noise", example.id))
        messages = tuple(
            turn._replace(content=self._changed(turn.content, draw)) if turn.role != "assistant" else turn
            for turn in example.messages
        )
        pair = None if example.pair is None else self._changed(example.pair, draw)
        return replace(example, text=self._changed(example.text, draw), pair=pair, messages=messages)

    def _changed(self, text: str, draw: random.Random) -> str:
        return "".join(_edit(one, draw) if draw.random() < self._share else one for one in text) or text


def _edit(character: str, draw: random.Random) -> str:
    letter = draw.choice(string.ascii_lowercase)
    return draw.choice((letter, letter + character, ""))
