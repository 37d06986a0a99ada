"""Every adapter kind says exactly what it puts into a model, and only its own file knows which kind it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

import frostline
from architectures import tiny
from frostline.adapters import KINDS, adapters_in, added_parameters, added_to, kind_of
from frostline.anatomy import find_anatomy
from frostline.plan import (
    AddingMode,
    Bottleneck,
    Frozen,
    Full,
    Lora,
    Mixture,
    Partial,
    Peft,
    Plan,
    Prefix,
    Unipelt,
)
from frostline.surgery import apply

MODES: list[AddingMode] = [
    Lora(r=3, targets="all"),
    Lora(r=3, gate=True),
    Prefix(length=3),
    Prefix(length=3, gate="none"),
    Bottleneck(kind="parallel", bottleneck=3),
    Bottleneck(kind="series", bottleneck=3, bias=True),
    Mixture(experts=3, r=2),
    Mixture(experts=3, r=2, attention=False),
    Unipelt(r=3, length=4, bottleneck=5),
    Peft(method="ia3"),
    Peft(method="adalora"),
    Peft(method="ln_tuning"),
]
OWN = (Frozen(), Full(), Partial(train="biases"))


def classes(union: Any) -> Iterator[type]:
    for member in get_args(union):
        if isinstance(member, type):
            yield member
        else:
            yield from classes(member)


def test_every_mode_that_adds_has_its_kind() -> None:
    assert set(KINDS) == set(classes(AddingMode)) == {type(mode) for mode in MODES}
    assert len(set(KINDS.values())) == len(KINDS)
    for mode in MODES:
        kind = kind_of(mode)
        assert type(kind) is KINDS[type(mode)]
        assert kind.mode is mode
    assert [kind_of(mode) for mode in (*OWN, Prefix(length=0))] == [None] * 4


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("mode", MODES, ids=repr)
def test_the_shapes_are_those_of_what_trains(name: str, mode: AddingMode) -> None:
    model = tiny(name)
    anatomy = find_anatomy(model)
    plan = Plan(blocks=(Frozen(), mode, Frozen(), Frozen()), final_norm=Frozen(), head=Frozen())
    added = added_to(mode, anatomy.blocks[1], anatomy)
    applied = apply(plan, model)
    found = [tuple(parameter.shape) for parameter in model.parameters() if parameter.requires_grad]
    assert len(found) == len(applied.adapters) > 0
    if isinstance(mode, Peft):  # counted, as one vector
        found = [(sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),)]
    assert sorted(added.shapes) == sorted(found)
    assert added_parameters(plan, anatomy) == (0, added.parameters, 0, 0)
    assert [(type(kind), block.index) for kind, block in adapters_in(plan.blocks, anatomy)] == [(KINDS[type(mode)], 1)]


@pytest.mark.parametrize("mode", OWN, ids=repr)
def test_a_mode_that_adds_nothing_has_no_sizes(mode: Any) -> None:
    anatomy = find_anatomy(tiny("gpt2"))
    added = added_to(mode, anatomy.blocks[0], anatomy)
    assert (added.shapes, added.branches, added.prefix, added.copied, added.parameters) == ((), {}, None, (), 0)


def test_nobody_asks_which_class_a_mode_is_of() -> None:
    modes = {mode.__name__ for mode in (*KINDS, *map(type, OWN))} | {"Adding", "AddingMode", "Targeted", "Mode"}
    for path in Path(frostline.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
                asked = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
                assert not asked & modes, f"{path}:{node.lineno}"
