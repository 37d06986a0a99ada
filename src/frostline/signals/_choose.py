"""The names of the signals, and which of them a model has on its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from frostline.anatomy import Anatomy
from frostline.bottom import holds_several
from frostline.core.errors import ConfigError, DataError, UnsupportedModel, unknown_name

Rows = Sequence[Mapping[str, Any]]

DEVIATIONS = ("vds", "shift")
"""Signals that have gains: signals called `<name>_gain` and `<name>_log_gain`."""
DEFAULT = (*DEVIATIONS, "similarity")
FROM_STATES = (*DEFAULT, "final_similarity")
FROM_GRADIENTS = ("gradient_norm", "relative_gradient_norm", "projected_residual")
FROM_ROWS = ("fisher",)
FROM_WEIGHTS = ("snr",)
FROM_STEPS = ("weight_change",)
SIGNALS = (*FROM_STATES, *FROM_GRADIENTS, *FROM_ROWS, *FROM_WEIGHTS, *FROM_STEPS)


def choose_signals(
    model: Any, anatomy: Anatomy, rows: Rows, names: Sequence[str] | None = None, *, streaming: bool = False
) -> tuple[str, ...]:
    """The signals called `names`; by default `vds` where the model has it, `shift` and `similarity`.

    Args:
        model: the model; its weights are not read.
        anatomy: of the model.
        rows: the encoded sample.
        names: names of signals; None for the default ones.
        streaming: whether the model is read block by block.

    Raises `ConfigError` for an unknown name, and for gradients with `streaming`. Raises `UnsupportedModel` for `vds`
    where the model has no semantic basis, and `DataError` for rows of several texts or without labels.
    """
    if rows and holds_several(rows[0]["input_ids"]):
        raise DataError(
            "a row holds several texts, as for multiple choice, and signals read one: use bot50, for example"
        )
    if rows and "labels" not in rows[0]:
        raise DataError(
            "a row has no labels, as in question answering, so signals do not know which token to read: use bot50, for "
            "example"
        )
    for name in names or ():
        if name not in SIGNALS:
            raise unknown_name("signal", name, SIGNALS)
    why_not = _no_vds(model, anatomy, rows)
    if names is None:
        return tuple(name for name in DEFAULT if name != "vds" or why_not is None)
    if "vds" in names and why_not is not None:
        raise UnsupportedModel(f"vds: {why_not}: use shift")
    backward = (*FROM_GRADIENTS, *FROM_ROWS, *FROM_STEPS)
    if streaming and (gradient := next((name for name in names if name in backward), None)):
        raise ConfigError(f"{gradient}: gradients need the whole model in memory: leave out this signal, or streaming")
    return tuple(dict.fromkeys(names))


def _no_vds(model: Any, anatomy: Anatomy, rows: Rows) -> str | None:
    """Why the model's head gives no semantic basis for these rows; None when it does."""
    head = model.get_output_embeddings()
    if not anatomy.has_lm_head or head is None:
        return f"{anatomy.model_class} has no language-model head"
    if anatomy.encoder_decoder:
        return "the head reads the decoder's states, not the encoder's"
    if rows and isinstance(rows[0]["labels"], int):
        return "a class label is not a token of the vocabulary"
    if head.weight.shape[-1] != anatomy.hidden_size:
        return f"the head reads {head.weight.shape[-1]} numbers, but the blocks give {anatomy.hidden_size}"
    if len(anatomy.head_linears) > 1:
        return "the head changes the blocks' states by another matrix before it scores the tokens"
    return None
