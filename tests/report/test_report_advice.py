"""Which strategy a report advises, and what it says against trusting that."""

from __future__ import annotations

from typing import Any

import pytest

from frostline.report import tabulate
from frostline.report._advice import advise, alone
from frostline.report._svg import Axis
from made_records import run


def advice(*runs: tuple[str, float, float], seeds: tuple[int, ...] = (1,), **given: Any) -> Any:
    """The advice for strategies with an accuracy and seconds each."""
    made = [run(name, seed, accuracy=acc, seconds=s, **given) for name, acc, s in runs for seed in seeds]
    return advise(tabulate(made).groups[0])


def test_the_best_and_the_fastest_that_is_nearly_as_good() -> None:
    found = advice(("all", 0.80, 10.0), ("bot50", 0.79, 5.0), ("bot75", 0.785, 4.0), ("head", 0.7, 1.0))
    assert (found.best.strategy, found.quick.strategy) == ("all", "bot75")
    assert found.sentence == (
        "Use all for the best accuracy (0.800, in 10 s), or bot75 for the least time within 2% of it "
        "(0.785, in 4 s, 0.40 of all)."
    )
    assert [text for text, strong in found.parts if strong] == ["all", "bot75"]
    edge = advice(("all", 0.80, 10.0), ("bot50", 0.784, 5.0), ("head", 0.7839, 1.0))
    assert edge.quick.strategy == "bot50", "2% of the best is 0.016"


def test_one_that_is_both() -> None:
    found = advice(("all", 0.80, 10.0), ("bot50", 0.81, 5.0))
    assert found.sentence == (
        "Use bot50: the best accuracy (0.810), and the least time (5 s, 0.50 of all) of the 2 within 2% of it."
    )
    found = advice(("all", 0.80, 10.0), ("bot50", 0.60, 5.0))
    assert found.sentence == "Use all: the best accuracy (0.800, in 10 s); no other is within 2% of it."


def test_one_that_has_one_run_may_be_ahead_by_chance() -> None:
    runs = [run("all", seed, accuracy=0.8) for seed in (1, 2, 3)] + [run("lora", 1, accuracy=0.9)]
    found = advise(tabulate(runs).groups[0])
    assert found is not None and found.cautions == ("lora has one run: it may be ahead by chance.",)


def test_none_is_recommended_that_has_not_learned() -> None:
    found = advice(("all", 0.5, 9.0), ("lora", 0.45, 9.0))
    assert found.sentence.startswith("None is to be recommended. The first is all: the best accuracy (0.500")


def test_of_a_loss_less_is_better() -> None:
    runs = [run(name, seconds=s).record for name, s in (("all", 10.0), ("bot50", 5.0))]
    losses = (2.0, 2.03)
    made = [
        run(name).__class__(
            name,
            record.model_copy(
                update={
                    "data": record.data.model_copy(update={"metric": "loss"}),
                    "metrics": record.metrics.model_copy(update={"after": {"loss": loss}}),  # type: ignore[union-attr]
                }
            ),
            run(name).folder,
        )
        for name, record, loss in zip(("all", "bot50"), runs, losses, strict=True)
    ]
    found = advise(tabulate(made).groups[0])
    assert found is not None and (found.best.strategy, found.quick.strategy) == ("all", "bot50")


@pytest.mark.parametrize(
    ("runs", "seeds", "caution"),
    [
        ([("all", 0.8, 9.0), ("lora", 0.7, 9.0)], (1,), "One run each"),
        ([("all", 0.5, 9.0), ("lora", 0.45, 9.0)], (1,), "None is better than always answering the most common label"),
        ([("all", 0.4, 9.0), ("lora", 0.3, 9.0)], (1,), "None is better than the model before training"),
    ],
)
def test_cautions(runs: list[tuple[str, float, float]], seeds: tuple[int, ...], caution: str) -> None:
    assert any(caution in line for line in advice(*runs, seeds=seeds).cautions)


def test_what_the_seeds_do_not_tell_apart() -> None:
    made = [
        run(name, seed, accuracy=acc + seed * 0.02) for name, acc in (("all", 0.8), ("lora", 0.79)) for seed in (1, 2)
    ]
    found = advise(tabulate(made).groups[0])
    assert found is not None and found.cautions == ("lora is within one standard deviation of the best.",)
    apart = [run(name, s, accuracy=a + s * 0.001) for name, a in (("all", 0.8), ("lora", 0.7)) for s in (1, 2)]
    found = advise(tabulate(apart).groups[0])
    assert found is not None and found.cautions == ()


def test_nothing_to_compare() -> None:
    group = tabulate([run("bot50", accuracy=0.8, seconds=5.0)]).groups[0]
    assert advise(group) is None
    assert alone(group) == "bot50: accuracy 0.800 (before training 0.400), in 5 s."


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.767, 0.993], ["0.80", "0.85", "0.90", "0.95", "1.00"]),
        ([0.0, 0.0], ["-0.4", "-0.2", "0.0", "0.2", "0.4"]),
        ([5.0], ["4.6", "4.8", "5.0", "5.2", "5.4"]),
        ([1e9, 3e9], ["1,000,000,000", "1,500,000,000", "2,000,000,000", "2,500,000,000", "3,000,000,000"]),
        ([1e-7, 3e-7], ["0.00000010", "0.00000015", "0.00000020", "0.00000025", "0.00000030"]),
        ([float("nan"), float("inf")], ["-0.4", "-0.2", "0.0", "0.2", "0.4"]),
    ],
)
def test_ticks_are_round_and_told_apart(values: list[float], texts: list[str]) -> None:
    axis = Axis.over(values, 0, 100)
    assert [axis.text(tick) for tick in axis.ticks] == texts
    assert all(0 <= axis(tick) <= 100 for tick in axis.ticks)


@pytest.mark.parametrize(
    ("most", "texts"),
    [(1, ["0", "1"]), (3, ["0", "1", "2", "3"]), (11, ["0", "2", "4", "6", "8", "10"]), (14, ["0", "5", "10"])],
)
def test_ticks_of_steps_and_blocks_are_whole(most: int, texts: list[str]) -> None:
    axis = Axis.over([0, most], 0, 100, zero=True, whole=True)
    assert [axis.text(tick) for tick in axis.ticks] == texts
