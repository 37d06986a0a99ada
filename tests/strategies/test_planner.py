"""The planner against all candidates counted one by one, and what it says when nothing fits."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
from anatomies import plain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from architectures import ARCHITECTURES
from frostline.anatomy import Anatomy, find_anatomy, skeleton
from frostline.core.errors import UserError
from frostline.core.sizes import parse_duration, parse_size
from frostline.cost import Speed, Workload, full_plan, predict
from frostline.plan import FixedSchedule, Frozen, Full, Lora, Plan
from frostline.signals import Measurement, Probe
from frostline.strategies import Budget, Situation
from frostline.strategies import _candidates as counting
from frostline.strategies._auto import AutoOptions, auto
from frostline.strategies._candidates import Freedom
from frostline.strategies._choice import Choice, Option
from frostline.strategies._planner import search
from grids import slow_but

SPEED = Speed(
    forward=2e-11, input_gradient=3e-11, weight_gradient=2.5e-11, lora=1e-9, head=2e-11, embeddings=1e-9,
    parameter=3e-10, batch=2e-3,
)  # fmt: skip

CLASSES = {"bert": AutoModelForSequenceClassification, "t5": AutoModelForSeq2SeqLM}


@cache
def anatomy(name: str, blocks: int = 4, **sizes: Any) -> Anatomy:
    config = ARCHITECTURES[name](num_hidden_layers=blocks, **sizes)
    config.tie_word_embeddings = name == "gpt2"
    return find_anatomy(skeleton(config, CLASSES.get(name, AutoModelForCausalLM)))


@dataclass(frozen=True)
class Case:
    """A model, the work asked for, and what may be chosen."""

    model: str
    workload: Workload
    speed: Speed | None = None
    freedom: Freedom = field(default_factory=Freedom)

    def situation(self, budget: Budget) -> Situation:
        return Situation(anatomy(self.model), budget=budget, workload=self.workload, speed=self.speed)


WORK = Workload(rows=200, length=32, per_device_train_batch_size=2, gradient_accumulation_steps=3, num_train_epochs=3)
CASES = {
    "decoder": Case("llama", WORK),
    "calibrated": Case("llama", WORK, SPEED),
    "tied": Case("gpt2", WORK.model_copy(update={"num_train_epochs": 1.0})),
    "classifier": Case("bert", WORK.model_copy(update={"loss_positions": True, "dropout": True}), SPEED),
    "encoder-decoder": Case("t5", WORK.model_copy(update={"label_tokens": 8})),
    "narrow": Case("llama", WORK.model_copy(update={"bf16": True, "frozen_dtype": "bfloat16"})),
    "sharded": Case("llama", WORK.model_copy(update={"devices": 4, "bf16": True}), SPEED),
    "few rows": Case("llama", WORK.model_copy(update={"num_train_epochs": 0.5, "activation_checkpointing": True})),
    "stored": Case("llama", WORK.model_copy(update={"num_train_epochs": 0.5, "stored_share": 0.8})),
    "rounded": Case("llama", WORK.model_copy(update={"frozen_bits": 8})),
    "only full": Case("llama", WORK, None, Freedom(modes=("full",), choose=("activation_checkpointing",))),
    "as asked": Case(
        "llama",
        WORK.model_copy(update={"activation_cache": True}),
        None,
        Freedom(modes=("lora",), choose=(), lora_worth=0.9),
    ),
}


WIDER: dict[str, Case] = {}


@dataclass(frozen=True)
class Counted:
    """One candidate, as `predict` counts it."""

    setup: tuple[str, bool, bool, bool]
    boundary: int
    batch: int
    memory: float
    time: float
    disk: float
    start: float
    found: Anatomy

    def gain(self, worths: tuple[int, ...], freedom: Freedom, passes: float | None = None) -> float:
        """The rule of docs/decisions/0023, written out."""
        mode, *_, untied = self.setup
        share = sum(worths[self.boundary :]) / (sum(worths) or 1)
        lost = 0.003 if self.found.has_lm_head else 0.15
        gain = (1 + lost) / (1 + lost / share**1.5) if share else 0.0
        gain *= {"full": 1.0, "lora": freedom.lora_worth, "head": 0}[mode]
        if self.found.tied and not untied and (mode, self.boundary) != ("full", 0):
            gain *= 0.9
        if passes is not None:
            gain *= (1 - math.exp(-passes / 0.9)) / (1 - math.exp(-3.3 / 0.9))
        return gain

    def fits(self, limits: dict[str, float]) -> bool:
        return all(getattr(self, name) <= amount * (1 + 1e-9) for name, amount in limits.items())


@cache
def counted(name: str) -> list[Counted]:
    """Every candidate of a case, by plain loops, plans written out."""
    case = CASES[name] if name in CASES else WIDER[name]
    found = anatomy(case.model)
    work, choose, depth = case.workload, case.freedom.choose, len(found.blocks)
    step = work.per_device_train_batch_size * work.gradient_accumulation_steps
    divides = [n for n in range(1, step + 1) if step % n == 0]
    batches = divides if "per_device_train_batch_size" in choose else [work.per_device_train_batch_size]
    checkpointing = (False, True) if "activation_checkpointing" in choose else (work.activation_checkpointing,)
    stores = (False, True) if "activation_cache" in choose else (work.activation_cache,)
    if "activation_cache" in choose and (work.frozen_bits or work.num_train_epochs + work.stored_share < 1):
        stores = (False,)
    rows = []
    for mode, boundary, batch, recomputes, stored, untied in itertools.product(
        (*case.freedom.modes, "head"), range(depth + 1), batches, checkpointing, stores, (False, True)
    ):
        if (mode == "head") != (boundary == depth) or (stored and boundary == 0):
            continue
        if work.frozen_bits and (mode, boundary) == ("full", 0):
            continue
        if untied and (not found.tied or mode == "head" or (mode, boundary) == ("full", 0)):
            continue
        settings = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": step // batch,
            "activation_checkpointing": recomputes,
            "activation_cache": stored,
        }
        plan = written(mode, boundary, found, untied)
        one = predict(plan, found, work.model_copy(update=settings), case.speed)
        time = one.run_flops if one.run_seconds is None else one.run_seconds
        less = predict(plan, found, work.model_copy(update={**settings, "num_train_epochs": 1e-9}), case.speed)
        start = less.run_flops if less.run_seconds is None else less.run_seconds
        setup = (mode, recomputes and mode != "head", stored, untied)
        rows.append(Counted(setup, boundary, batch, one.peak_memory_bytes, time, one.disk_bytes, start, found))
    return rows


def written(mode: str, boundary: int, found: Anatomy, untied: bool) -> Plan:
    """The plan of a candidate, without the strategies' own helpers."""
    above = len(found.blocks) - boundary
    classifies = not found.has_lm_head
    if mode == "head":
        return Plan(blocks=(Frozen(),) * boundary, final_norm=Frozen(), untie=found.tied)
    if (mode, boundary) == ("full", 0):
        return Plan(embeddings=Full(), blocks=(Full(),) * above)
    if mode == "full":
        head = Frozen() if found.tied and not untied else Full()
        return Plan(blocks=(Frozen(),) * boundary + (Full(),) * above, head=head, untie=untied)
    lora = Lora(targets="all", lr_scale=3)
    head = Full() if classifies or untied else Frozen()
    return Plan(blocks=(Frozen(),) * boundary + (lora,) * above, final_norm=Frozen(), head=head, untie=untied)


