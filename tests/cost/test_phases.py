"""The predicted cost of plans that follow each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from architectures import tiny
from frostline.anatomy import find_anatomy
from frostline.cost import Workload, bottom_flops, predict, predict_phases
from frostline.plan import Frozen, Full, Plan, phases
from frostline.run import make_schedule
from frostline.strategies import Situation

ANATOMY = find_anatomy(tiny("llama", num_hidden_layers=8))
WORK = Workload(rows=64, length=32, per_device_train_batch_size=8, num_train_epochs=10.0)


def frozen(count: int) -> Plan:
    return Plan(blocks=(Frozen(),) * count + (Full(),) * (8 - count))


def test_one_plan_is_predicted_as_before() -> None:
    for cached in (False, True):
        work = WORK.model_copy(update={"activation_cache": cached})
        assert predict_phases([(0, frozen(4))], 80, ANATOMY, work) == predict(frozen(4), ANATOMY, work)


def test_without_a_cache_it_is_the_mean_over_all_steps() -> None:
    plans = [(0, frozen(0)), (20, frozen(3)), (60, frozen(7))]
    found = predict_phases(plans, 80, ANATOMY, WORK)
    each = [predict(plan, ANATOMY, WORK) for _, plan in plans]
    assert found.run_flops == pytest.approx(sum(p.run_flops * n / 80 for p, n in zip(each, (20, 40, 20), strict=True)))
    assert found.peak_memory_bytes == each[0].peak_memory_bytes
    assert found.trainable_parameters == each[0].trainable_parameters
    assert found.disk_bytes == 0


def test_states_lie_at_the_lowest_boundary_to_come() -> None:
    """A falling boundary has one pass, at its lowest; a rising one passes the blocks between two boundaries."""
    work = WORK.model_copy(update={"activation_cache": True})

    def bottom(count: int) -> float:
        return bottom_flops(frozen(count), ANATOMY, WORK)

    falling = [(0, frozen(7)), (40, frozen(4))]
    steps = [predict(plan, ANATOMY, WORK).run_flops / 80 for _, plan in falling]
    expected = 40 * sum(steps) - 10 * bottom(4) + bottom(4)  # ten epochs of eight steps, and one pass
    assert predict_phases(falling, 80, ANATOMY, work).run_flops == pytest.approx(expected)
    rising = [(0, frozen(2)), (40, frozen(6))]
    steps = [predict(plan, ANATOMY, WORK).run_flops / 80 for _, plan in rising]
    expected = 40 * sum(steps) - 5 * bottom(2) - 5 * bottom(6) + bottom(6)
    assert predict_phases(rising, 80, ANATOMY, work).run_flops == pytest.approx(expected)


def test_a_draw_costs_what_it_is_expected_to() -> None:
    """LISA with a gamma of 2 of 8 blocks, over many draws: the mean over all pairs."""
    schedule = make_schedule(tiny("llama", num_hidden_layers=8), "lisa", steps=20_000, options={"every": 10})
    found = predict_phases(phases(schedule, 20_000), 20_000, ANATOMY, WORK)
    pairs = [(i, j) for i in range(8) for j in range(i)]
    plans = (
        Plan(embeddings=Full(), blocks=tuple(Full() if k in pair else Frozen() for k in range(8))) for pair in pairs
    )
    mean = sum(predict(plan, ANATOMY, WORK).flops_ratio for plan in plans) / len(pairs)
    assert found.flops_ratio == pytest.approx(mean, rel=0.02)


def test_freezeout_costs_less_than_all_and_more_than_half_frozen(tmp_path: Path) -> None:
    schedule = make_schedule(tiny("llama", num_hidden_layers=8), "freezeout", steps=80)
    assert Situation.of(tiny("llama")).steps is None
    found = predict_phases(phases(schedule, 80), 80, ANATOMY, WORK).run_flops_ratio
    assert predict(frozen(4), ANATOMY, WORK).run_flops_ratio < found < 1
