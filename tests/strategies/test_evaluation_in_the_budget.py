"""The planner keeps a budget's memory for the evaluation too."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import AutoModelForCausalLM

from architectures import ARCHITECTURES
from frostline.anatomy import Anatomy, find_anatomy, skeleton
from frostline.core.errors import PlanError
from frostline.core.sizes import parse_size
from frostline.cost import EvaluationWork, Workload, evaluation_memory, memory, rows_within
from frostline.strategies import Budget, Situation
from frostline.strategies._choice import Choice
from frostline.strategies._planner import search

ROW = EvaluationWork(1, 2048, 2048, 50_000, keeps=True)
WORK = Workload(per_device_train_batch_size=4, length=64, loss_positions=True, label_share=0.25)


def large_vocabulary() -> Anatomy:
    config = ARCHITECTURES["llama"](num_hidden_layers=6, vocab_size=50_000)
    return find_anatomy(skeleton(config, AutoModelForCausalLM))


ANATOMY = large_vocabulary()


def chosen(limit: int, evaluation: EvaluationWork | None) -> Choice:
    budget = Budget(memory=f"{limit}B")
    return search(Situation(ANATOMY, budget=budget, workload=WORK, evaluation=evaluation), [1.0] * 6)


def needs(choice: Choice, evaluation: EvaluationWork) -> int:
    return evaluation_memory(choice.plan, ANATOMY, choice.workload, evaluation)


def test_a_plan_whose_evaluation_does_not_fit_is_not_chosen() -> None:
    everything = chosen(10**12, ROW)
    assert everything.plan.boundary == 0
    limit = needs(everything, ROW) * 999 // 1000
    assert memory(everything.plan, ANATOMY, everything.workload).peak < limit
    assert chosen(limit, None).plan == everything.plan, "training alone would fit"
    within = chosen(limit, ROW)
    assert within.plan != everything.plan
    assert needs(within, ROW) <= limit
    assert within.constraints[0].used == max(within.prediction.peak_memory_bytes, needs(within, ROW))
    assert within.memory_share < everything.memory_share


def test_the_refusal_names_what_would_do() -> None:
    with pytest.raises(
        PlanError, match=r"^no plan fits memory=1000000B: use memory=\S+ .*, evaluated row by row$"
    ) as no:
        chosen(10**6, ROW)
    size = str(no.value).split("use memory=")[1].split(" ")[0]
    assert needs(chosen(parse_size(size, "memory"), ROW), ROW) <= parse_size(size, "memory")


def test_as_many_rows_as_fit() -> None:
    work = EvaluationWork(32, 64, 64, 1000, prompts=48, new_tokens=64, keeps=True)
    plan = search(Situation(ANATOMY, budget=Budget(memory=1.0), workload=WORK), [1.0] * 6).plan
    for most in (1, 2, 7, 31, 32, 47, 48):
        limit = evaluation_memory(plan, ANATOMY, WORK, work.at_most(most))
        found = rows_within(limit, plan, ANATOMY, WORK, work)
        assert found >= most and evaluation_memory(plan, ANATOMY, WORK, work.at_most(found)) == limit
    assert rows_within(0, plan, ANATOMY, WORK, work) == 1
    assert rows_within(10**15, plan, ANATOMY, WORK, work) == 48


def test_from_stored_states_no_bottom_is_in_memory() -> None:
    work = replace(ROW, rows=2)
    plan = search(Situation(ANATOMY, budget=Budget(memory=0.5), workload=WORK), [0.0] * 4 + [1.0] * 2).plan
    whole, stored = (evaluation_memory(plan, ANATOMY, WORK, replace(work, stored=stored)) for stored in (False, True))
    assert plan.boundary and stored < whole


def test_texts_of_a_row_are_counted() -> None:
    plan = search(Situation(ANATOMY, budget=Budget(memory=1.0), workload=WORK), [1.0] * 6).plan
    four, choices = replace(ROW, rows=8), replace(ROW, rows=2, texts=4)
    assert evaluation_memory(plan, ANATOMY, WORK, four) == evaluation_memory(plan, ANATOMY, WORK, choices)
