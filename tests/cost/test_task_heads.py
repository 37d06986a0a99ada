"""Predicted operations and memory of other heads than those of language models and classifiers."""

from __future__ import annotations

from typing import Any

import pytest
from cost_cases import measured, named_plans, training
from torch.utils.flop_counter import FlopCounterMode

from frostline.anatomy import find_anatomy
from frostline.cost import Workload, cache_estimate, memory, predict, step_flops
from frostline.strategies import Budget, Situation
from frostline.strategies._planner import search
from frostline.surgery import apply
from heads import HEADS, collate, model_of, rows_of

BATCH, LENGTH = 4, 8
HEAD_NAMES = [name for name in HEADS if name not in ("masked", "causal", "seq2seq")]


def whole_rows(head: str, batch: int = BATCH, length: int = LENGTH) -> Any:
    """A batch of rows of one length, made of the first row of 8 tokens or more."""
    row = next(row for row in rows_of(head, 16) if len(row["attention_mask"]) == length or head == "choices")
    return collate([row] * batch)


def work(head: str, **settings: Any) -> Workload:
    texts = 2 if head == "choices" else 1
    length = whole_rows(head)["input_ids"].shape[-1]
    return Workload(per_device_train_batch_size=BATCH, length=length, texts=texts, attention="eager", **settings)


@pytest.mark.parametrize("name", ["all", "bot50", "lora"])
@pytest.mark.parametrize("head", HEAD_NAMES)
def test_operations_are_those_that_torch_counts(head: str, name: str) -> None:
    model = model_of("bert", head)
    model.set_attn_implementation("eager")
    anatomy = find_anatomy(model)
    plan = named_plans(anatomy)[name]
    predicted = step_flops(plan, anatomy, work(head)).total
    apply(plan, model)
    with FlopCounterMode(display=False) as counter:
        model(**whole_rows(head)).loss.backward()
    assert predicted == pytest.approx(counter.get_total_flops(), rel=0.002)


@pytest.mark.parametrize("head", ["token classes", "answers", "choices"])
def test_peak_memory_is_that_of_a_step(head: str) -> None:
    model = model_of("bert", head)
    model.set_attn_implementation("eager")
    anatomy = find_anatomy(model)
    plan = named_plans(anatomy)["bot50"]
    apply(plan, model)
    step, optimizer = training(model, lambda: whole_rows(head))
    predicted = memory(plan, anatomy, work(head, optim="adamw_torch_fused")).peak
    assert predicted == pytest.approx(measured(model, step, optimizer), rel=0.1)


def test_a_row_of_texts_costs_what_as_many_rows_cost() -> None:
    anatomy = find_anatomy(model_of("bert", "choices"))
    plan = named_plans(anatomy)["bot50"]
    texts = predict(plan, anatomy, Workload(per_device_train_batch_size=4, rows=40, texts=3, loss_positions=True))
    rows = predict(plan, anatomy, Workload(per_device_train_batch_size=12, rows=120, loss_positions=True))
    assert texts.memory == rows.memory
    assert texts.run_flops == pytest.approx(rows.run_flops)


@pytest.mark.parametrize("head", ["answers", "choices"])
def test_a_loss_that_does_not_tell_where_it_reads_saves_nothing_at_positions(head: str) -> None:
    anatomy = find_anatomy(model_of("bert", head))
    plan = named_plans(anatomy)["bot50"]
    on, off = (predict(plan, anatomy, work(head, loss_positions=flag, label_share=0.1)) for flag in (True, False))
    assert (on.run_flops, on.memory) == (off.run_flops, off.memory)


def test_rows_of_texts_have_no_activation_cache() -> None:
    anatomy = find_anatomy(model_of("bert", "choices"))
    plan = named_plans(anatomy)["bot50"]
    estimate = cache_estimate(plan, anatomy, Workload(texts=3, num_train_epochs=5))
    assert not estimate.pays and "several texts" in str(estimate)
    for texts in (1, 3):
        situation = Situation(anatomy, budget=Budget(time=0.6), workload=Workload(texts=texts, num_train_epochs=5))
        assert search(situation, [0.0, 0.0, 1.0, 1.0]).workload.activation_cache == (texts == 1)
