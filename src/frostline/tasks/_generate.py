"""Generate texts for prompts, in batches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from frostline.core.errors import ConfigError, DataError, UnsupportedModel, first_line
from frostline.processes import ALONE, Processes
from frostline.tasks._clip import clip_texts
from frostline.tasks._tokenize import Tokens, check_ids, model_kind, prompt_tokens


def generate_texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Tokens],
    *,
    batch_size: int = 32,
    max_new_tokens: int = 128,
    max_length: int | None = None,
    device: torch.device | str | None = None,
    strip: bool = True,
    ends: Collection[int] = (),
    processes: Processes = ALONE,
    **decoding: Any,
) -> list[str]:
    """One text for each prompt, in order, without the prompt and without special tokens.

    A prompt that is too long is cut on the left: one with more than `max_length` tokens, or one that leaves no room
    for `max_new_tokens` in the model's positions. Batches of decoders are padded on the left.

    Args:
        model: the model.
        tokenizer: a tokenizer with a pad token (`prepare_tokenizer`).
        prompts: texts, or the tokens of a chat (`chat_prompt`), which are used as they are.
        batch_size: how many prompts a batch has.
        max_new_tokens: generate at most this many tokens.
        max_length: at most this many tokens for each prompt; None sets no limit.
        device: where batches go; None is the model's own device.
        strip: remove white space around the text. Without it, prompt + text is the whole text.
        ends: tokens that end a text, beside the end tokens of the model and the tokenizer.
        processes: which divide the prompts between them, and all get the texts.
        decoding: other keywords of transformers' `generate`. Greedy by default.

    Raises `ConfigError` when `max_new_tokens` alone is more than the model's positions.
    """
    from frostline.hooks import device_of, evaluation_mode

    decoder = model_kind(model.config) == "decoder"
    room = max_length
    positions = getattr(model.config, "max_position_embeddings", None) if decoder else None
    if positions is not None:
        if max_new_tokens >= positions:
            raise ConfigError(
                f"max_new_tokens: {max_new_tokens} leave no room for a prompt: use fewer than the model's {positions} "
                "positions"
            )
        room = min(room or positions, positions - max_new_tokens)
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    clipped = texts if room is None else clip_texts(tokenizer, texts, room, "end")
    read = iter(prompt_tokens(tokenizer, clipped, closed=not decoder) if texts else [])
    tokens = [prompt if isinstance(prompt, Tokens) else next(read) for prompt in prompts]
    ids = [entry.ids if room is None else entry.last(room) for entry in tokens]
    check_ids(tokenizer, ids, model.config)
    if not all(ids):
        raise DataError("the tokenizer makes no tokens of a prompt: use another text, or the model's own tokenizer")
    options = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens, **decoding}
    options |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": _end_tokens(model, tokenizer, ends)}
    device = device or device_of(model)
    written = [""] * len(prompts)
    # Prompts of similar length share a batch, which needs less padding.
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    together = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def write(members: Sequence[int]) -> list[str]:
        batch = tokenizer.pad(
            {"input_ids": [ids[i] for i in members]},
            padding_side="left" if decoder else "right",
            return_tensors="pt",
        ).to(device)
        try:
            output = model.generate(**batch, **options)
        except (AttributeError, LookupError, TypeError, ValueError) as error:  # what else generation_config.json says
            raise UnsupportedModel(
                f"the model cannot generate with these settings and those of its generation_config.json: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
        width = batch["input_ids"].shape[1] if decoder else 0
        return [_written(tokenizer, sequence, width) for sequence in output]

    with evaluation_mode(model), torch.inference_mode():
        for members, texts in zip(together, processes.divided(write, together), strict=True):
            for i, text in zip(members, texts, strict=True):
                written[i] = text.strip() if strip else text
    return written


def _written(tokenizer: Any, sequence: torch.Tensor, width: int) -> str:
    """The text after the prompt, which is the first `width` tokens.

    Prompt and text are decoded together, because some tokenizers drop a space at the start of what they decode.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    prompt, whole = (tokenizer.decode(ids, **options) for ids in (sequence[:width], sequence))
    if whole.startswith(prompt):
        return str(whole[len(prompt) :])
    return str(tokenizer.decode(sequence[width:], **options))


def _end_tokens(model: Any, tokenizer: Any, more: Collection[int]) -> list[int] | None:
    """The end tokens of the model and of the tokenizer, and `more`. Training puts the tokenizer's after completions."""
    own = model.generation_config.eos_token_id
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, *more} - {None}
    return sorted(ends) or None
