"""Names of strategies: what may follow a name, wrong names, plan files, and strategies of other packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from anatomies import plain

from frostline.core.errors import UserError
from frostline.plan import Frozen, Full, Plan, save_plan
from frostline.strategies import ADDITIONS, STRATEGIES, Situation, known_names, make_selection, parse_name
from packages import install

SITUATION = Situation(plain(4))
KNOWN = ", ".join(known_names())
ADDED = ", ".join(sorted(ADDITIONS))

THIRD_PARTY = """
from frostline.strategies import Percent, Strategy, fixed, freeze_blocks

def choose(situation, options):
    return fixed(freeze_blocks(situation, {1, 2}, f"middle{options.percent}"))

MIDDLE = Strategy("the middle frozen", choose, Percent, (20, 40))
NOT_ONE = choose
"""
NOTHING_TO_ADD_TO = "trains no block that lora could be added to: use lora, or a strategy that trains blocks"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget afterwards what a test loads."""
    monkeypatch.setattr(STRATEGIES, "_entries", dict(STRATEGIES._entries))
    monkeypatch.delitem(sys.modules, "middling", raising=False)


def refusal(name: str) -> str:
    with pytest.raises(UserError) as caught:
        make_selection(name, SITUATION)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "stem", "numbers"),
    [
        ("all", "all", {}),
        ("lora", "lora", {}),
        ("bot1", "bot", {"percent": 1}),
        ("bot50", "bot", {"percent": 50}),
        ("top99", "top", {"percent": 99}),
        ("int33", "int", {"percent": 33}),
        ("random7", "random", {"percent": 7}),
        ("adt-l25", "adt-l", {"percent": 25}),
        ("adt-h1", "adt-h", {"percent": 1}),
        ("semantic", "semantic", {}),
        ("semantic-threshold", "semantic-threshold", {}),
        ("bot50+lora", "bot", {"percent": 50}),
        ("semantic+lora", "semantic", {}),
        ("bot50+parallel-adapter", "bot", {"percent": 50}),
        ("hlpt", "hlpt", {}),
        ("hlpt(24,8)", "hlpt", {"low": 24, "high": 8}),
        ("h2lpt(6, 2)", "h2lpt", {"low": 6, "high": 2}),
    ],
)
def test_names_and_their_numbers(name: str, stem: str, numbers: dict[str, int]) -> None:
    assert parse_name(name) == (STRATEGIES.get(stem), numbers)


def test_known_names_can_be_typed() -> None:
    assert {"all", "bot50", "int50", "adt-l50", "semantic", "semantic-random", "surgical"} < set(known_names())
    for name in known_names():
        parse_name(name)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("bott50", f"unknown strategy 'bott50': did you mean 'bot50'? known: {KNOWN}"),
        ("lorra", f"unknown strategy 'lorra': did you mean 'lora'? known: {KNOWN}"),
        ("LoRA", f"unknown strategy 'LoRA': did you mean 'lora'? known: {KNOWN}"),
        ("xyz", f"unknown strategy 'xyz': known: {KNOWN}"),
        ("", f"unknown strategy '': known: {KNOWN}"),
        ("bot\n50", rf"unknown strategy 'bot\n50': did you mean 'bot50'? known: {KNOWN}"),
        ("bot-50", f"unknown strategy 'bot-50': did you mean 'bot50'? known: {KNOWN}"),
        ("bot5.5", f"unknown strategy 'bot5.5': did you mean 'bot50'? known: {KNOWN}"),
        ("bot", "strategy 'bot': 'bot' needs a percentage after it: 1 to 99"),
        ("bot0", "strategy 'bot0': 'bot' needs a percentage after it: 1 to 99"),
        ("top100", "strategy 'top100': 'top' needs a percentage after it: 1 to 99"),
        ("random", "strategy 'random': 'random' needs a percentage after it: 1 to 99"),
        ("int40", "strategy 'int40': 'int' needs a percentage after it: 25, 33, 50"),
        ("int", "strategy 'int': 'int' needs a percentage after it: 25, 33, 50"),
        ("lora8", "strategy 'lora8': use 'lora', which has no number after it"),
        ("all100", "strategy 'all100': use 'all', which has no number after it"),
        ("adt50", f"unknown strategy 'adt50': did you mean 'adt-l50'? known: {KNOWN}"),
        ("adt-l", "strategy 'adt-l': 'adt-l' needs a percentage after it: 1 to 99"),
        ("semantics", f"unknown strategy 'semantics': did you mean 'semantic'? known: {KNOWN}"),
        ("semantic50", "strategy 'semantic50': use 'semantic', which has no number after it"),
        ("+lora", f"unknown strategy '': known: {KNOWN}"),
        ("head+lora", f"strategy 'head+lora': 'head' {NOTHING_TO_ADD_TO}"),
        ("lora+lora", f"strategy 'lora+lora': 'lora' {NOTHING_TO_ADD_TO}"),
        ("bot50+prefixes", f"unknown addition 'prefixes': did you mean 'prefix'? known: {ADDED}"),
        ("hlpt(24)", "strategy 'hlpt(24)': use hlpt(low,high)"),
        ("hlpt(24", "strategy 'hlpt(24': a bracket is missing: in a YAML list and in a shell, put the name in quotes"),
        ("hlpt24", "strategy 'hlpt24': use 'hlpt', which has no number after it"),
        ("hlptt(2,2)", f"unknown strategy 'hlptt': did you mean 'hlpt'? known: {KNOWN}"),
        ("bot(2)", "strategy 'bot(2)': use 'bot' without numbers in brackets"),
    ],
)
def test_wrong_names(name: str, line: str) -> None:
    assert refusal(name) == line


