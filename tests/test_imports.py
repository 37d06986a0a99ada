"""The rooms import downwards only, the light ones import no torch, and the exports are pinned."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import frostline

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "frostline"
HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets", "numpy"}

EXPORTS = [
    "Budget",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FrostlineError",
    "HybridConfig",
    "Plan",
    "PlanError",
    "RunConfig",
    "Trainer",
    "TrainingError",
    "UnsupportedModel",
    "UserError",
    "activation_cache",
    "apply",
    "attach",
    "begin_step",
    "export_lora",
    "load",
    "load_plan",
    "make_plan",
    "make_schedule",
    "merge",
    "save_plan",
    "train",
]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(piece) for piece in command], cwd=ROOT, capture_output=True, text=True)


def test_the_import_rule_holds() -> None:
    checked = run(Path(sys.executable).parent / "lint-imports", "--no-cache")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "0 broken" in checked.stdout


def test_every_room_has_its_floor() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    floors = {room.strip(" ()") for layer in layers for room in layer.split("|")}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= floors, "a room outside the import rule"


@pytest.mark.parametrize(
    "room",
    ["frostline", "frostline.core", "frostline.plan", "frostline.records", "frostline.report", "frostline.model_card"],
)
def test_light_rooms_import_nothing_heavy(room: str) -> None:
    """Every module of the room, in a process of its own."""
    folder = PACKAGE.joinpath(*room.split(".")[1:])
    names = [room]
    if room != "frostline":
        names += [f"{room}.{path.stem}" for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]
    script = f"import sys, {', '.join(names)}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = run(sys.executable, "-W", "error", "-c", script)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stdout + done.stderr


def test_exports_are_pinned_and_resolve() -> None:
    assert frostline.__all__ == EXPORTS
    assert set(EXPORTS) <= set(dir(frostline))
    for name in EXPORTS:
        found = getattr(frostline, name)
        assert found.__name__ == name
        assert found.__module__.startswith("frostline.")
    with pytest.raises(AttributeError, match="module 'frostline' has no attribute 'trian'"):
        frostline.trian  # noqa: B018


def test_type_checkers_see_the_same_exports() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (branch,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in branch.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(seen) == sorted(EXPORTS)
    assert seen == frostline._PLACES


def test_rooms_say_what_they_export() -> None:
    for room in PACKAGE.glob("*/__init__.py"):
        if room.parent.name in ("core", "cli"):
            continue  # imported by module
        tree = ast.parse(room.read_text())
        exported = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        assert exported, f"{room} has no __all__"
        imported = {a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
        assert set(exported[0]) == imported - {"annotations"}, room