@cache
def whole(name: str) -> tuple[float, float]:
    """Memory and time of full fine-tuning, as asked."""
    case, found = CASES[name], anatomy(CASES[name].model)
    full = predict(full_plan(found), found, case.workload.plain, case.speed)
    return full.peak_memory_bytes, full.run_flops if full.run_seconds is None else full.run_seconds


def amounts(name: str, budget: Budget) -> dict[str, float]:
    """A budget's limits as numbers."""
    memory, time = whole(name)
    found: dict[str, float] = {}
    if budget.memory is not None:
        found["memory"] = budget.memory * memory if isinstance(budget.memory, float) else parse_size(budget.memory, "")
    if budget.time is not None:
        found["time"] = budget.time * time if isinstance(budget.time, float) else parse_duration(budget.time, "")
    if budget.disk is not None:
        found["disk"] = parse_size(budget.disk, "")
    return found


def candidates(name: str, budget: Budget) -> list[Counted]:
    """Those that are looked at: only a limit on memory wants another batch than the one asked for."""
    asked = CASES[name].workload.per_device_train_batch_size
    return [one for one in counted(name) if budget.memory is not None or one.batch == asked]


def best(rows: list[Counted], worths: tuple[int, ...], freedom: Freedom) -> Counted | None:
    # A block that is worth nothing is not trained below all that are.
    useful = [one for one in rows if one.setup[0] == "head" or worths[one.boundary]]
    return min(useful, key=lambda one: (-round(one.gain(worths, freedom), 9), one.time), default=None)


