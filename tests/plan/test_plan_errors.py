"""Every plan that is wrong gets one clear line: where, what, and what to do."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from pydantic import BaseModel, ConfigDict, ValidationError

from frostline.core.errors import UserError
from frostline.core.settings import first_error
from frostline.plan import Frozen, Full, Lora, Partial, Plan, from_text

KEYS = (
    "blocks, embeddings, final_norm, forward, frozen_dropout, head, learning_rate, max_steps, strategy, untie, version"
)

CASES = {
    # Not a plan at all.
    "": "p.yaml: a plan has to be a mapping with the key 'blocks', not nothing",
    "full": "p.yaml: a plan has to be a mapping with the key 'blocks', not a value of type str",
    "- full": "p.yaml: a plan has to be a mapping with the key 'blocks', not a value of type list",
    "{}": "p.yaml: blocks: this key is missing",
    # Not YAML.
    "blocks: [full\nhead: full": "p.yaml:2: not YAML: expected ',' or ']', but got ':'",
    "blocks:\n\t- full": "p.yaml:2: not YAML: found character '\\t' that cannot start any token",
    "blocks: [full]\nhead: *none": "p.yaml:2: not YAML: found undefined alias 'none'",
    "blocks: \x00": "p.yaml: not YAML: unacceptable character #x0000: special characters are not allowed",
    "blocks: 2001-13-01": "p.yaml: not YAML: month must be in 1..12",
    "!!python/name:os.system x": (
        "p.yaml:1: not YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/name:os.system'"
    ),
    # Keys.
    "block: [full]": f"p.yaml: unknown key 'block': did you mean 'blocks'? known: {KEYS}",
    "blocks: [full]\n1: 2": f"p.yaml: unknown key '1': known: {KEYS}",
    'blocks: [full]\n"a\\nb": 2': rf"p.yaml: unknown key 'a\nb': known: {KEYS}",
    "blocks: [frozen, {mode: full, lr_scal: 2}]": (
        "p.yaml: blocks.1.full: unknown key 'lr_scal': did you mean 'lr_scale'? known: lr_scale, mode"
    ),
    "blocks: [full]\nhead: {mode: full, r: 8}": "p.yaml: head.full: unknown key 'r': known: lr_scale, mode",
    # Modes.
    "blocks: [frozen, frosen]": (
        "p.yaml: blocks.1: unknown mode 'frosen', it should be one of 'frozen', 'full', 'partial', 'lora', "
        "'prefix', 'adapter'"
    ),
    "blocks: [full]\nhead: lora": "p.yaml: head: unknown mode 'lora', it should be one of 'frozen', 'full'",
    "blocks: [{index: 0, lr_scale: 2}]": "p.yaml: blocks.0: the key 'mode' is missing",
    "blocks: [adapter]": "p.yaml: blocks.0.adapter: the key 'kind' is missing",
    "blocks: [{mode: adapter, kind: serial}]": (
        "p.yaml: blocks.0.adapter: unknown kind 'serial', it should be one of 'parallel', 'series', 'mixture', "
        "'peft', 'unipelt'"
    ),
    # Block numbers. A message names the block's number, whatever the place of its entry.
    "blocks: [{index: 1, mode: full}, {index: 0, mode: lora, r: 0}]": (
        "p.yaml: blocks.0.lora.r: it should be greater than 0 (given: 0)"
    ),
    "blocks: [{index: 0-3, mode: full}, {index: 3, mode: frozen}]": (
        "p.yaml: blocks: block 3 is given twice: give each block one mode"
    ),
    "blocks: [{index: 1, mode: full}, full]": "p.yaml: blocks: block 1 is given twice: give each block one mode",
    "blocks: [{index: 1-2, mode: full}, {index: 6, mode: full}]": (
        "p.yaml: blocks: block 0, 3-5 has no mode: give every block one"
    ),
    "blocks: [{index: 3-1, mode: full}]": "p.yaml: blocks: block index '3-1': use the lower number first, as in 0-7",
    **{
        f"blocks: [{{index: {index}, mode: full}}]": (
            f"p.yaml: blocks: block index {shown}: use a number from 0 to 9999 or a range such as 0-7"
        )
        for index, shown in [
            ("-1", "-1"),
            ("10000", "10000"),
            ("0-10000", "'0-10000'"),
            ("1.5", "1.5"),
            ("null", "None"),
            ("[0, 1]", "[0, 1]"),
            ("true", "True"),
            ("first", "'first'"),
            ("0-", "'0-'"),
            ("0-1-2", "'0-1-2'"),
        ]
    },
    # Values.
    "blocks: full": "p.yaml: blocks: it should be a list (given: 'full')",
    "blocks: {0: full}": "p.yaml: blocks: it should be a list",
    "blocks: []": "p.yaml: blocks: it should have at least 1 of them",
    "blocks: [full, 3]": "p.yaml: blocks.1: it should be a mapping (given: 3)",
    "blocks: [full]\nhead: [full]": "p.yaml: head: it should be a mapping",
    "blocks: [full]\nversion: 2": "p.yaml: version: it should be 1 (given: 2)",
    "blocks: [full]\nstrategy: 5": "p.yaml: strategy: it should be a valid string (given: 5)",
    "blocks: [full]\nuntie: perhaps": (
        "p.yaml: untie: it should be a valid boolean, unable to interpret input (given: 'perhaps')"
    ),
    "blocks: [{mode: full, lr_scale: fast}]": (
        "p.yaml: blocks.0.full.lr_scale: it should be a valid number, "
        "unable to parse string as a number (given: 'fast')"
    ),
    "blocks: [{mode: full, lr_scale: 0}]": "p.yaml: blocks.0.full.lr_scale: it should be greater than 0 (given: 0)",
    "blocks: [{mode: full, lr_scale: .nan}]": (
        "p.yaml: blocks.0.full.lr_scale: it should be a finite number (given: nan)"
    ),
    "blocks: [{mode: full, lr_scale: .inf}]": (
        "p.yaml: blocks.0.full.lr_scale: it should be a finite number (given: inf)"
    ),
    "blocks: [{mode: partial, train: biases, rows: 1.5}]": (
        "p.yaml: blocks.0.partial.rows: it should be less than or equal to 1 (given: 1.5)"
    ),
    "blocks: [{mode: partial, train: bias}]": (
        "p.yaml: blocks.0.partial.train: use all | attention | feed_forward | norms_and_biases | biases, "
        "or a list of module names (given: 'bias')"
    ),
    "blocks: [{mode: partial, train: [mlp.up_proj, 1]}]": (
        "p.yaml: blocks.0.partial.train: use all | attention | feed_forward | norms_and_biases | biases, "
        "or a list of module names"
    ),
    "blocks: [{mode: lora, dropout: 1}]": "p.yaml: blocks.0.lora.dropout: it should be less than 1 (given: 1)",
    "blocks: [{mode: lora, targets: q_proj}]": (
        "p.yaml: blocks.0.lora.targets: use default | attention | feed_forward | all | qkv | down | outputs, "
        "or a list of module names (given: 'q_proj')"
    ),
    "blocks: [{mode: lora, targets: [q_proj, 1]}]": (
        "p.yaml: blocks.0.lora.targets: use default | attention | feed_forward | all | qkv | down | outputs, "
        "or a list of module names"
    ),
    "blocks: [{mode: prefix, length: -1}]": (
        "p.yaml: blocks.0.prefix.length: it should be greater than or equal to 0 (given: -1)"
    ),
    "blocks: [{mode: prefix, gate: key}]": (
        "p.yaml: blocks.0.prefix.gate: it should be 'prefix', 'output' or 'none' (given: 'key')"
    ),
    "blocks: [{mode: adapter, kind: series, bottlenek: 8}]": (
        "p.yaml: blocks.0.adapter.series: unknown key 'bottlenek': did you mean 'bottleneck'? known: activation, bias, "
        "bottleneck, dropout, kind, lr_scale, mode, scale, targets"
    ),
    "blocks: [{mode: adapter, kind: mixture, experts: 4, top_k: 5}]": (
        "p.yaml: blocks.0.adapter.mixture.top_k: 5 is more than the 4 experts: use at most 4 (given: 5)"
    ),
    "blocks: [{mode: adapter, kind: peft}]": "p.yaml: blocks.0.adapter.peft.method: this key is missing",
    # What changes in the forward pass.
    "blocks: [full]\nforward: {loss_weight: [1]}": (
        "p.yaml: forward: unknown key 'loss_weight': did you mean 'loss_weights'? known: adapterdrop, layerdrop, "
        "loss_weights, residual"
    ),
    "blocks: [full]\nforward: 0.5": "p.yaml: forward: it should be a mapping (given: 0.5)",
    "blocks: [full]\nforward: {residual: {alpha: .nan}}": (
        "p.yaml: forward.residual.alpha: it should be a finite number (given: nan)"
    ),
    "blocks: [full]\nforward: {residual: {alpha: 1, span: 0}}": (
        "p.yaml: forward.residual.span: it should be greater than 0 (given: 0)"
    ),
    "blocks: [full]\nforward: {layerdrop: {p: 1}}": "p.yaml: forward.layerdrop.p: it should be less than 1 (given: 1)",
    "blocks: [full]\nforward: {adapterdrop: {evaluate: -1}}": (
        "p.yaml: forward.adapterdrop.evaluate: it should be greater than or equal to 0 (given: -1)"
    ),
    "blocks: [full, full]\nforward: {residual: {alpha: 1, span: 3}}": (
        "p.yaml: forward.residual.span: 3 of 2 blocks: use at most 2"
    ),
    "blocks: [full]\nforward: {loss_weights: 1}": "p.yaml: forward.loss_weights: it should be a list (given: 1)",
    "blocks: [full]\nforward: {loss_weights: [.inf]}": (
        "p.yaml: forward.loss_weights.0: it should be a finite number (given: inf)"
    ),
    "blocks: [full, full]\nforward: {loss_weights: [1]}": (
        "p.yaml: forward.loss_weights: 1 numbers for 2 blocks: use one for each block"
    ),
    "blocks: [frozen, full]\nforward: {loss_weights: [1, 0]}": (
        "p.yaml: forward.loss_weights: every weight from block 1 on is 0, so nothing there would learn: "
        "use a weight other than 0 for block 1"
    ),
    "blocks: [full, frozen]\nforward: {loss_weights: [0, 0]}": (
        "p.yaml: forward.loss_weights: every weight from block 0 on is 0, so nothing there would learn: "
        "use a weight other than 0 for block 1"
    ),
    # Plans that say nothing.
    "blocks: [frozen]\nhead: frozen\nfinal_norm: frozen": (
        "p.yaml: nothing trains: use a mode other than frozen for at least one block or the head"
    ),
    "blocks: [{mode: partial}]": (
        "p.yaml: blocks.0.partial: it does not say what trains: use train: attention | feed_forward | "
        "norms_and_biases | biases, or rows below 1 (mode: full trains everything)"
    ),
}


@pytest.mark.parametrize("text", CASES)
def test_one_line_with_its_place(text: str) -> None:
    with pytest.raises(UserError) as caught:
        from_text(text, "p.yaml")
    assert str(caught.value) == CASES[text]


def test_first_error_serves_other_models_too() -> None:
    class Settings(BaseModel):
        model_config = ConfigDict(extra="forbid")
        steps: int

    for document, line in (
        ({"steps": 1, "a\nb": 2}, "a b: no such key (given: 2)"),
        (
            {"steps": "many"},
            "steps: it should be a valid integer, unable to parse string as an integer (given: 'many')",
        ),
        ({}, "steps: this key is missing"),
    ):
        with pytest.raises(ValidationError) as caught:
            Settings.model_validate(document)
        assert first_error(caught.value) == line


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
words = st.sampled_from(["frozen", "full", "partial", "lora", "0-3", "all", "biases", "", "mode: full"])
values = st.recursive(
    scalars | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | words, inner, max_size=3),
    max_leaves=6,
)
entries = st.dictionaries(
    st.sampled_from(["index", "mode", "train", "rows", "r", "targets", "lr_scale"]), values | words
)
documents = st.fixed_dictionaries(
    {"blocks": st.lists(entries | values, max_size=4)},
    optional=dict.fromkeys(("embeddings", "final_norm", "forward", "head", "strategy", "untie", "version"), values),
)


@settings(deadline=None, max_examples=250)
@given(documents | values)
def test_any_document_is_a_plan_or_gets_one_line(document: object) -> None:
    try:
        plan = Plan.read(document, "p.yaml")
    except UserError as error:
        assert str(error).startswith("p.yaml: ")
        assert "\n" not in str(error)
    else:
        assert any(part.mode != "frozen" for part in (plan.embeddings, *plan.blocks, plan.final_norm, plan.head))


@settings(deadline=None, max_examples=300)
@given(st.text("{}[]:,-'\"&*!#%|> \t\nab01\x00\x85", max_size=20))
def test_any_text_is_a_plan_or_gets_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^p\.yaml(:\d+)?: [^\n]*\Z"):
        from_text(text, "p.yaml")


def test_plans_and_modes_do_not_change() -> None:
    plan = Plan(blocks=(Full(),))
    for frozen, key in ((plan, "blocks"), (Full(), "lr_scale"), (Frozen(), "mode"), (Lora(), "r")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(frozen, key, None)
    assert len({plan, Plan(blocks=(Full(),)), Plan(blocks=(Lora(),))}) == 2, "equal plans are one key"


def test_the_same_rules_hold_in_python() -> None:
    for wrong in (
        lambda: Plan(blocks=()),
        lambda: Plan(blocks=(Frozen(),), head=Frozen(), final_norm=Frozen()),
        lambda: Partial(),
        lambda: Partial(rows=1.0),
        lambda: Full(lr_scale=-1),
        lambda: Lora(r=0),
    ):
        with pytest.raises(ValidationError):
            wrong()
