"""A budget for a strategy that says itself what trains: the planner chooses the settings of the run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from architectures import tiny
from frostline.core.errors import ConfigError, PlanError
from frostline.cost import EvaluationWork, Workload, evaluation_memory, memory, predict_phases
from frostline.plan import phases
from frostline.strategies import Budget, Situation, make_selection
from grids import slow_but

STEPS = 60
WORK = Workload(rows=160, length=32, per_device_train_batch_size=8, num_train_epochs=3)
NAMES = ("bot50", "lora", "bot50+lora", "hlpt", "lisa", "freezeout", "gradual", "autofreeze")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny("llama", num_hidden_layers=8)


def situation(model: nn.Module, **budget: object) -> Situation:
    return Situation.of(model, budget=Budget.model_validate(budget), workload=WORK, steps=STEPS)


@pytest.mark.parametrize("name", slow_but(["bot50+lora", "lisa"], NAMES))
def test_the_settings_that_need_least_time_are_chosen(model: nn.Module, name: str) -> None:
    """Beside all settings, one by one."""
    free = situation(model)
    plans = phases(make_selection(name, free).schedule, STEPS)

    def cost(batch: int, recomputes: bool, cached: bool) -> tuple[float, float]:
        work = WORK.model_copy(
            update={
                "per_device_train_batch_size": batch,
                "gradient_accumulation_steps": 8 // batch,
                "activation_checkpointing": recomputes,
                "activation_cache": cached,
            }
        )
        found = predict_phases(plans, STEPS, free.anatomy, work)
        return found.peak_memory_bytes, found.run_flops

    frozen = any(plan.boundary for _, plan in plans)
    all_costs = [
        cost(batch, recomputes, cached)
        for batch in (1, 2, 4, 8)
        for recomputes in (False, True)
        for cached in ((False, True) if frozen else (False,))
    ]
    least, most = min(bytes for bytes, _ in all_costs), max(bytes for bytes, _ in all_costs)
    for limit in (least, (least + most) / 2, most):
        chosen = make_selection(name, situation(model, memory=f"{int(limit) + 1}B")).choice
        assert chosen is not None and chosen.expected_gain is None
        assert chosen.prediction.peak_memory_bytes <= limit
        assert chosen.prediction.run_flops == pytest.approx(min(time for bytes, time in all_costs if bytes <= limit))
        work = chosen.workload
        assert work.per_device_train_batch_size * work.gradient_accumulation_steps == 8
    with pytest.raises(PlanError, match=f"no settings of '{name}' fit memory=.*: use memory=".replace("+", r"\+")):
        make_selection(name, situation(model, memory=f"{int(least * 0.9)}B"))


def test_what_an_error_says_is_enough(model: nn.Module) -> None:
    for budget in ({"memory": 0.05}, {"time": 0.1}, {"memory": 0.05, "time": 0.1}):
        with pytest.raises(PlanError) as caught:
            make_selection("lisa", situation(model, **budget))
        said = str(caught.value).partition(": use ")[2].partition(" (")[0]
        enough = dict(part.split("=") for part in said.split(" and "))
        assert set(enough) == set(budget)
        given = {name: float(value) for name, value in enough.items()}
        assert make_selection("lisa", situation(model, **{**budget, **given})).choice is not None


def test_an_addition_counts_and_a_strategy_s_own_planner_does_not(model: nn.Module) -> None:
    """`bot50+lora` has the cost of LoRA."""
    both = [make_selection(name, situation(model, memory=0.9)).choice for name in ("bot50", "bot50+lora")]
    assert both[0] is not None and both[1] is not None
    assert both[0].prediction.trainable_parameters > both[1].prediction.trainable_parameters


def test_the_evaluation_has_to_fit_too(model: nn.Module) -> None:
    work = EvaluationWork(rows=1, length=512, positions=512, width=4096)
    small, plan = situation(model, memory="100GB"), make_selection("bot50", situation(model)).schedule.first
    needs = evaluation_memory(plan, small.anatomy, WORK, work)
    assert needs > memory(plan, small.anatomy, WORK).peak
    within = replace(situation(model, memory=f"{needs - 1}B"), evaluation=work)
    with pytest.raises(PlanError, match="no settings of 'bot50' fit"):
        make_selection("bot50", within)


def test_several_processes_have_no_predicted_cost(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match="'splitlora' trains in several processes"):
        make_selection("splitlora", situation(model, memory=0.9))
