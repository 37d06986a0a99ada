"""Changes of the forward pass in a plan, and which settings change anything."""

from __future__ import annotations

import pytest

from frostline.plan import Forward, Residual


def test_nothing_changes_unless_it_is_said() -> None:
    forward = Forward()
    assert (forward.interacts, forward.layered, forward.changes, dict(forward.losses)) == (False, False, False, {})


@pytest.mark.parametrize(
    ("weights", "losses"),
    [
        ((1,), {}),
        ((0, 0, 1), {}),
        ((-0.0, 0, 1.0), {}),
        ((0, 0, 0.5), {2: 0.5}),
        ((0.25, 0, 1), {0: 0.25, 2: 1.0}),
        ((0, -1, 0), {1: -1.0}),
        ((0, 0, 0), {}),
    ],
)
def test_the_ordinary_weights_are_no_layered_loss(weights: tuple[float, ...], losses: dict[int, float]) -> None:
    forward = Forward(loss_weights=weights)
    assert forward.losses == losses
    assert forward.changes == forward.layered == (weights[-1] != 1 or any(weights[:-1]))
    assert not forward.interacts


@pytest.mark.parametrize(("residual", "interacts"), [(Residual(span=3), False), (Residual(alpha=-0.1), True)])
def test_an_alpha_of_0_is_no_interaction_whatever_its_span(residual: Residual, interacts: bool) -> None:
    forward = Forward(residual=residual)
    assert forward.interacts == forward.changes == interacts
    assert not forward.layered
