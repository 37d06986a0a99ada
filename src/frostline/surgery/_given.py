"""A model that is trained as it was given: what requires gradients trains, by whatever it was chosen."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn

from frostline.anatomy import Tensor, find_anatomy, text_model
from frostline.core.errors import ConfigError
from frostline.plan import Frozen, Full, PartMode, Plan
from frostline.surgery._apply import Applied, applied_to, note

AS_GIVEN = "as given"
"""The name of the plan of such a model. It tells blocks that train from those that are frozen, and no more."""


def partly_frozen(model: nn.Module) -> bool:
    """Whether some parameters require gradients and others do not, as after `get_peft_model`."""
    return len({parameter.requires_grad for parameter in model.parameters()}) == 2


def as_given(model: Any) -> Applied:
    """Describe how `model` trains now, so that what is frozen can be saved. The model itself does not change.

    Frozen parts keep their dtype and dropout. A part counts as `full` where any of its tensors requires a gradient.

    Args:
        model: a model of which some parameters are frozen: by `requires_grad`, or by PEFT.

    Raises `ConfigError` when all of its parameters train, or none, `UnsupportedModel` for a model without blocks.
    """
    if (already := applied_to(model)) is not None:
        return already
    if not partly_frozen(model):
        raise ConfigError(
            "no plan is given, and the model's parameters all train or are all frozen: use plan=... or schedule=..., "
            "for example frostline.make_plan(model, 'bot50')"
        )
    text: Any = text_model(model)
    anatomy = find_anatomy(text, adapted=True)
    trained = {name: parameter for name, parameter in text.named_parameters() if parameter.requires_grad}

    def mode(tensors: Iterable[Tensor]) -> PartMode:
        return Full() if any(tensor.name in trained for tensor in tensors) else Frozen()

    blocks = tuple(mode(block.tensors) for block in anatomy.blocks)
    parts = (mode(anatomy.embeddings), *blocks, mode(anatomy.final_norm))
    nothing = all(part.mode == "frozen" for part in parts)  # then what trains is outside the text model
    plan = Plan(
        strategy=AS_GIVEN,
        embeddings=parts[0],
        blocks=blocks,
        final_norm=parts[-1],
        head=Full() if nothing else mode(anatomy.head),
        frozen_dropout=True,
    )
    applied = Applied(
        plan=plan,
        first=plan,
        seed=0,
        anatomy=anatomy,
        base={},
        base_dtype=str(text.dtype).removeprefix("torch."),
        dtypes={},
        config=copy.deepcopy(text.config),
        lr_scales=dict.fromkeys(trained, 1.0),
        changed=trained,
        originals={},
        notices=(),
        adapters=frozenset(),
        peft_models=(),
        hooks=(),
    )
    note(applied, text)
    return applied
