"""Plans as YAML and JSON: what is written reads back, and the text never changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from plans import plans

from frostline.core.errors import UserError
from frostline.plan import (
    Bottleneck,
    Forward,
    Frozen,
    Full,
    Lora,
    Mixture,
    Partial,
    Peft,
    Plan,
    Prefix,
    Residual,
    block_ranges,
    document,
    from_text,
    load_plan,
    save_plan,
    to_json,
    to_yaml,
)

EXAMPLE = Plan(
    strategy="mine",
    blocks=(
        Frozen(),
        Frozen(),
        Partial(train="attention", rows=0.5),
        Lora(targets=("q_proj", "v_proj"), alpha=16),
        Full(),
        Full(lr_scale=1e-05),
    ),
    head=Full(lr_scale=2),
    untie=True,
    frozen_dropout=True,
)
YAML = """\
version: 1
strategy: mine
embeddings: frozen
blocks:
- {index: 0-1, mode: frozen}
- {index: 2, mode: partial, train: attention, rows: 0.5}
- {index: 3, mode: lora, alpha: 16.0, targets: [q_proj, v_proj]}
- {index: 4, mode: full}
- {index: 5, mode: full, lr_scale: 1.0e-05}
final_norm: full
head: {mode: full, lr_scale: 2.0}
untie: true
frozen_dropout: true
"""
JSON = {
    "version": 1,
    "strategy": "mine",
    "embeddings": {"mode": "frozen"},
    "blocks": [
        {"index": 0, "mode": "frozen"},
        {"index": 1, "mode": "frozen"},
        {"index": 2, "mode": "partial", "train": "attention", "rows": 0.5, "rows_seed": 0, "lr_scale": 1.0},
        {
            "index": 3,
            "mode": "lora",
            "r": 8,
            "alpha": 16.0,
            "dropout": 0.1,
            "targets": ["q_proj", "v_proj"],
            "gate": False,
            "lr_scale": 1.0,
        },
        {"index": 4, "mode": "full", "lr_scale": 1.0},
        {"index": 5, "mode": "full", "lr_scale": 1e-05},
    ],
    "final_norm": {"mode": "full", "lr_scale": 1.0},
    "head": {"mode": "full", "lr_scale": 2.0},
    "untie": True,
    "frozen_dropout": True,
}


def test_the_text_is_this_one() -> None:
    assert to_yaml(EXAMPLE) == YAML
    assert json.loads(to_json(EXAMPLE)) == document(EXAMPLE) == JSON
    assert to_json(EXAMPLE) == json.dumps(JSON, indent=2) + "\n"
    assert from_text(YAML) == from_text(json.dumps(JSON)) == EXAMPLE


ADDING = Plan(
    blocks=(
        Lora(targets="down", gate=True),
        Prefix(),
        Prefix(length=5, gate="output"),
        Bottleneck(kind="parallel"),
        Mixture(experts=4),
        Peft(method="ia3", targets=("k_proj",), options={"init_ia3_weights": False}),
    )
)


def test_modes_that_add_as_text() -> None:
    text = to_yaml(ADDING)
    assert text.splitlines()[4:-2] == [
        "- {index: 0, mode: lora, targets: down, gate: true}",
        "- {index: 1, mode: prefix}",
        "- {index: 2, mode: prefix, length: 5, gate: output}",
        "- {index: 3, mode: adapter, kind: parallel}",
        "- {index: 4, mode: adapter, kind: mixture, experts: 4}",
        "- {index: 5, mode: adapter, kind: peft, method: ia3, options: {init_ia3_weights: false}, targets: [k_proj]}",
    ]
    assert from_text(text) == from_text(to_json(ADDING)) == ADDING


CHANGED = Plan(
    blocks=(Partial(train=("mlp.up_proj", "mlp.down_proj")), Full()),
    forward=Forward(loss_weights=(0.25, 1), residual=Residual(alpha=0.5)),
)


def test_modules_and_a_changed_forward_pass_as_text() -> None:
    assert to_yaml(CHANGED).splitlines()[4:] == [
        "- {index: 0, mode: partial, train: [mlp.up_proj, mlp.down_proj]}",
        "- {index: 1, mode: full}",
        "final_norm: full",
        "head: full",
        "forward: {loss_weights: [0.25, 1.0], residual: {alpha: 0.5}}",
    ]
    assert document(CHANGED)["forward"] == {"loss_weights": [0.25, 1.0], "residual": {"alpha": 0.5, "span": 1}}
    assert from_text(to_yaml(CHANGED)) == from_text(to_json(CHANGED)) == CHANGED


def test_a_forward_pass_that_is_not_changed_stays_unsaid() -> None:
    plan = Plan(blocks=(Full(),))
    for same in (plan, from_text("blocks: [full]\nforward: {residual: {alpha: 0, span: 1}, loss_weights: null}")):
        assert "forward" not in document(same)
        assert "forward" not in to_yaml(same)


@settings(deadline=None, max_examples=150)
@given(plans())
def test_yaml_and_json_read_back_and_say_the_same(plan: Plan) -> None:
    as_yaml, as_json = to_yaml(plan), to_json(plan)
    assert from_text(as_yaml) == from_text(as_json) == plan
    assert yaml.safe_load(as_yaml)["strategy"] == json.loads(as_json)["strategy"] == plan.strategy
    for again in (from_text(as_yaml), from_text(as_json)):
        assert to_yaml(again) == as_yaml
        assert to_json(again) == as_json


@pytest.mark.parametrize("mode", [Frozen(), Full(), Partial(train="biases"), Lora()])
def test_defaults_are_written_the_same_before_and_after_reading(mode: Frozen | Full | Partial | Lora) -> None:
    plan = Plan(blocks=(mode,))
    assert to_json(from_text(to_json(plan))) == to_json(plan)
    assert to_yaml(plan).count(",") == (2 if isinstance(mode, Partial) else 1), "options at their default stay unsaid"


@pytest.mark.parametrize(
    "blocks",
    [
        "[frozen, frozen, full, frozen]",
        "[{mode: frozen}, {mode: frozen}, {mode: full}, {mode: frozen}]",
        "[{index: 3, mode: frozen}, {index: 0-1, mode: frozen}, {index: 2-2, mode: full}]",
        "[{index: '0-1', mode: frozen}, {index: '2', mode: full}, {index: 3, mode: frozen}]",
        "[{index: 2, mode: full}, {index: 0, mode: frozen}, {index: 3, mode: frozen}, {index: 1, mode: frozen}]",
    ],
)
def test_blocks_in_any_order_as_words_or_ranges(blocks: str) -> None:
    assert from_text(f"blocks: {blocks}").blocks == (Frozen(), Frozen(), Full(), Frozen())


def test_what_is_left_out_has_its_default() -> None:
    plan = from_text("blocks: [full]")
    assert plan == Plan(blocks=(Full(),))
    assert (plan.strategy, plan.embeddings, plan.final_norm, plan.head, plan.untie) == (
        "custom",
        Frozen(),
        Full(),
        Full(),
        False,
    )


def test_json_as_other_programs_write_it() -> None:
    assert from_text('{\n\t"strategy": "\\ud83d\\ude00",\n\t"blocks": [{"mode": "full"}]}').strategy == "😀"


def test_block_ranges() -> None:
    blocks = (Frozen(), Frozen(), Full(), Full(lr_scale=0.5), Full(lr_scale=0.5), Frozen())
    assert [index for index, _ in block_ranges(blocks)] == ["0-1", "2", "3-4", "5"]
    assert [mode for _, mode in block_ranges(blocks)] == [Frozen(), Full(), Full(lr_scale=0.5), Frozen()]
    assert block_ranges([]) == []


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plan{suffix}"
    save_plan(EXAMPLE, path)
    assert load_plan(path) == EXAMPLE
    assert path.read_text() == (to_json(EXAMPLE) if suffix == ".json" else YAML)
    assert [child.name for child in tmp_path.iterdir()] == [path.name]


def test_a_plan_file_that_is_missing_or_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^plan file not found: .*none\.yaml$"):
        load_plan(tmp_path / "none.yaml")
    path = tmp_path / "broken.yaml"
    path.write_text("blocks:\n- {index: 0, mode: full\nhead: full\n")
    with pytest.raises(UserError, match=r"^.*broken\.yaml:3: not YAML: "):
        load_plan(path)


@settings(deadline=None, max_examples=150)
@given(plans())
def test_the_boundary_is_the_lowest_block_that_trains(plan: Plan) -> None:
    boundary = plan.boundary
    if plan.embeddings.mode != "frozen":
        assert boundary == 0
    else:
        assert 0 <= boundary <= len(plan.blocks)
        assert {block.mode for block in plan.blocks[:boundary]} <= {"frozen"}
        assert boundary == len(plan.blocks) or plan.blocks[boundary].mode != "frozen"


@pytest.mark.parametrize(
    ("blocks", "embeddings", "boundary"),
    [
        ((Frozen(), Frozen(), Full()), Frozen(), 2),
        ((Frozen(), Lora(), Full()), Frozen(), 1),
        ((Partial(train="biases"), Frozen(), Full()), Frozen(), 0),
        ((Frozen(), Frozen(), Frozen()), Frozen(), 3),
        ((Frozen(), Frozen(), Full()), Full(), 0),
    ],
)
def test_boundaries(
    blocks: tuple[Frozen | Full | Lora | Partial, ...], embeddings: Frozen | Full, boundary: int
) -> None:
    assert Plan(blocks=blocks, embeddings=embeddings).boundary == boundary