def same(option: Option, row: Counted, worths: tuple[int, ...], freedom: Freedom, case: Case) -> bool:
    """Equal in gain, and in time: which of several that take the same is a matter of taste."""
    taken = option.prediction.run_flops if case.speed is None else option.prediction.run_seconds
    return option.expected_gain == pytest.approx(row.gain(worths, freedom)) and taken == pytest.approx(row.time)


shares = st.one_of(st.none(), st.floats(0.05, 1.0).map(lambda share: round(share, 3)))
disks = st.sampled_from([None, None, "0", "100KB", "500KB", "2MB"])
budgets = st.builds(Budget, memory=shares, time=shares, disk=disks)


def worths_for(name: str) -> st.SearchStrategy[tuple[int, ...]]:
    depth = len(anatomy(CASES[name].model).blocks)
    return st.lists(st.integers(0, 3), min_size=depth, max_size=depth).map(tuple)


quick = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", slow_but(["decoder", "tied"], CASES))
@quick
@given(data=st.data())
def test_it_finds_what_counting_every_candidate_finds(name: str, data: st.DataObject) -> None:
    case, budget, worths = CASES[name], data.draw(budgets), data.draw(worths_for(name))
    limits, rows = amounts(name, budget), candidates(name, budget)
    expected = best([one for one in rows if one.fits(limits)], worths, case.freedom)
    try:
        choice = search(case.situation(budget), worths, case.freedom)
    except UserError:
        assert expected is None
        return
    assert expected is not None
    assert same(choice, expected, worths, case.freedom, case)
    fits_and_keeps_the_rows_of_a_step(choice, name, limits)
    chosen = (
        choice.mode, choice.workload.activation_checkpointing, choice.workload.activation_cache,
        choice.plan.untie and choice.mode != "head",
    )  # fmt: skip
    other = best([one for one in rows if one.fits(limits) and one.setup != chosen], worths, case.freedom)
    assert (other is None) == (choice.runner_up is None)
    if other and choice.runner_up:
        assert same(choice.runner_up, other, worths, case.freedom, case)
    assert [cost.limit.resource for cost in choice.constraints] == list(limits)
    for cost in choice.constraints:
        left = {name: amount for name, amount in limits.items() if name != cost.limit.resource}
        without = best([one for one in rows if one.fits(left)], worths, case.freedom)
        assert without is not None
        assert cost.gain == pytest.approx(without.gain(worths, case.freedom) - choice.expected_gain)
        assert cost.gain >= 0


def fits_and_keeps_the_rows_of_a_step(choice: Choice, name: str, limits: dict[str, float]) -> None:
    case, work = CASES[name], choice.workload
    assert (
        work.per_device_train_batch_size * work.gradient_accumulation_steps
        == case.workload.per_device_train_batch_size * case.workload.gradient_accumulation_steps
    )
    Workload.model_validate(work.model_dump())
    again = predict(choice.plan, anatomy(case.model), work, case.speed)
    time = again.run_flops if again.run_seconds is None else again.run_seconds
    taken = {"memory": again.peak_memory_bytes, "time": time, "disk": again.disk_bytes}
    assert all(taken[resource] <= amount * (1 + 1e-9) for resource, amount in limits.items())
    assert {cost.limit.resource: cost.used for cost in choice.constraints} == pytest.approx(
        {resource: taken[resource] for resource in limits}
    )
    assert (choice.memory_share * whole(name)[0], choice.time_share * whole(name)[1]) == pytest.approx(
        (taken["memory"], time)
    )


