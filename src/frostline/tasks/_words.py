"""Tokens of words, for tags, and of a question with the windows of its context, for answers: which text a token covers.

T tokens of a row
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from frostline.core.errors import ConfigError, UnsupportedModel
from frostline.tasks._clip import clip_texts

Place = tuple[int, int]
"""From which character of a text to which (not with it)."""


class WordTokens(NamedTuple):
    """The tokens of words.

    Attributes:
        inputs: the model's inputs, T numbers each.
        first: for each word the place of its first token; None where it has no token, or was cut.
        cut: whether words were cut.
    """

    inputs: dict[str, list[int]]
    first: list[int | None]
    cut: bool


def word_tokens(tokenizer: Any, words: Sequence[str], max_length: int) -> WordTokens:
    """The tokens of words with a space between them, cut after the last word that fits in `max_length` tokens.

    Raises `UnsupportedModel` for a tokenizer that does not tell which characters a token covers.
    """
    _check_places(tokenizer, "words")
    starts = [0, *accumulate(len(word) + 1 for word in words)][: len(words)]
    (text,) = clip_texts(tokenizer, [" ".join(words)], max_length, "start")
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    covers = _covers(text, encoded)
    if cut := len(covers) > max_length:
        special = sum(encoded["special_tokens_mask"])
        held = [place for place in covers if place is not None]
        too_far = bisect_right(starts, held[max(max_length - special, 0)]) - 1
        if too_far:
            text = text[: starts[too_far] - 1]
        encoded = tokenizer(
            text,
            truncation=True,  # of a first word that is too long alone
            max_length=max_length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        covers = _covers(text, encoded)
    first: list[int | None] = [None] * len(words)
    for place, character in enumerate(covers):
        if character is not None and first[word := bisect_right(starts, character) - 1] is None:
            first[word] = place
    return WordTokens(_inputs(encoded, None), first, cut)


def _covers(text: str, encoded: Any) -> list[int | None]:
    """For each token the first character that it covers and that is no space; None for special tokens."""
    found: list[int | None] = []
    for (start, end), special in zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True):
        spaces = len(text[start:end]) - len(text[start:end].lstrip())
        found.append(None if special else start + (spaces if spaces < end - start else 0))
    return found


class Window(NamedTuple):
    """A question with a part of its context.

    Attributes:
        inputs: the model's inputs, T numbers each.
        places: for each token the characters of the context that it covers; None for all other tokens.
        none: the place of the token that stands for "no answer": the class token, or else the first.
    """

    inputs: dict[str, list[int]]
    places: list[Place | None]
    none: int

    def find(self, answer: Place) -> Place:
        """The first and the last token of an answer; that of "no answer" where the window does not have all of it."""
        own = [(place, index) for index, place in enumerate(self.places) if place is not None and place[1] > place[0]]
        if not own or own[0][0][0] > answer[0] or own[-1][0][1] < answer[1]:
            return self.none, self.none
        return (
            max(index for (start, _), index in own if start <= answer[0]),
            min(index for (_, end), index in own if end >= answer[1]),
        )


def windows(tokenizer: Any, question: str, context: str, max_length: int) -> tuple[list[Window], bool]:
    """The windows of a context, each behind the question, and whether the question was cut.

    A window shares a third of `max_length` tokens, or half of its own, with the next one. A question with more than
    half of `max_length` tokens is cut at its end.

    Raises `UnsupportedModel` for a tokenizer that does not tell which characters a token covers, and `ConfigError` for
    a `max_length` that leaves no room for the context.
    """
    _check_places(tokenizer, "answers")
    places = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    most = max_length // 2
    if cut := len(places) > most:
        question = question[: places[most][0]]
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True) - min(len(places), most)
    if room < 1:
        raise ConfigError(f"max_length: {max_length} tokens leave no room for a context: use a larger max_length")
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=max_length,
        stride=min(max_length // 3, room // 2),
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found = []
    for index, offsets in enumerate(encoded["offset_mapping"]):
        inputs, sides = _inputs(encoded, index), encoded.sequence_ids(index)
        own = [tuple(place) if side == 1 else None for place, side in zip(offsets, sides, strict=True)]
        ids = inputs["input_ids"]
        none = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
        found.append(Window(inputs, own, none))
    return found, cut


def _inputs(encoded: Any, index: int | None) -> dict[str, list[int]]:
    """The model's inputs of one row. The attention mask is the collator's."""
    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
    return {name: encoded[name] if index is None else encoded[name][index] for name in names}


def _check_places(tokenizer: Any, what: str) -> None:
    if not tokenizer.is_fast:
        raise UnsupportedModel(
            f"{type(tokenizer).__name__} does not tell which characters a token covers, which {what} need: use a model "
            "with a tokenizer.json"
        )
