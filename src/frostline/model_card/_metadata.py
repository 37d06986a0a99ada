"""The metadata of a card, as the hub reads them: YAML between two lines of three dashes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from frostline.core.shown import one_line
from frostline.model_card._licence import Licence
from frostline.plan import Plan
from frostline.records import RunRecord

PIPELINES: Mapping[str, str] = {
    "classification": "text-classification",
    "multi-label": "text-classification",
    "regression": "text-classification",
    "tagging": "token-classification",
    "extraction": "question-answering",
    "multiple-choice": "multiple-choice",
    "generation": "text-generation",
    "language": "text-generation",
}
"""Kind of task -> the hub's name for it."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a model on the hub, and is no folder here."""
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def metadata(
    title: str,
    library: str,
    base: str | None,
    plan: Plan | None,
    record: RunRecord | None,
    licence: Licence | None,
) -> ModelCardData:
    """The metadata of a card.

    Args:
        title: the name of the model.
        library: what loads it.
        base: the hub id of its base; None for a folder, which the hub cannot link.
        plan: the last plan; None where it is not known.
        record: of the run; None where there is none.
        licence: of the base.
    """
    modes = set() if plan is None else {part.mode for part in plan.blocks}
    given: dict[str, Any] = {
        "library_name": library,
        "license": "unknown" if licence is None else licence.id,
        "tags": ["frostline", *(["lora"] if "lora" in modes or library == "peft" else [])],
    }
    if licence is not None and licence.name is not None:
        given["license_name"] = one_line(licence.name)
    if licence is not None and licence.link is not None:
        given["license_link"] = one_line(licence.link)
    if base is not None:
        given["base_model"] = base
        given["base_model_relation"] = "adapter" if library == "peft" else "finetune"
    if record is not None:
        given |= _of_run(title, record)
    return ModelCardData(**given)


def _of_run(title: str, record: RunRecord) -> dict[str, Any]:
    pipeline = PIPELINES.get(record.data.kind)
    given: dict[str, Any] = {}
    if pipeline is not None:
        given["pipeline_tag"] = pipeline
    data_set = _data_set(record)
    if data_set is not None:
        given["datasets"] = [data_set]
    after = {} if record.metrics is None else record.metrics.after
    results = [
        EvalResult(
            task_type=pipeline or "other",
            dataset_type=data_set or one_line(record.data.task, 100),
            dataset_name=one_line(record.data.task, 100),
            metric_type=name,
            metric_value=value,
            metric_name=name,
        )
        for name, value in after.items()
        if math.isfinite(value)  # the hub takes numbers alone
    ]
    if results:
        given |= {"metrics": [record.data.metric], "model_name": title, "eval_results": results}
    return given


def _data_set(record: RunRecord) -> str | None:
    """The hub id of the run's data set; None for files."""
    source = record.data.source
    parts = source.split("/")
    name = "/".join(parts[:2])
    if len(parts) not in (2, 3) or _HUB_ID.fullmatch(name) is None or source in record.places:
        return None
    return None if Path(source).exists() else name
