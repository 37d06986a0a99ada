"""Token ids of texts with any transformers tokenizer, and preparing a tokenizer for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from frostline.core.errors import UnsupportedModel

ModelKind = Literal["encoder", "decoder", "encoder-decoder"]


def model_kind(config: Any) -> ModelKind:
    """The kind of model of a config: an encoder (where the family has a masked-language model), a decoder, or both."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "encoder" if masked and not getattr(config, "is_decoder", False) else "decoder"


def prepare_tokenizer(tokenizer: Any, model: Any = None) -> Any:
    """Prepare a tokenizer for training, in place, and return it.

    Padding goes to the right. A tokenizer without a pad token gets its end token as pad token; that is safe, because
    padding is masked and has no labels. The pad token is also written into the config of `model`, where it is given:
    the classification head of a decoder finds the last token of a row by it.

    Raises `UnsupportedModel` for a tokenizer with neither token.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UnsupportedModel("the tokenizer has neither a pad token nor an end token: set pad_token or eos_token")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    if model is not None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


class Tokens(NamedTuple):
    """Token ids of a text. The first `head` of them are special tokens, such as a begin token."""

    ids: list[int]
    head: int

    def last(self, most: int) -> list[int]:
        """At most `most` ids: the special tokens at the start, and the end of the text."""
        if len(self.ids) <= most:
            return self.ids
        return self.ids[: self.head] + self.ids[len(self.ids) - max(most - self.head, 0) :]


def prompt_tokens(tokenizer: Any, texts: Sequence[str], *, closed: bool) -> list[Tokens]:
    """The tokens of texts that a model reads, with the tokenizer's special tokens.

    With `closed` false, special tokens after the text are left out: a decoder continues where the text ends.
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
    """The tokens of texts that a model writes, with the end token and no other special tokens.

    Raises `UnsupportedModel` for a tokenizer without an end token.
    """
    if tokenizer.eos_token_id is None:
        raise UnsupportedModel("the tokenizer has no end token, so the model cannot learn where to stop: set eos_token")
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    return [[*ids, tokenizer.eos_token_id] for ids in encoded["input_ids"]]