def test_a_number_alone_is_no_name() -> None:
    assert refusal("50").startswith("unknown strategy '50': ")


@pytest.mark.parametrize("file", ["mine.yaml", "mine.yml", "mine.json"])
def test_a_plan_file_is_a_strategy(tmp_path: Path, file: str) -> None:
    plan = Plan(strategy="mine", blocks=(Frozen(), Full(), Frozen(), Full(lr_scale=0.5)))
    save_plan(plan, tmp_path / file)
    assert make_selection(str(tmp_path / file), SITUATION).schedule.first == plan


def test_a_plan_file_that_is_missing_or_wrong(tmp_path: Path) -> None:
    assert refusal(str(tmp_path / "none.yaml")) == f"plan file not found: {tmp_path / 'none.yaml'}"
    path = tmp_path / "wrong.yaml"
    path.write_text("blocks: [frosen]")
    assert refusal(str(path)).startswith(f"{path}: blocks.0: unknown mode 'frosen'")


@pytest.mark.usefixtures("registry")
def test_a_third_party_registers_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "middling", "frostline.strategies", {"middle": "middling:MIDDLE"}, THIRD_PARTY)
    monkeypatch.syspath_prepend(tmp_path)
    plan = make_selection("middle20", SITUATION).schedule.first
    assert plan == Plan(strategy="middle20", blocks=(Full(), Frozen(), Frozen(), Full()))
    assert "middle20" in known_names()
    known = ", ".join(sorted(known_names()))
    assert refusal("midle20") == f"unknown strategy 'midle20': did you mean 'middle20'? known: {known}"
    assert refusal("middle30") == "strategy 'middle30': 'middle' needs a percentage after it: 20, 40"


@pytest.mark.usefixtures("registry")
def test_a_package_with_a_broken_strategy_fails_only_when_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {"gone": "middling:GONE", "function": "middling:NOT_ONE"}
    install(tmp_path, "middling", "frostline.strategies", entries, THIRD_PARTY)
    monkeypatch.syspath_prepend(tmp_path)
    assert refusal("gone").startswith("strategy 'gone' of package 'middling' cannot be loaded (middling:GONE): ")
    assert refusal("function") == (
        "strategy 'function' of package 'middling': middling:NOT_ONE is not a Strategy but function"
    )
    assert "did you mean 'bot50'" in refusal("bott50")
    assert make_selection("bot50", SITUATION).schedule.first.strategy == "bot50"
