"""The options of layerdrop, adapterdrop and unipelt, and the plans that they make."""

from __future__ import annotations

from typing import Any

import pytest
from anatomies import anatomy

from frostline.anatomy import Anatomy
from frostline.core.errors import UserError
from frostline.plan import AdapterDrop, Forward, LayerDrop, Plan
from frostline.strategies import STRATEGIES, Situation, Strategy, fixed, make_selection


def plan(name: str, seed: int = 7, model: str = "llama, untied", **options: Any) -> Plan:
    return make_selection(name, Situation(anatomy(model), seed), options).schedule.first


def modes(found: Plan) -> list[str]:
    return [block.mode for block in found.blocks]


def test_layerdrop_is_full_fine_tuning_with_the_runs_seed() -> None:
    found = plan("layerdrop")
    assert found.forward == Forward(layerdrop=LayerDrop(p=0.2, seed=7))
    assert found.model_copy(update={"strategy": "all", "forward": Forward()}) == plan("all")
    other = plan("layerdrop", p=0.5, seed=7, evaluate="every_other")
    assert other.forward.layerdrop == LayerDrop(p=0.5, seed=7, evaluate="every_other")
    assert make_selection("layerdrop", Situation(anatomy("llama, untied"), 7), {"seed": 3}).schedule.first.forward == (
        Forward(layerdrop=LayerDrop(p=0.2, seed=3))
    )


@pytest.mark.parametrize(("frozen", "count"), [(0.5, 2), (1, 1), (3, 3)])
def test_layerdrop_above_a_frozen_bottom(frozen: float, count: int) -> None:
    found = plan("layerdrop", frozen=frozen)
    assert found.boundary == count
    assert found.forward.layerdrop.p == 0.2
    if frozen == 0.5:
        assert found.model_copy(update={"strategy": "bot50", "forward": Forward()}) == plan("bot50")


@pytest.mark.parametrize("name", ["layerdrop+lora", "layerdrop+unipelt", "layerdrop+mixlora"])
def test_additions_keep_the_drops(name: str) -> None:
    assert plan(name, p=0.3).forward == Forward(layerdrop=LayerDrop(p=0.3, seed=7))
    assert plan(name, frozen=2).boundary == 2


@pytest.mark.parametrize("kind", ["lora", "series-adapter", "prefix", "unipelt", "ia3"])
def test_specialised_adapterdrop_is_bot_with_adapters(kind: str) -> None:
    found = plan(f"adapterdrop+{kind}", dropped=2)
    assert found.forward == Forward()
    assert found.model_copy(update={"strategy": ""}) == plan(f"bot50+{kind}").model_copy(update={"strategy": ""})


def test_adapterdrop_has_series_adapters_unless_its_name_says_others() -> None:
    options: dict[str, Any] = {"dropped": 2, "series-adapter": {"bottleneck": 16}}
    found = plan("adapterdrop", **options)
    expected = plan("adapterdrop+series-adapter", **options)
    assert found.strategy == "adapterdrop"
    assert found.blocks == expected.blocks
    assert modes(found) == ["frozen", "frozen", "adapter", "adapter"]
    assert modes(plan("adapterdrop")) == ["frozen"] * 2 + ["adapter"] * 2  # 5/12 of 4
    with pytest.raises(UserError, match=r"bottleneck is an option of series-adapter: use series-adapter.bottleneck"):
        plan("adapterdrop", bottleneck=16)


def test_robust_adapterdrop_has_adapters_everywhere() -> None:
    found = plan("adapterdrop+lora", robust=True)
    assert modes(found) == ["lora"] * 4
    assert found.forward == Forward(adapterdrop=AdapterDrop(robust=True, seed=7))
    assert plan("adapterdrop+lora", robust=True, dropped=0.5).forward.adapterdrop.evaluate == 2


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("layerdrop", {"p": 1.0}, r"'layerdrop': p: it should be less than 1"),
        ("layerdrop", {"p": 0}, r"'layerdrop': p: it should be greater than 0"),
        ("layerdrop", {"frozen": 4}, r"frozen: 4 of 4 blocks leave none that trains: use at most 3"),
        ("layerdrop", {"evaluate": "some"}, r"evaluate: "),
        ("adapterdrop", {"dropped": 4}, r"dropped: 4 of 4 blocks leave none that trains: use at most 3"),
        ("adapterdrop", {"seed": 3}, r"seed: nothing is drawn without robust: use robust: true, or leave seed out"),
        ("adapterdrop", {"drop": 3}, r"unknown key 'drop'"),
        ("unipelt", {"kind": "series"}, r"kind: the strategy's name already sets it"),
        ("unipelt", {"gates": "mean"}, r"gates: "),
        ("unipelt", {"length": 0}, r"length: it should be greater than 0"),
    ],
)
def test_wrong_options_are_one_line(name: str, options: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        make_selection(name, Situation(anatomy("llama, untied")), options)


def test_a_strategy_may_name_the_addition_that_its_plan_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One function and one line of the table."""

    def upper(situation: Situation, options: Any) -> Any:
        found: Anatomy = situation.anatomy
        return fixed(plan("bot50").model_copy(update={"strategy": f"upper of {len(found.blocks)}"}))

    entry = Strategy("LoRA in the upper half", upper, addition="lora")
    monkeypatch.setitem(STRATEGIES._entries, "upper", entry)
    found = plan("upper", lora={"r": 3})
    assert (found.strategy, modes(found)) == ("upper", ["frozen", "frozen", "lora", "lora"])
    assert modes(plan("upper+prefix")) == ["frozen", "frozen", "prefix", "prefix"]