@pytest.mark.parametrize(
    "name", slow_but(["decoder", "encoder-decoder", "few rows"], [name for name in CASES if name != "as asked"])
)
@quick
@given(data=st.data())
def test_a_time_is_spent_on_what_counting_every_candidate_finds(name: str, data: st.DataObject) -> None:
    """Every candidate makes as many passes as the time pays for, at most 3.3; the best of them is chosen."""
    case, share = CASES[name], data.draw(st.floats(0.03, 1.5))
    time = share * whole(name)[1]
    budget = Budget(time=0.5, memory=data.draw(shares)).model_copy(update={"time": share})
    limits = {resource: amount for resource, amount in amounts(name, budget).items() if resource == "memory"}
    worths, step = (1,) * len(anatomy(case.model).blocks), 6 / 200
    best_gain = 0.0
    rows, epochs = spending(name)
    for row in rows:
        passes = (time - row.start) / ((row.time - row.start) / epochs)
        batch = row.batch == case.workload.per_device_train_batch_size or budget.memory is not None
        if batch and passes >= step * (1 - 1e-9) and row.fits(limits):
            best_gain = max(best_gain, row.gain(worths, case.freedom, min(passes, 3.3)))
    try:
        choice = search(case.situation(budget), worths, case.freedom, spend=True)
    except UserError:
        assert best_gain == 0
        return
    assert choice.expected_gain == pytest.approx(best_gain)
    passes = choice.workload.num_train_epochs
    assert choice.time_share <= share * (1 + 1e-9)
    assert passes == pytest.approx(3.3) or choice.time_share == pytest.approx(share)
    assert choice.learning_rate is None, "the strategy auto adds it"


def spending(name: str) -> tuple[list[Counted], float]:
    """Every candidate, with an activation cache also where the passes asked for would not pay for one; the passes."""
    few = CASES[name]
    if few.workload.num_train_epochs < 1:
        name = f"{name}, three passes"
        WIDER[name] = replace(few, workload=few.workload.model_copy(update={"num_train_epochs": 3.0}))
        few = WIDER[name]
    return counted(name), few.workload.num_train_epochs


@pytest.mark.parametrize("name", slow_but(["decoder"], ["decoder", "calibrated"]))
@quick
@given(data=st.data())
def test_a_larger_budget_never_gains_less(name: str, data: st.DataObject) -> None:
    case, smaller = CASES[name], data.draw(st.builds(Budget, memory=st.floats(0.1, 0.9), time=st.floats(0.1, 0.9)))
    factor = data.draw(st.floats(1.0, 1.1))
    assert isinstance(smaller.memory, float)
    assert isinstance(smaller.time, float)
    larger = Budget(memory=min(1.0, smaller.memory * factor), time=min(1.0, smaller.time * factor))

    def gain(budget: Budget) -> float:
        try:
            return search(case.situation(budget), (1,) * len(anatomy(case.model).blocks), case.freedom).expected_gain
        except UserError:
            return -1.0

    assert gain(larger) >= gain(smaller)


@pytest.mark.parametrize("name", slow_but(list(CASES)[1::2], CASES))
@quick
@given(data=st.data())
def test_the_least_that_a_refusal_names_would_do(name: str, data: st.DataObject) -> None:
    small = st.one_of(st.none(), st.floats(0.01, 0.3).map(lambda share: round(share, 3)))
    case, budget = CASES[name], data.draw(st.builds(Budget, memory=small, time=small, disk=disks))
    for _ in range(4):
        try:
            search(case.situation(budget), (1,) * len(anatomy(case.model).blocks), case.freedom)
            return
        except UserError as error:
            line = str(error)
            assert line.startswith("no plan fits ")
            assert "\n" not in line
            enough = dict(re.findall(r"use (memory|time|disk)=([^ ,]+)", line))
            if not enough:
                assert "nor any two of them" in line
                return
            budget = Budget.model_validate({**budget.model_dump(), **enough})
    raise AssertionError(f"still too little: {budget}")


