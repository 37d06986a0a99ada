"""Probes are kept by content in ROOT/signals/<digest>.json, so that nothing is measured twice."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from frostline.core.cache import default_root, keep
from frostline.core.errors import UserError
from frostline.core.files import read_json
from frostline.signals._probe import VERSION, Probe
from frostline.signals._warm_up import WarmUp

log = logging.getLogger(__name__)

# Entries of a config that do not change what the model computes.
_BESIDE = ("_name_or_path", "transformers_version", "id2label", "label2id")


def probe_identity(
    model: Any,
    hashes: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    *,
    signals: Sequence[str],
    tokens: str,
    device: str,
    warm_up: WarmUp | None = None,
) -> dict[str, Any]:
    """Everything that a probe depends on, as plain data.

    Args:
        model: the model.
        hashes: of all the model's tensors (`anatomy.tensor_hash`).
        rows: the encoded sample.
        signals: names of the signals.
        tokens: which tokens of a row are read.
        device: the device that measures.
        warm_up: the training steps before the weight change.
    """
    content = [{key: value for key, value in row.items() if key != "example_id"} for row in rows]
    config = {key: value for key, value in model.config.to_dict().items() if key not in _BESIDE}
    steps = {"warm_up": asdict(warm_up)} if warm_up is not None and "weight_change" in signals else {}
    return {
        **steps,
        "version": VERSION,
        "class": type(model).__name__,
        "config": _digest(config),
        "weights": _digest(dict(hashes)),
        "rows": _digest(content),
        "signals": sorted(signals),
        "tokens": tokens,
        "attention": str(model.config._attn_implementation),
        "device": device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def cached(
    identity: Mapping[str, Any], name: tuple[str, str], make: Callable[[], Probe], root: Path | None = None
) -> Probe:
    """The probe kept for `identity`. Where there is none, call `make` and keep its result.

    Args:
        identity: as `probe_identity` gives it.
        name: the present names of the model and the task.
        make: measures the probe.
        root: the folder of all caches; `core.cache.default_root()` by default.
    """
    path = (root or default_root()) / "signals" / f"{_digest(identity)[:32]}.json"
    if path.is_file():
        try:
            return replace(Probe.read_document(read_json(path, "probe")), model=name[0], task=name[1])
        except (UserError, OSError) as error:
            log.warning("%s: the signals are measured again", error)
    probe = make()
    keep(path, probe.document())
    return probe


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
