"""Token ids of texts with any transformers tokenizer, and preparing a tokenizer for training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

from frostline.core.errors import UnsupportedModel

ModelKind = Literal["encoder", "decoder", "encoder-decoder"]
_NO_MORE = {"return_attention_mask": False, "return_token_type_ids": False}
"""Outputs of a tokenizer that are not read, and cost time for each text."""


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


def check_ids(tokenizer: Any, rows: Iterable[Sequence[int]], config: Any, advice: str = "") -> None:
    """Check that a model knows every token id in `rows`, and the pad token's.

    Args:
        tokenizer: the tokenizer.
        rows: the ids.
        config: of the model.
        advice: what else to do, for the message.

    Raises `UnsupportedModel` with the first token that the model does not know.
    """
    known = getattr(config.get_text_config(), "vocab_size", None)
    if known is None:
        return
    for ids in ([] if tokenizer.pad_token_id is None else [tokenizer.pad_token_id], *rows):
        if ids and max(ids) >= known:
            wrong = next(token for token in ids if token >= known)
            raise UnsupportedModel(
                f"the tokenizer has {len(tokenizer)} tokens, and the model has embeddings for {known}: token "
                f"'{tokenizer.convert_ids_to_tokens(wrong)}' has the id {wrong}: use {advice}the model's own tokenizer"
            )


def tokenizer_content(tokenizer: Any) -> str | None:
    """A hash of all that decides which tokens a text gets; None where that is not known (a tokenizer in Python)."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    state = {key: value for key, value in backend.items() if key not in ("truncation", "padding")}  # of the last call
    settings = {
        name: str(value)
        for name, value in tokenizer.init_kwargs.items()
        if name not in ("name_or_path", "tokenizer_file")
    }
    content = [
        *(type(tokenizer).__module__, type(tokenizer).__qualname__, version("transformers"), version("tokenizers")),
        *(state, settings, repr(tokenizer.special_tokens_map), str(tokenizer.chat_template)),
        *(tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_input_names),
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class Tokens(NamedTuple):
    """Token ids of a text. The first `head` of them are special tokens, such as a begin token: a cut keeps them."""

    ids: list[int]
    head: int

    def last(self, most: int) -> list[int]:
        """At most `most` ids: the special tokens at the start, and the end of the text."""
        return self.cut(self.ids, most)

    def cut(self, values: list[int], most: int) -> list[int]:
        """`values`, one for each id, for the ids that `last` gives."""
        if len(values) <= most:
            return values
        return values[: self.head] + values[len(values) - max(most - self.head, 0) :]


def prompt_tokens(tokenizer: Any, texts: Sequence[str], *, closed: bool) -> list[Tokens]:
    """The tokens of texts that a model reads, with the tokenizer's special tokens.

    A text that starts (or ends) with these special tokens already, such as a rendered chat, gets no second ones. With
    `closed` false, special tokens after the text are left out: a decoder continues where the text ends.
    """
    encoded = tokenizer(list(texts), return_special_tokens_mask=True, verbose=False, **_NO_MORE)
    begin = tokenizer.bos_token_id
    return [
        _once(begin, ids, special, closed)
        for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    ]


def _once(begin: int | None, ids: list[int], special: list[int], closed: bool) -> Tokens:
    if 1 not in special:
        return _with_begin(begin, ids)
    head = next((i for i, flag in enumerate(special) if not flag), len(ids))
    end = len(ids)
    while end > head and special[end - 1]:
        end -= 1
    before, own, after = ids[:head], ids[head:end], ids[end:] if closed else []
    if before and own[:head] == before:
        own = own[head:]
    if after and own[-len(after) :] == after:
        after = []
    return Tokens(before + own + after, head) if head else _with_begin(begin, own + after)


def with_begin(tokenizer: Any, ids: list[int]) -> Tokens:
    """Tokens of a text as they are, of which a cut keeps the begin token, where there is one."""
    return _with_begin(tokenizer.bos_token_id, ids)


def _with_begin(begin: int | None, ids: list[int]) -> Tokens:
    return Tokens(ids, int(bool(ids) and ids[0] == begin))


def continuation_tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts that a model writes, with one end token and without the tokenizer's other special tokens.

    Raises `UnsupportedModel` for a tokenizer without an end token.
    """
    if tokenizer.eos_token_id is None:
        raise UnsupportedModel("the tokenizer has no end token, so the model cannot learn where to stop: set eos_token")
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False, **_NO_MORE)
    end = tokenizer.eos_token_id
    return [ended(end, ids) for ids in encoded["input_ids"]]


def ended(end: int | None, ids: list[int]) -> list[int]:
    """`ids` with the end token after them, unless it is there already or the tokenizer has none."""
    return ids if end is None or ids[-1:] == [end] else [*ids, end]