GIB = 2**30


def llama(blocks: int = 12) -> Anatomy:
    return anatomy("llama", blocks, hidden_size=512, intermediate_size=1408, vocab_size=8000)


def situation(budget: str, **others: Any) -> Situation:
    work = Workload(rows=3000, length=128, per_device_train_batch_size=32, num_train_epochs=3)
    return replace(Situation(llama(), budget=Budget.parse(budget), workload=work), **others)


def test_memory_is_bought_with_smaller_batches_then_fewer_blocks_then_lora() -> None:
    shares = (1, 0.1, 0.07, 0.04)
    all_, smaller, fewer, lora = (search(situation(f"memory={share}"), (1,) * 12) for share in shares)
    assert [one.mode for one in (all_, smaller, fewer, lora)] == ["full", "full", "full", "lora"]
    assert all_.plan.boundary == 0
    assert fewer.plan.boundary > 0
    assert (all_.workload.per_device_train_batch_size, smaller.workload.per_device_train_batch_size) == (32, 1)
    assert not all_.workload.activation_checkpointing
    assert lora.workload.activation_checkpointing


def test_time_is_bought_with_a_activation_cache_and_fewer_blocks() -> None:
    choice = search(situation("time=0.4"), (1,) * 12)
    assert (choice.mode, choice.workload.activation_cache, choice.workload.per_device_train_batch_size) == (
        "full",
        True,
        32,
    )
    assert choice.plan.blocks == (Frozen(),) * 9 + (Full(),) * 3
    below = replace(situation("time=0.4"), workload=choice.workload.model_copy(update={"num_train_epochs": 1.0}))
    assert search(below, (1,) * 12).workload.activation_cache is False, "one pass over the rows gains nothing by it"


def test_disk_limits_the_store() -> None:
    with_store = search(situation("time=0.4,disk=1GB"), (1,) * 12)
    without = search(situation("time=0.4,disk=100MB"), (1,) * 12)
    assert with_store.prediction.disk_bytes == 3000 * 128 * 512 * 4
    assert without.prediction.disk_bytes == 0
    (_, disk) = without.constraints
    assert disk.gain == pytest.approx(with_store.expected_gain - without.expected_gain)
    assert disk.gain > 0
    assert disk.instead.workload.activation_cache


def test_a_limit_in_bytes_is_the_share_that_it_is() -> None:
    found = llama()
    full = predict(full_plan(found), found, situation("time=1").workload).peak_memory_bytes
    shared, absolute = (search(situation(f"memory={text}"), (1,) * 12) for text in ("0.25", f"{full // 4 + 1}B"))
    assert (shared.plan, shared.workload) == (absolute.plan, absolute.workload)


def test_a_time_in_seconds_wants_a_speed() -> None:
    line = (
        "budget: time=20min needs the speed of this machine: use calibrate=true (frostline plan: "
        "--calibrate), or give a share of full fine-tuning's time, such as time=0.4"
    )
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        search(situation("time=20min"), (1,) * 12)
    choice = search(situation("time=20min", speed=SPEED), (1,) * 12)
    assert choice.prediction.run_seconds is not None
    assert choice.prediction.run_seconds <= 1200
    (cost,) = choice.constraints
    assert cost.instead.prediction.run_seconds is not None
    assert cost.gain > 0
    assert cost.instead.prediction.run_seconds > 1200


def test_devices_share_the_model() -> None:
    one = search(situation("memory=300MB"), (1,) * 12)
    eight = search(
        situation("memory=300MB", workload=situation("").workload.model_copy(update={"devices": 8})), (1,) * 12
    )
    assert eight.expected_gain > one.expected_gain
    assert eight.prediction.peak_memory_bytes <= 300e6


