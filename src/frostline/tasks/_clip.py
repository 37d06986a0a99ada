"""The part of a very long text that its first, or last, tokens come from, so that the rest is never tokenized.

Tokenizers do not join what stands on both sides of a single space, or line break, between two letters or digits. So
the tokens of a text that is cut there are those of the whole text, up to the cut. Vocabularies with a token that goes
on after a word's end (`of▁the`) are the exception: texts are not cut for them.

A text without such a place (a language that has no spaces, encoded bytes) is cut where its tokens have settled: a part
and one four times as long have the same first tokens, and `SPARE` more. That is tried, not proven.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

CHARACTERS = 16
"""For each token that is kept, as many characters are tried first; in English a token has four to five."""
SPARE = 64
"""So many tokens more than are kept have to be the same in both parts."""
BOUNDARY = re.compile(r"(?<=[^\W_])[ \n](?=[^\W_])")
_ACROSS = re.compile(r"[^\W_▁ĠĊ][▁Ġ Ċ\n]")
_split_at_spaces: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()

Side = Literal["start", "end"]


def clip_texts(tokenizer: Any, texts: Sequence[str], most: int, side: Side) -> list[str]:
    """Texts with the same first (or last) `most` tokens as `texts`; a long one is cut, and still has more than that.

    A begin token at the start of a text, as rendered chats have it, stays there.

    Args:
        tokenizer: the tokenizer; special tokens are not counted.
        texts: the texts.
        most: how many tokens are read of a text at most.
        side: which end of a text is read, "start" or "end".
    """
    tried = CHARACTERS * (most + CHARACTERS)
    if all(len(text) <= tried for text in texts) or not _splits_at_spaces(tokenizer):
        return list(texts)
    return [_clip(tokenizer, text, most, side, tried) for text in texts]


def _clip(tokenizer: Any, text: str, most: int, side: Side, tried: int) -> str:
    def tokens(part: str) -> list[int]:
        ids: list[int] = tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    while tried < len(text):
        longer = min(4 * tried, len(text))
        at = tried if side == "start" else len(text) - tried
        found = BOUNDARY.search(text, at, longer if side == "start" else len(text))
        if found is not None:
            part = text[: found.start()] if side == "start" else text[found.start() :]
            # Some tokenizers treat the first word of a text in a way of their own, so a cut start is not counted.
            counted = part if side == "start" else part[again.start() if (again := BOUNDARY.search(part, 1)) else 0 :]
            enough = len(tokens(counted)) > most
        else:
            part, whole = (text[:at], text[:longer]) if side == "start" else (text[at:], text[-longer:])
            enough = _settled(tokens(part), tokens(whole), most + SPARE, side)
        if enough:
            begin = tokenizer.bos_token or ""
            return begin + part if begin and side == "end" and text.startswith(begin) else part
        tried *= 4
    return text


def _settled(part: list[int], longer: list[int], most: int, side: Side) -> bool:
    """Whether two parts of a text have the same first (or last) tokens, and the shorter one more than these."""
    if len(part) <= most:
        return False
    return part[:most] == longer[:most] if side == "start" else part[-most:] == longer[-most:]


def _splits_at_spaces(tokenizer: Any) -> bool:
    """Whether no token of the vocabulary goes on after a word's end."""
    if tokenizer not in _split_at_spaces:
        _split_at_spaces[tokenizer] = not any(_ACROSS.search(token) for token in tokenizer.get_vocab())
    return _split_at_spaces[tokenizer]
