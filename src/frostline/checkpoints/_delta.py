"""The delta: a checkpoint that holds only what training changed, and the fingerprint of its base.

The folder of a delta holds `delta.safetensors` (the trained tensors by name), `delta.json` (the plan, the model class
and a hash of every tensor of the base) and the `config.json` of the base. There is no pickle in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from transformers.trainer_utils import get_last_checkpoint

from frostline.anatomy import find_anatomy, fingerprint, tensor_hashes, text_model
from frostline.checkpoints._resize import resized_tensors, rows_of_the_base
from frostline.checkpoints._tensors import read_tensors
from frostline.core.errors import CheckpointError, PlanError
from frostline.core.files import atomic_file, read_json, write_json, write_text
from frostline.core.places import Places, places_of
from frostline.core.settings import first_error
from frostline.core.shown import one_line
from frostline.hooks import sharded_like, share_again, whole
from frostline.plan import Plan, document
from frostline.surgery import Applied, applied_to, apply, change, remember

TENSORS_FILE = "delta.safetensors"
CARD_FILE = "delta.json"


class DeltaCard(BaseModel):
    """The content of `delta.json`.

    Attributes:
        version: of the format.
        base_name: where the base came from: a hub id or a folder.
        base_places: where that folder was: absolute, and relative to the delta's folder.
        base_dtype: of the base.
        base_rows: how many embeddings the base has, where the trained model has more (`resize_embeddings`).
        base_fingerprint: a hash of the whole base.
        base_tensors: tensor name -> hash, of the base.
        model_class: name of the transformers class.
        seed: of the adapters' initial weights.
        plan: the plan at the end.
        first_plan: the plan that training began with, if it has changed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    base_name: str
    base_places: Places = ()
    base_dtype: str
    base_rows: int | None = None
    base_fingerprint: str
    base_tensors: dict[str, str]
    model_class: str
    seed: int
    plan: dict[str, Any]
    first_plan: dict[str, Any] | None = None


README_FILE = "README.md"
_README = """\
This folder holds a *delta*: only the tensors that training changed, and the fingerprint of the model that they belong
to ({base}). It is not a whole checkpoint, so `from_pretrained` of transformers cannot open it.

- In Python: `frostline.load("{folder}")` gives the trained model.
- As an ordinary checkpoint: `frostline merge {folder} --out merged`, or `trainer.save_model("merged", whole=True)`.
"""


def trained_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All tensors that have trained so far, by name, on the CPU.

    Where processes share them (FSDP2), all processes have to call this.

    Raises `PlanError` when the model has no plan.
    """
    return {name: whole(p.detach()).cpu().contiguous() for name, p in _now(model, _applied(model)).items()}


def save_delta(
    model: Any, folder: Path, *, moves_to: Path | None = None, tensors: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Write the delta of `model`.

    Args:
        model: a model with a plan.
        folder: where the delta is written.
        moves_to: where that folder will be moved, if it is: the base is looked for as seen from there.
        tensors: the trained tensors, where they have been gathered; else `trained_tensors` gives them.

    Raises `PlanError` when the model has no plan.
    """
    applied = _applied(model)
    folder.mkdir(parents=True, exist_ok=True)
    base_name = str(getattr(model.config, "_name_or_path", "") or "")
    card = DeltaCard(
        base_name=base_name,
        base_places=places_of(base_name, moves_to or folder),
        base_dtype=applied.base_dtype,
        base_rows=rows_of_the_base(model),
        base_fingerprint=fingerprint(applied.base),
        base_tensors=dict(applied.base),
        model_class=applied.anatomy.model_class,
        seed=applied.seed,
        plan=document(applied.plan),
        first_plan=document(applied.first) if _has_changed(applied) else None,
    )
    with atomic_file(folder / TENSORS_FILE) as path:
        save_file(dict(tensors or trained_tensors(model)), path, metadata={"format": "pt"})
    applied.config.save_pretrained(folder)
    if not (folder / README_FILE).exists():  # a user's own stays
        write_text(
            folder / README_FILE,
            _README.format(base=one_line(card.base_name or "the base model"), folder=one_line(folder.name)),
        )
    write_json(folder / CARD_FILE, card.model_dump(mode="json"))


def read_card(folder: Path) -> DeltaCard:
    """Read `delta.json` in `folder`. Raises `CheckpointError` when it is missing or is not valid."""
    path = folder / CARD_FILE
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder: use the folder of a run or a checkpoint")
    if not path.is_file():
        last = get_last_checkpoint(str(folder))
        hint = f"use the run's last checkpoint, {last}" if last else "use the folder of a run or a checkpoint"
        raise CheckpointError(f"{folder} holds no delta ({CARD_FILE} is missing): {hint}")
    try:
        return DeltaCard.model_validate(read_json(path, "delta card"))
    except ValidationError as error:
        raise CheckpointError(f"{path}: not a delta card of version 1: {first_error(error)}") from None


