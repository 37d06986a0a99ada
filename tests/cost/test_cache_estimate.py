"""When an activation cache pays."""

from __future__ import annotations

import math

import pytest
from cost_cases import named_plans, small

from frostline.anatomy import find_anatomy
from frostline.cost import Estimate, Workload, bottom_flops, cache_estimate, cache_pays, run_flops


def pays(epochs: float, stored_share: float = 0.0) -> Estimate:
    return cache_pays(epochs=epochs, store_bytes=1000 * 2**20, bottom_share=0.3, stored_share=stored_share)


def test_one_epoch_from_an_empty_store_saves_nothing_and_says_so() -> None:
    estimate = pays(1)
    assert (estimate.pays, estimate.saved_share) == (False, 0)
    assert str(estimate) == (
        "1 epoch, 0.977 GiB to write, break-even at 1.01: "
        "it saves nothing at one epoch: each row passes the frozen bottom once with and without it"
    )


def test_from_the_second_epoch_on_it_pays() -> None:
    estimate = pays(3)
    assert estimate.pays
    assert estimate.saved_share == pytest.approx(0.3 * 2 / 3)
    assert str(estimate) == "3 epochs, 0.977 GiB to write, break-even at 1.01: it saves 20.0% of the run's operations"


@pytest.mark.parametrize(
    ("epochs", "stored", "reason"),
    [
        (1.005, 0.0, "writing and reading the states costs more"),
        (0.5, 0.0, "rows that training never reaches"),
        (0.25, 0.75, "lacks as many rows"),
    ],
)
def test_why_not(epochs: float, stored: float, reason: str) -> None:
    estimate = pays(epochs, stored)
    assert not estimate.pays and reason in estimate.reason


def test_what_is_stored_counts() -> None:
    assert pays(1, stored_share=0.1).pays
    full = pays(0.1, stored_share=1.0)
    assert (full.pays, full.bytes, full.break_even_epochs) == (True, 0, 0)
    assert full.saved_share == 0.3
    assert pays(1, stored_share=0.25).bytes == 750 * 2**20
    break_even = [pays(1, share).break_even_epochs for share in (0.0, 0.5, 1.0)]
    assert break_even == sorted(break_even, reverse=True)
    assert not pays(break_even[1], 0.5).pays and pays(break_even[1] + 0.01, 0.5).pays


def test_without_a_bottom_there_is_nothing_to_store() -> None:
    anatomy = find_anatomy(small("llama"))
    estimate = cache_estimate(named_plans(anatomy)["all"], anatomy, Workload(num_train_epochs=3))
    assert (estimate.pays, estimate.bytes, estimate.break_even_epochs) == (False, 0, math.inf)
    assert str(estimate) == "no block is below the boundary, so there is nothing to store"


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_an_estimate_is_what_the_run_saves(family: str) -> None:
    anatomy = find_anatomy(small(family))
    plan = named_plans(anatomy)["bot75"]
    for stored in (0.0, 0.4):
        plain = Workload(rows=100, length=16, per_device_train_batch_size=8, num_train_epochs=4, stored_share=stored)
        cached = plain.model_copy(update={"activation_cache": True})
        estimate = cache_estimate(plan, anatomy, plain)
        without = run_flops(plan, anatomy, plain)
        assert estimate.saved_share == pytest.approx(1 - run_flops(plan, anatomy, cached) / without)
        assert estimate == cache_estimate(plan, anatomy, cached)
        assert estimate.bytes == (1 - stored) * 100 * 16 * 32 * 4
    assert bottom_flops(plan, anatomy, plain) > 0


def test_bytes_of_rows_without_padding_can_be_given() -> None:
    anatomy = find_anatomy(small("llama"))
    estimate = cache_estimate(named_plans(anatomy)["bot50"], anatomy, Workload(num_train_epochs=2), store_bytes=12345)
    assert estimate.bytes == 12345
