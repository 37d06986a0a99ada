"""Turning text into token ids with any transformers tokenizer, and preparing one for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from frostline.core.errors import UnsupportedModel

ModelKind = Literal["encoder", "decoder", "encoder-decoder"]


def model_kind(config: Any) -> ModelKind:
    """Whether a transformers config is of an encoder (it has a masked-language model), a decoder, or both."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "encoder" if masked and not getattr(config, "is_decoder", False) else "decoder"


def prepare_tokenizer(tokenizer: Any, model: Any = None) -> Any:
    """Give a tokenizer what training needs, in place, and return it.

    Without a pad token it pads with its end token: padded positions are masked and carry no label, so which
    token stands there does not matter. Padding goes to the right. A model passed along gets the same pad
    token in its config, by which the classification head of a decoder finds the last token that is none.

    Raises `UserError` for a tokenizer with neither token.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UnsupportedModel("the tokenizer has neither a pad token nor an end token: set one of them")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    if model is not None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


class Tokens(NamedTuple):
    """Token ids of a text. The first `head` of them stand there for every text (a begin token)."""

    ids: list[int]
    head: int

    def last(self, most: int) -> list[int]:
        """At most `most` ids: the head and, of the rest, the end."""
        if len(self.ids) <= most:
            return self.ids
        return self.ids[: self.head] + self.ids[len(self.ids) - max(most - self.head, 0) :]


def prompt_tokens(tokenizer: Any, texts: Sequence[str], *, closed: bool) -> list[Tokens]:
    """The tokens of texts that a model reads: with the special tokens that the tokenizer puts around a text.

    A decoder goes on where the text ends, so for it the text stays open (`closed` false): special tokens
    that the tokenizer would put after it are left out.
    """
    encoded = tokenizer(list(texts), return_special_tokens_mask=True, verbose=False)
    return [
        _trim(ids, special, closed)
        for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    ]


def _trim(ids: list[int], special: list[int], closed: bool) -> Tokens:
    end = len(ids)
    while not closed and end and special[end - 1]:
        end -= 1
    head = next((i for i, flag in enumerate(special[:end]) if not flag), end)
    return Tokens(ids[:end], head)


def continuation_tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts that a model writes: no special tokens but the end token.

    Raises `UserError` for a tokenizer without an end token.
    """
    if tokenizer.eos_token_id is None:
        raise UnsupportedModel("the tokenizer has no end token, so a model could never learn where to stop: set one")
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    return [[*ids, tokenizer.eos_token_id] for ids in encoded["input_ids"]]