def load_delta(model: Any, folder: Path) -> Applied:
    """Turn a base into the trained model, in place: apply the plan of the delta and load its tensors.

    If the model already has this plan, or the plan that training began with, only the tensors are loaded. If the model
    lies partly on the meta device, only the part in memory is compared and changed.

    Raises `CheckpointError` when `model` is not the base of the delta, or the file is damaged.
    """
    card = read_card(folder)
    applied = applied_to(model)
    tensors = read_tensors(folder / TENSORS_FILE, "delta file")
    plan = Plan.read(card.plan, str(folder / CARD_FILE))
    anatomy = applied.anatomy if applied else find_anatomy(model)
    # New rows of embeddings are drawn at random too, and the delta holds the whole tensor.
    drawn = resized_tensors(model) if card.base_rows is not None else set[str]()
    replaced = ({tensor.name for tensor in anatomy.head} | drawn) & set(tensors)
    if applied:
        _check_base(applied.base, card.base_tensors, replaced, card, folder)
    else:
        absent = {name for name, parameter in model.named_parameters() if parameter.is_meta}
        own = {name: value for name, value in card.base_tensors.items() if name not in absent}
        _check_base(tensor_hashes(model), own, replaced, card, folder)
    first = plan if card.first_plan is None else Plan.read(card.first_plan, str(folder / CARD_FILE))
    if applied is None:
        applied = apply(first, model, seed=card.seed)
    elif applied.first != first:
        raise CheckpointError(
            f"{folder} was trained under the plan '{first.strategy}', but the model has the plan "
            f"'{applied.first.strategy}': use the plan that it was trained under, or a model without a plan"
        )
    change(plan, model)
    put_tensors(model, tensors, str(folder), more=card.first_plan is not None)
    return _applied(model)


def put_tensors(model: torch.nn.Module, tensors: dict[str, torch.Tensor], where: str, *, more: bool) -> None:
    """Copy trained tensors into the model.

    Args:
        model: a model with a plan.
        tensors: by name.
        where: the place that error messages name.
        more: whether `tensors` may hold more than the model's plan trains, because earlier plans trained more.

    Raises `CheckpointError` when the names or shapes are not those of the model.
    """
    applied = _applied(model)
    if more:
        applied = remember(set(tensors) & {name for name, _ in model.named_parameters()}, model)
    later = {name: applied.originals[name] for name in set(applied.originals) - set(tensors)}
    needed = set(applied.lr_scales) | (set(applied.changed) - set(later))
    if odd := sorted(set(tensors) ^ needed):
        raise CheckpointError(
            f"{where} does not hold the tensors that its plan trains (first difference: {odd[0]}): it is damaged or "
            "belongs to another plan"
        )
    now = _now(model, applied)
    with torch.no_grad():
        for name, tensor in {**later, **tensors}.items():
            parameter = now[name]
            if parameter.shape != tensor.shape:
                raise CheckpointError(
                    f"{where}: {name} has shape {tuple(tensor.shape)}, but {tuple(parameter.shape)} in the model"
                )
            parameter.copy_(sharded_like(tensor, parameter))


def _check_base(
    hashes: Mapping[str, str], own: Mapping[str, str], replaced: set[str], card: DeltaCard, folder: Path
) -> None:
    """Check that a model's `hashes` are those of the delta's `own` base, except in a `replaced` head."""
    if dict(hashes) == dict(own):
        return
    if set(hashes) != set(own):
        odd = sorted(set(hashes) ^ set(own))
        raise CheckpointError(
            f"the delta in {folder} belongs to another base ({card.base_name or 'made in memory'}): the names of the "
            f"tensors differ, first {odd[0]}: use the model that the run was trained on"
        )
    differing = {name for name, value in hashes.items() if value != own[name]}
    # A task head that the checkpoint lacks gets new random values at every load, and the delta replaces it.
    differing -= replaced
    if differing:
        raise CheckpointError(
            f"the delta in {folder} belongs to another base ({card.base_name or 'made in memory'}, "
            f"{card.base_dtype}): {len(differing)} of {len(hashes)} tensors differ, first {min(differing)}: use the "
            "model that the run was trained on"
        )


def _now(model: torch.nn.Module, applied: Applied) -> dict[str, torch.nn.Parameter]:
    """What has trained so far, as the model has it now: FSDP2 puts other parameters in the place of `changed`."""
    share_again(model)  # what is written to gathered parameters would be lost
    names, text = applied.changed, text_model(model)
    now = {name: parameter for name, parameter in text.named_parameters(remove_duplicate=False) if name in names}
    return {name: now[name] for name in names}


def _has_changed(applied: Applied) -> bool:
    return applied.first != applied.plan or set(applied.changed) != set(applied.lr_scales)


def _applied(model: torch.nn.Module) -> Applied:
    applied = applied_to(model)
    if applied is None:
        raise PlanError("the model has no plan: use frostline.apply(plan, model) first")
    return applied
