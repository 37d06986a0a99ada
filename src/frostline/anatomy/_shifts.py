"""Whether a head's own loss shifts the labels of tokens by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from frostline.anatomy._stacks import Stack

_NEXT = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
# XLNet predicts the tokens that it is asked for: its labels are at their own positions.
_OWN = frozenset((*MODEL_FOR_MASKED_LM_MAPPING_NAMES.values(), "XLNetLMHeadModel"))


def shifts_labels(model: Any, stacks: Sequence[Stack]) -> bool:
    """Whether the loss at a position is that of the next one's label.

    So it is in decoders, and in encoders' classes for causal language models. Not so in heads that label the tokens
    that they read (tags, masked language models). An encoder-decoder shifts its decoder's inputs, not the labels. A
    class of the user's own counts as the one that it is made from.
    """
    names = {kind.__name__ for kind in type(model).__mro__}
    if len(stacks) == 2 or names & _OWN or any("ForTokenClassification" in name for name in names):
        return False
    return stacks[0].kind == "decoder" or bool(names & _NEXT)