def test_only_rows_of_one_pass_step_in_the_backward_pass() -> None:
    work = situation("").workload.model_copy(update={"optimizer_in_backward": True})
    choice = search(situation("memory=0.2", workload=work), (1,) * 12)
    assert (choice.workload.per_device_train_batch_size, choice.workload.gradient_accumulation_steps) == (32, 1)


def test_the_head_is_the_last_resort() -> None:
    least = search(situation("memory=1"), (0,) * 12)
    assert (least.mode, least.expected_gain, least.plan.boundary) == ("head", 0, 12)
    lora = search(situation("memory=0.05"), (1,) * 12)
    assert lora.mode != "head"


def test_lora_is_worth_what_is_said_and_learns_at_its_own_rate() -> None:
    dear = search(situation("time=0.4"), (1,) * 12, Freedom(lora_worth=1.0, lora={"r": 4}))
    assert dear.mode == "lora"
    assert dear.plan.blocks[-1] == Lora(r=4, targets="all", lr_scale=3)
    assert dear.plan.final_norm == Frozen()
    only = search(situation("time=0.4"), (1,) * 12, Freedom(modes=("lora", "lora"), choose=()))
    assert only.mode == "lora"
    assert only.runner_up is not None
    assert only.runner_up.mode == "head"


@pytest.mark.parametrize("worths", [(1,) * 11, (1,) * 11 + (-1,)])
def test_worths_are_one_for_each_block(worths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^12 blocks need a worth of 0 or more each"):
        search(situation("memory=1"), worths)


@pytest.mark.parametrize(
    ("budget", "line"),
    [
        ("memory=20MB", r"memory=20MB: use memory=\d+(\.\d+)?MiB \(\d+(\.\d+)?MiB more\), for .*batches of 1 x 32.*"),
        (
            "time=0.01",
            r"time=0.01: use time=0\.\d+ \(0\.\d+ more\), for the head alone, batches of 32, activation cache",
        ),
        ("memory=1GB,time=0.01,disk=1GB", r"time=0.01 within memory=1GB and disk=1GB: use time=0\.\d+ .*"),
        ("memory=1MB,time=0.01", r"memory=1MB: use memory=.*; nor time=0.01: use time=.*"),
    ],
)
def test_a_refusal_says_which_limit_is_short_and_by_how_much(budget: str, line: str) -> None:
    with pytest.raises(UserError, match=f"^no plan fits {line}$"):
        search(situation(budget), (1,) * 12)


def test_few_of_many_candidates_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Plan] = []
    memory = counting.memory
    monkeypatch.setattr(counting, "memory", lambda plan, *rest: calls.append(plan) or memory(plan, *rest))
    deep = anatomy("llama", 40)
    work = Workload(rows=1000, length=64, per_device_train_batch_size=16, num_train_epochs=3)
    search(Situation(deep, budget=Budget(memory=0.2, time=0.5, disk="1GB"), workload=work), (1,) * 40)
    modes, boundaries, batches, checkpointing, stores = 2, 40, 5, 2, 2
    assert len(calls) < modes * boundaries * batches * checkpointing * stores / 4


