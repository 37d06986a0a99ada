"""Every strategy has a card of one shape, and what the cards say is true: strips, shares, commands, code."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from anatomies import plain
from probes import MadeUp, Values, kinds, shift, vds
from transformers import AutoModelForSequenceClassification, GPT2Config, TrainingArguments

from architectures import tiny
from frostline.anatomy import Anatomy, find_anatomy, skeleton
from frostline.cost import Workload, step_flops
from frostline.plan import Plan, Schedule, from_text, strip
from frostline.strategies import STRATEGIES, Percent, Situation, Strategy, make_selection, parse_name

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "strategies"
SECTIONS = [
    "What it does",
    "Source",
    "Options",
    "Stated and inferred",
    "Boundary and saving",
    "Where it fails",
    "How to use it",
    "Measured",
]
CARDS = sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "README")
SHARED = {
    "adt-l": "adt",
    "adt-h": "adt",
    "h2lpt": "hlpt",
    "series-adapter": "parallel-adapter",
    "semantic-threshold": "semantic",
    "semantic-reversed": "semantic",
    "semantic-random": "semantic",
}
"""Strategies that are described on another's card."""

WITHOUT_STRIP = ("random", "lisa", "badam", "freezeout", "autofreeze", "gradual", "egeria", "smartfrz")
"""What trains is drawn, or changes all the time."""

# What the cards' strips and shares are drawn from: 12 blocks, the largest gain at the fifth, a change that grows.
LEVELS = (0.96, 0.95, 0.93, 0.94, 0.90, 0.70, 0.69, 0.60, 0.61, 0.59, 0.45, 0.44, 0.43)
NORMS = [0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
RATIOS = [1.0, 5.0, 2.0, 6.0, 3.0, 4.0, 9.0, 10.0, 7.0, 8.0, 11.0, 12.0]
CHANGE = {"weight_change": [float(block) for block in range(12)]}


def card(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def code(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def entries(card: str) -> list[Strategy]:
    """The strategies that a card tells of."""
    return [STRATEGIES.get(name) for name in STRATEGIES if SHARED.get(name, name) == card]


def plan(name: str, anatomy: Anatomy) -> Plan:
    """What a strategy settles on, on a model of 12 blocks that is measured as above."""
    signals: dict[str, Values] = {**vds(*LEVELS), **shift(*LEVELS[1:]), "relative_gradient_norm": NORMS, "snr": RATIOS}
    signals |= {f"snr.{kind}": RATIOS[3 * i :] + RATIOS[: 3 * i] for i, kind in enumerate(kinds(anatomy, 0))}
    schedule = make_selection(name, Situation(anatomy, measure=MadeUp(signals))).schedule
    plans = [schedule.first, *(schedule.next(step, CHANGE) for step in range(1, 6))]
    return [chosen for chosen in plans if chosen is not None][-1]


@cache
def decoder() -> Anatomy:
    """12 blocks with biases and a small head: what the cards' shares are given for."""
    config = GPT2Config(vocab_size=1000, n_embd=768, n_layer=12, n_head=12, pad_token_id=0)
    return find_anatomy(skeleton(config, AutoModelForSequenceClassification))


def test_every_strategy_has_a_card_and_a_line_in_the_index() -> None:
    assert set(CARDS) == {SHARED.get(name, name) for name in STRATEGIES}
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `(.*)`.*\[([\w-]+)\]\(\2\.md\) \|$", index, re.MULTILINE)
    assert sorted({linked for _, linked in lines}) == CARDS
    listed = [(name, linked) for names, linked in lines for name in re.findall(r"h2lpt|ia3|[a-z-]+", names)]
    assert set(listed) == {(name, SHARED.get(name, name)) for name in STRATEGIES}


@pytest.mark.parametrize("name", CARDS)
def test_cards_have_one_shape(name: str) -> None:
    text = card(name)
    assert re.match(rf"# `{name}(-lP` and `adt-h)?P?`: ", text)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert all(section.strip() for section in re.split(r"^## .*$", text, flags=re.MULTILINE))
    assert "See docs/LOG.md." in text.partition("## Measured")[2]
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", CARDS)
def test_strips_show_the_plan(name: str) -> None:
    shown = re.findall(r"^([\w+(),-]+) +([░▒▞▚▙█]+)$", card(name), re.MULTILINE)
    assert bool(shown) == (name not in WITHOUT_STRIP)
    for strategy, cells in shown:
        assert parse_name(strategy)[0] in entries(name)
        assert strip(plan(strategy, decoder())).plain.split(" ")[2] == cells


@pytest.mark.parametrize("name", CARDS)
def test_shares_are_what_the_cost_model_counts(name: str) -> None:
    """Up to what the limits leave out: attention's own products, block 0's input gradient, LoRA's A and B."""
    shares = re.findall(r"^\| `([\w+-]+)` \| (\d\.\d\d) \|$", card(name), re.MULTILINE)
    assert bool(shares) == (name not in WITHOUT_STRIP)
    anatomy, workload = decoder(), Workload(per_device_train_batch_size=4, length=16)
    whole = step_flops(plan("all", anatomy), anatomy, workload).total
    for strategy, share in shares:
        ratio = step_flops(plan(strategy, anatomy), anatomy, workload).total / whole
        assert ratio == pytest.approx(float(share), abs=0.02), strategy


@pytest.mark.parametrize("name", CARDS)
def test_commands_and_plans_are_valid(name: str) -> None:
    used = re.findall(r"--strategy (\S+)", card(name))
    assert used
    assert all(parse_name(strategy)[0] in entries(name) for strategy in used)
    for document in code(card(name), "yaml"):
        assert len(from_text(document).blocks) == 12


@pytest.mark.parametrize("name", CARDS)
def test_the_python_runs(name: str, tmp_path: Path) -> None:
    (source,) = code(card(name), "python")
    scope = {"model": tiny("gpt2", tied=True), "rows": [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}]}
    scope["args"] = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    exec(compile(source, f"{name}.md", "exec"), scope)
    plan = scope["schedule"].first if "schedule" in scope else scope["plan"]
    assert isinstance(plan, Plan)
    assert parse_name(plan.strategy)[0] in entries(name)
    assert any(parameter.requires_grad for parameter in scope["model"].parameters())


def test_the_examples_of_own_strategies_work() -> None:
    sources = code((FOLDER / "README.md").read_text(encoding="utf-8"), "python")
    scope: dict[str, object] = {}
    exec(compile("\n".join(sources), "README.md", "exec", dont_inherit=True), scope)
    middle, falling = scope["MIDDLE"], scope["FALLING"]
    assert isinstance(middle, Strategy)
    chosen = middle.choose(Situation(plain(8)), Percent(percent=50)).schedule.first
    assert [block.mode for block in chosen.blocks] == ["full"] * 2 + ["frozen"] * 4 + ["full"] * 2
    assert isinstance(falling, Strategy)
    schedule = falling.choose(Situation(plain(3)), falling.options(every=2)).schedule
    assert isinstance(schedule, Schedule)
    plans = [schedule.first, *(schedule.next(step, {}) for step in range(1, 7))]
    trained = [plan and [block.mode for block in plan.blocks].index("full") for plan in plans]
    assert trained == [2, None, 1, None, 0, None, 2]
