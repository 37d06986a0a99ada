"""The model cards of what frostline writes: a run's folder, a merged model, a LoRA folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from frostline.adapters import kind_of
from frostline.checkpoints._delta import DeltaCard
from frostline.checkpoints._lora_only import check_lora_only
from frostline.core.errors import PlanError, UserError
from frostline.core.places import found_places
from frostline.model_card import ModelCard, Use, card_text, licence_of, write_readme
from frostline.plan import Plan
from frostline.records import RECORD_FILE, RunRecord, read_record
from frostline.tasks import Decoding

USUAL = {"max_length": 128, "max_new_tokens": 128}
"""Of a record whose config does not say."""


def write_run_card(folder: Path, record: RunRecord, *, base: str = "", beside: RunRecord | None = None) -> bool:
    """Write the model card of a run as its folder's README.md. Returns False where a user's own is there.

    Args:
        folder: of the run.
        record: of the run.
        base: where the base is now, if it has moved.
        beside: the record of the run that it is compared with.
    """
    return write_readme(folder, card_text(card_of_run(folder, record, base=base, beside=beside)))


def card_of_run(folder: Path, record: RunRecord, *, base: str = "", beside: RunRecord | None = None) -> ModelCard:
    """What the card of a run is written from. The arguments are those of `write_run_card`."""
    name = record.model.name
    try:
        plan: Plan | None = Plan.read(record.plan)
    except PlanError:  # a record of someone else's
        plan = None
    places = [base] if base else [*found_places(record.places.get(name, ()), folder), name]
    return ModelCard(
        form="run",
        folder=str(folder),
        base=name,
        model_class=record.model.model_class,
        plan=plan,
        record=record,
        use=_use(record),
        dtype=record.model.dtype,
        licence=licence_of(places),
        ways=() if plan is None else ways_out(plan),
        beside=beside,
    )


def card_of_merged(
    run: Path, out: Path, written: Path, delta: DeltaCard, bases: list[str], rounded: str | None
) -> ModelCard:
    """What the card of a merged model is written from.

    Args:
        run: the folder of the run or checkpoint.
        out: where the model will be.
        written: where its files are now.
        delta: of the run.
        bases: where the base may be now, best first.
        rounded: the dtype that all tensors were rounded to, if they were.
    """
    plan = Plan.read(delta.plan)
    made = _of_record(run) or ModelCard("run", "", delta.base_name, delta.model_class, licence=licence_of(bases))
    told = f"Its tensors were rounded to {rounded}; the results below were measured before that." if rounded else ""
    return replace(
        made, form="merged", folder=str(out), plan=plan, tokenizer=_has_tokenizer(written), ways=(), more=told
    )


def card_of_lora(
    run: Path | None, out: Path, written: Path, base: str, model_class: str, dtype: str, more: str
) -> ModelCard:
    """What the card of a LoRA folder is written from.

    Args:
        run: the folder of the run or checkpoint; None for a model in memory.
        out: where the LoRA will be.
        written: where its files are now.
        base: the name of the base.
        model_class: the class of transformers.
        dtype: of the base.
        more: how other programs load it.
    """
    made = None if run is None else _of_record(run)
    made = made or ModelCard("run", "", base, model_class, licence=licence_of([base]))
    given = {"form": "lora", "folder": str(out), "dtype": dtype, "more": more, "tokenizer": _has_tokenizer(written)}
    return replace(made, **given)  # type: ignore[arg-type]


def _of_record(folder: Path) -> ModelCard | None:
    """The card of the run in `folder`, without results where that is a checkpoint of it; None without a record."""
    for place in (folder, folder.parent):
        if (place / RECORD_FILE).is_file():
            try:
                made = card_of_run(place, read_record(place))
            except UserError:  # it says nothing that is needed to load the model
                return None
            return made if place is folder else replace(made, record=None)
    return None


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").is_file()


def ways_out(plan: Plan) -> tuple[str, ...]:
    """The commands that make an ordinary folder of a run: `merge`, `export`."""
    kinds = [kind_of(mode) for mode in plan.blocks]
    merges = plan.forward.why_not_plain is None and all(kind is None or kind.merges for kind in kinds)
    try:
        check_lora_only(plan, "")
        exports = any(kind is not None for kind in kinds)
    except PlanError:
        exports = False
    return (*(["merge"] if merges else []), *(["export"] if exports else []))


def _use(record: RunRecord) -> Use | None:
    config: dict[str, Any] = record.config
    try:
        decoding = Decoding.model_validate(config.get("generation") or {})
        length, new = (int(config.get(name) or usual) for name, usual in USUAL.items())
    except (ValidationError, TypeError, ValueError):  # a record of someone else's
        return None
    return Use(record.data.kind, record.data.rows, record.model.kind, length, decoding.keywords(new))