def test_the_choice_is_told_in_lines_and_as_data() -> None:
    choice = search(situation("memory=0.4,time=0.4,disk=1GB"), (0, 0, *(1,) * 10))
    labels = [label for label, _ in choice.lines()]
    assert labels == [
        "chosen", "runner-up", "constraint", "constraint", "constraint", "with twice the time", "with half the memory",
    ]  # fmt: skip
    lines = [line for _, line in choice.lines()]
    assert lines[0].startswith(
        "blocks 9-11 in full, batches of 32, activation cache: gain 0.99, 3 passes over the rows, "
    )
    assert " of full fine-tuning), 0.4" in lines[0]
    assert lines[0].endswith(" of its time, 750 MiB on disk")
    assert lines[2] == f"memory=0.4: the plan uses {choice.memory_share:.3g}; a larger limit would not change it"
    assert lines[3].startswith(f"time=0.4: the plan uses {choice.time_share:.3g}; ")
    assert "without this limit the gain would be 0.01 higher: blocks 2-11 in full, " in lines[3]
    assert lines[4] == "disk=1GB: the plan uses 750MiB; a larger limit would not change it"
    document = json.loads(json.dumps(choice.document()))
    assert document["boundary"] == 9
    assert document["mode"] == "full"
    assert (document["per_device_train_batch_size"], document["gradient_accumulation_steps"]) == (32, 1)
    assert document["predicted"]["peak_memory_bytes"] == choice.prediction.peak_memory_bytes
    assert document["runner_up"]["expected_gain"] <= document["expected_gain"]
    assert [cost["constraint"] for cost in document["constraints"]] == ["memory", "time", "disk"]
    assert [round(cost["cost"], 2) for cost in document["constraints"]] == [0, 0.01, 0]
    assert lines[5].startswith("blocks 3-11 in full, ")
    assert document["instead"]["half the memory"]["predicted"]["peak_memory_bytes"] <= (
        choice.prediction.peak_memory_bytes / 2
    )


def probed(gains: list[float | None]) -> Any:
    """A measurement that has these gains, and says how it was asked."""
    asked: list[tuple[Any, int]] = []

    def measure(signals: Any, rows: int) -> Probe:
        asked.append((signals, rows))
        values = tuple(map(Measurement, gains))
        return Probe(
            "model", "task", rows, "the last", {"shift": values, "shift_gain": values, "shift_log_gain": values}
        )

    return measure, asked


class TestAuto:
    def test_without_a_budget_it_trains_all_above_the_cut(self) -> None:
        measure, asked = probed([None, 0.1, 0.7, 0.2])
        selection = auto(Situation(plain(4), measure=measure), AutoOptions())
        assert isinstance(selection.schedule, FixedSchedule)
        assert selection.choice is None
        assert selection.schedule.first == Plan(strategy="auto", blocks=(*(Frozen(),) * 3, Full()))
        assert asked == [(None, 256)]

    def test_with_a_budget_the_planner_spends_it_and_measures_nothing(self) -> None:
        measure, asked = probed([None, 0.9, *(0.1,) * 10])
        selection = auto(situation("time=0.5", measure=measure), AutoOptions())
        assert isinstance(selection.schedule, FixedSchedule)
        assert isinstance(selection.choice, Choice)
        plan = selection.schedule.first
        assert plan == selection.choice.plan
        assert plan.strategy == "auto"
        searched = search(situation("time=0.5"), (1,) * 12, spend=True)
        assert selection.choice == replace(searched, learning_rate=8.1e-4), "2.3e-3 at width 256; this is 512"
        assert asked == []
        fixed_steps = auto(situation("time=0.5", decided=frozenset({"steps"})), AutoOptions()).choice
        assert fixed_steps is not None
        assert fixed_steps.workload.num_train_epochs == 3

    def test_a_given_cut_is_not_measured(self) -> None:
        selection = auto(situation("memory=1"), AutoOptions(cut=5))
        assert selection.choice is not None
        assert selection.schedule.first.boundary == 5

    def test_a_single_block_is_worth_training(self) -> None:
        plan = auto(Situation(plain(1)), AutoOptions()).schedule.first
        assert plan.blocks == (Full(),)

    def test_without_a_task_it_says_what_it_wants(self) -> None:
        with pytest.raises(
            UserError, match=r"^strategy 'auto' measures the model on rows of a task: give --task .* --set cut=2"
        ):
            auto(Situation(plain(4)), AutoOptions())

    def test_what_it_may_choose_needs_a_budget(self) -> None:
        with pytest.raises(UserError, match=r"^strategy_options.modes: .* there is none: use --budget"):
            auto(Situation(plain(4)), AutoOptions(cut=1, modes=("lora",)))

    def test_a_cut_that_leaves_nothing_is_refused(self) -> None:
        line = r"^strategy_options.cut: 4 of 4 blocks leave none to train: use at most 3$"
        with pytest.raises(UserError, match=line):
            auto(Situation(plain(4)), AutoOptions(cut=4))
