"""Plans as text: YAML for people (equal neighbouring blocks in one line), JSON for programs (one entry per block).

Both forms read back to the same plan, and the same plan always gives the same text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from frostline.core.documents import parse_yaml
from frostline.core.errors import PlanError
from frostline.core.files import read_text, write_text
from frostline.core.settings import Options
from frostline.plan._forward import Forward
from frostline.plan._plan import Plan, block_ranges

_RUN = ("learning_rate", "max_steps")
_DROPS = ("layerdrop", "adapterdrop")


def document(plan: Plan) -> dict[str, Any]:
    """The plan as plain data with one entry per block, each with its number and every option.

    `forward` is left out where it has only defaults, and so are its drops.
    """
    blocks = [{"index": index, **mode.model_dump(mode="json")} for index, mode in enumerate(plan.blocks)]
    unsaid: dict[str, Any] = {name: True for name in _RUN if getattr(plan, name) is None}
    unsaid["forward"] = plan.forward == Forward() or {
        name for name in _DROPS if getattr(plan.forward, name) == getattr(Forward(), name)
    }
    return {**plan.model_dump(mode="json", exclude=unsaid), "blocks": blocks}


def to_json(plan: Plan) -> str:
    """The plan as indented JSON."""
    return json.dumps(document(plan), indent=2, ensure_ascii=False) + "\n"


def to_yaml(plan: Plan) -> str:
    """The plan as YAML: options only where they differ from the default, equal neighbouring blocks in one line."""
    lines = [f"version: {plan.version}", f"strategy: {_flow(plan.strategy)}"]
    lines += [f"embeddings: {_flow(_short(plan.embeddings))}", "blocks:"]
    for index, mode in block_ranges(plan.blocks):
        lines.append("- " + _flow({"index": int(index) if index.isdigit() else index, **_changed(mode)}))
    lines += [f"final_norm: {_flow(_short(plan.final_norm))}", f"head: {_flow(_short(plan.head))}"]
    if plan.untie:
        lines.append("untie: true")
    lines += [f"{name}: {value}" for name in _RUN if (value := getattr(plan, name)) is not None]
    if plan.frozen_dropout:
        lines.append("frozen_dropout: true")
    if forward := plan.forward.model_dump(mode="json", exclude_defaults=True):
        lines.append(f"forward: {_flow(forward)}")
    return "\n".join(lines) + "\n"


def from_text(text: str, where: str = "plan") -> Plan:
    """A plan from YAML or JSON text. Raises `PlanError` that names the file and what is wrong."""
    return Plan.read(parse_yaml(text, where, PlanError), where)


def load_plan(path: str | Path) -> Plan:
    """Read a plan from a .yaml or .json file. Raises `PlanError` when the file is missing or malformed."""
    return from_text(read_text(Path(path), "plan file", PlanError), str(path))


def save_plan(plan: Plan, path: str | Path) -> None:
    """Write a plan to a file: as JSON where the path ends in .json, else as YAML."""
    path = Path(path)
    write_text(path, to_json(plan) if path.suffix == ".json" else to_yaml(plan))


def _changed(mode: Options) -> dict[str, Any]:
    kind = {word: getattr(mode, word) for word in ("mode", "kind") if hasattr(mode, word)}
    return {**kind, **mode.model_dump(mode="json", exclude_defaults=True)}


def _short(mode: Options) -> Any:
    options = _changed(mode)
    return options["mode"] if len(options) == 1 else options


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
