"""FLORA against plain references, in training, killed and resumed, and what it keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from test_changing_plan import Steps
from test_trainer import arguments, rows
from torch import Tensor, nn

import frostline.engine._flora as flora
from architectures import batch_for, tiny
from cache_cases import StopAt
from frostline.anatomy import find_anatomy
from frostline.checkpoints import trained_tensors
from frostline.core.errors import ConfigError
from frostline.cost import Workload, memory
from frostline.engine import Flora, Trainer
from frostline.engine._flora import carry, compress, expand
from frostline.plan import FloraOptions, Frozen, Full, Lora, Partial, Plan
from frostline.run import make_plan
from frostline.surgery import apply
from grids import slow_but

SMALL = FloraOptions(rank=4, kappa=3)
MIXED = Plan(blocks=(Frozen(), Lora(r=2, lr_scale=2.0), Full(), Partial(rows=0.5)))
FREEZING = {0: Plan(blocks=(Full(),) * 4), 4: Plan(blocks=(Frozen(), Frozen(), Full(), Full()))}
THAWING = {0: Plan(blocks=(*[Frozen()] * 3, Full())), 4: Plan(blocks=(Frozen(), *[Full()] * 3))}


def trainer(
    folder: Path,
    plan: Plan | str | Steps = "all",
    name: str = "llama",
    flora_options: FloraOptions = SMALL,
    inside: bool = False,
    **options: Any,
) -> Trainer:
    model = tiny(name, dropout=0.1)
    chosen = make_plan(model, plan) if isinstance(plan, str) else plan
    return Trainer(
        model,
        arguments(folder, weight_decay=0.1, **options),
        **{"schedule" if isinstance(chosen, Steps) else "plan": chosen},
        train_dataset=rows(model),
        optimizer_in_backward=inside,
        optimizer_cls_and_kwargs=(Flora, {"options": flora_options, "seed": 5}),
    )


def same(one: Trainer, other: Trainer) -> bool:
    expected, got = trained_tensors(one.model), trained_tensors(other.model)
    return expected.keys() == got.keys() and all(torch.equal(tensor, got[name]) for name, tensor in expected.items())


@contextmanager
def written_down() -> Iterator[dict[tuple[Any, ...], Tensor]]:
    """Every projection that is drawn while open, by its use."""
    drawn: dict[tuple[Any, ...], Tensor] = {}
    draw = flora._draw

    def noting(matrix: Tensor, side: int, group: dict[str, Any], *names: str | int) -> Tensor:
        projection = draw(matrix, side, group, *names)
        assert torch.equal(drawn.setdefault(names, projection), projection)
        return projection

    flora._draw = noting
    try:
        yield drawn
    finally:
        flora._draw = draw


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)], ids=["rows projected", "columns projected"])
@pytest.mark.parametrize("second_moment", ["factored", "none"])
@pytest.mark.parametrize("scaled", [False, True])
def test_against_a_reference_that_writes_projections_out(
    shape: tuple[int, int], second_moment: Any, scaled: bool
) -> None:
    options = FloraOptions(rank=4, kappa=3, second_moment=second_moment, scale_parameter=scaled, clip_threshold=0.5)
    weight = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    wide = shape[0] < shape[1]
    expected = weight.detach().clone()
    reference = expected.T if wide else expected  # the projected side is its last
    moment, rows_mean, columns_mean = None, torch.zeros(reference.shape[0]), torch.zeros(reference.shape[1])
    optimizer = Flora([weight], lr=0.1, weight_decay=0.2, options=options)
    for step in range(1, 9):
        gradient = torch.randn(shape, dtype=torch.float64)
        weight.grad = gradient.clone()
        with written_down() as drawn:
            optimizer.step()
        by_interval = {int(names[2]): p for names, p in drawn.items()}
        update = gradient.T if wide else gradient
        if second_moment == "factored":
            stays = 1 - step**-0.8
            rows_mean = stays * rows_mean + (1 - stays) * (update**2).mean(1)
            columns_mean = stays * columns_mean + (1 - stays) * (update**2).mean(0)
            update = update / (rows_mean.outer(columns_mean) / rows_mean.mean()).sqrt()
        old = by_interval[(step - 1) // 3]
        new = by_interval[step // 3]
        assert old.shape == (4, 12)
        moment = torch.zeros(20, 4, dtype=torch.float64) if moment is None else moment
        newest, update = update, 0.9 * moment @ old + 0.1 * update
        moment = 0.9 * (moment @ old @ new.T if new is not old else moment) + 0.1 * newest @ new.T
        update = update / max(1.0, (update**2).mean().sqrt() / 0.5)
        rate = 0.1 * (max(1e-3, (reference**2).mean().sqrt()) if scaled else 1.0)
        reference -= rate * update + rate * 0.2 * reference
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", [0, 1])
def test_expanding_what_was_compressed_is_right_on_average(side: int) -> None:
    matrix = torch.randn(6, 9)
    optimizer = Flora([torch.empty(12, 16)], options=FloraOptions(rank=8))
    draws = 4000
    mean = torch.zeros_like(matrix)
    for number in range(draws):
        projection = flora._draw(matrix, side, optimizer.param_groups[0], "test", number)
        mean += expand(compress(matrix, projection, side), projection, side) / draws
    error = (mean - matrix).square().mean().sqrt() / matrix.square().mean().sqrt()
    assert error < 3 * math.sqrt(matrix.shape[side] / 8 / draws)


@pytest.mark.parametrize("side", [0, 1])
def test_carrying_over_is_expanding_and_compressing(side: int) -> None:
    last, new = torch.randn(4, 9), torch.randn(4, 9)
    compressed = torch.randn(7, 4) if side else torch.randn(4, 7)
    torch.testing.assert_close(
        carry(compressed, last, new, side), compress(expand(compressed, last, side), new, side), rtol=1e-5, atol=1e-5
    )


def test_projections_last_as_long_as_they_should() -> None:
    weights = [nn.Parameter(torch.randn(8, 8)) for _ in range(2)]
    optimizer = Flora(weights, options=SMALL)
    with written_down() as drawn:
        for _ in range(7):
            with optimizer.accumulating():
                (weights[0].square().sum() + weights[1].square().sum()).backward()
            optimizer.step()
    assert {names for names in drawn if names[0] == "momentum"} == {
        ("momentum", stream, interval) for stream in (0, 1) for interval in (0, 1, 2)
    }
    assert {names for names in drawn if names[0] == "sum"} == {("sum", s, step) for s in (0, 1) for step in range(7)}
    different = list(drawn.values())
    assert not any(torch.equal(one, two) for i, one in enumerate(different) for two in different[:i])


def test_accumulating_compressed_is_compressing_the_sum() -> None:
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 9))
    batches = torch.randn(3, 5, 12)
    optimizer = Flora(model.parameters(), options=SMALL)
    for batch in batches:
        model(batch).square().sum().backward()
    whole = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    with written_down() as drawn:
        for batch in batches:
            with optimizer.accumulating():
                model(batch).square().sum().backward()
            assert model[0].weight.grad is None and model[2].weight.grad is None
    for stream, (name, side) in enumerate({"0.weight": 1, "2.weight": 0}.items()):
        expected = compress(whole[name], drawn["sum", stream, 0], side)  # type: ignore[arg-type]
        torch.testing.assert_close(optimizer.state[model.get_parameter(name)]["sum"], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model[0].bias.grad, whole["0.bias"])
    optimizer.step()
    assert not any("sum" in state for state in optimizer.state.values())


def test_clipping_takes_the_norm_of_what_is_kept() -> None:
    weight, bias = nn.Parameter(torch.zeros(64, 48)), nn.Parameter(torch.zeros(64))
    optimizer = Flora([weight, bias], options=FloraOptions(rank=16))
    scale = torch.randn(64, 48)
    with optimizer.accumulating():
        ((weight * scale).sum() + 3 * bias.sum()).backward()
    kept = optimizer.state[weight]["sum"]
    expected = math.sqrt(float(kept.square().sum() + 9 * 64))
    assert float(optimizer.clip_norm(math.inf)) == pytest.approx(expected, rel=1e-5)
    assert expected == pytest.approx(math.sqrt(float(scale.square().sum()) + 9 * 64), rel=0.1)
    optimizer.clip_norm(2.0)
    assert bias.grad is not None
    assert float((kept.square().sum() + bias.grad.square().sum()).sqrt()) == pytest.approx(2.0, rel=1e-4)


def test_what_is_not_a_matrix_is_stepped_as_by_adamw() -> None:
    shapes = [(7,), (3, 4, 5), (3, 40), ()]
    start = [torch.randn(shape) for shape in shapes]
    ours, theirs = ([nn.Parameter(tensor.clone()) for tensor in start] for _ in range(2))
    options = FloraOptions(rank=3)  # as long as the shorter side of the matrix
    mine = Flora(ours, lr=0.1, weight_decay=0.2, options=options)
    other = torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.2)
    for _ in range(4):
        for one, two in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            two.grad = one.grad.clone()
        mine.step()
        other.step()
    assert all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("plan", "accumulation", "stop"),
    slow_but(
        [("mixed", 1, 6), ("freezing", 2, 4)], [("all", 2, 4), ("mixed", 1, 6), ("freezing", 2, 4), ("thawing", 1, 6)]
    ),
)
def test_killed_and_resumed_is_never_killed(tmp_path: Path, plan: str, accumulation: int, stop: int) -> None:
    """Projections of three steps change at 3 and 6, plans at 4; the last checkpoint is that of step 2 or 4."""

    def made(folder: str) -> Trainer:
        chosen: Any = {"mixed": MIXED, "freezing": Steps(FREEZING), "thawing": Steps(THAWING)}.get(plan, plan)
        return trainer(tmp_path / folder, chosen, gradient_accumulation_steps=accumulation, save_steps=2, max_steps=7)

    whole = made("whole")
    whole.train()
    killed = made("killed")
    killed.add_callback(StopAt(stop))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = made("killed")
    resumed.train(resume_from_checkpoint=True)
    assert same(whole, resumed)


def test_a_plan_that_freezes_frees_the_state(tmp_path: Path) -> None:
    made = trainer(tmp_path, Steps(FREEZING), save_strategy="no")
    made.train()
    trained = {id(parameter) for parameter in made.model.parameters() if parameter.requires_grad}
    assert {id(parameter) for parameter in made._bare_optimizer().state} == trained


@pytest.mark.parametrize("plan", ["all", "bot50", "lora", "rows"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("beta1", "second_moment"), [(0.9, "factored"), (0.9, "none"), (0.0, "factored")])
def test_what_it_keeps_is_what_was_predicted(plan: str, accumulation: int, beta1: float, second_moment: Any) -> None:
    model = tiny("llama")
    anatomy = find_anatomy(model)
    chosen = Plan(blocks=(Partial(rows=0.3), *[Full()] * 3)) if plan == "rows" else make_plan(model, plan)
    apply(chosen, model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options = FloraOptions(rank=4, beta1=beta1, second_moment=second_moment)
    optimizer = Flora(trained, options=options)
    workload = Workload(optim="flora", optim_args=options, gradient_accumulation_steps=accumulation)
    predicted = memory(chosen, anatomy, workload)

    with optimizer.accumulating() if accumulation > 1 else nullcontext():
        model(**batch_for(model)).loss.backward()
    largest = 4 * max(parameter.numel() for parameter in trained)
    sums = sum(state["sum"].nbytes for state in optimizer.state.values() if "sum" in state)
    gradients = sum(parameter.grad.nbytes for parameter in trained if parameter.grad is not None)
    assert predicted.gradients == sums + gradients + (largest if accumulation > 1 else 0)
    optimizer.step()
    kept = [
        value.nbytes
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, Tensor) and key != "step"
    ]
    assert predicted.optimizer == sum(kept)


def test_a_matrix_keeps_rank_times_the_other_side() -> None:
    weight = nn.Parameter(torch.randn(48, 100))
    for side, numbers in (("smaller", 8 * 100), ("larger", 8 * 48)):
        optimizer = Flora([weight], options=FloraOptions(rank=8, side=side, second_moment="none"))
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        assert optimizer.state[weight]["momentum"].numel() == numbers
        assert set(optimizer.state[weight]) == {"stream", "step", "momentum"}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("precision", slow_but([{}], [{}, {"bf16": True}]), ids=["float32", "bfloat16"])
def test_the_loss_falls(tmp_path: Path, accumulation: int, precision: dict[str, Any]) -> None:
    options = {"max_steps": 25, "save_strategy": "no", "learning_rate": 3e-3, "lr_scheduler_type": "constant"}
    batches = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 4 // accumulation}
    made = trainer(tmp_path, flora_options=FloraOptions(rank=8, kappa=10), **batches, **options, **precision)
    made.train_dataset = made.train_dataset[:4]
    made.train()
    logged = [entry for entry in made.state.log_history if "loss" in entry]
    assert logged[-1]["loss"] < 0.8 * logged[0]["loss"]
    assert all(entry["grad_norm"] > 0 for entry in logged)
    states = made._bare_optimizer().state.values()
    assert all(
        value.dtype == torch.float32 for state in states for value in state.values() if isinstance(value, Tensor)
    )


def test_stepped_in_backward_it_gives_the_same_weights(tmp_path: Path) -> None:
    options = {"max_steps": 4, "save_strategy": "no", "max_grad_norm": 0.0}
    for plan in ("all", MIXED):
        after = trainer(tmp_path, plan, **options)
        after.train()
        inside = trainer(tmp_path, plan, inside=True, **options)
        inside.train()
        assert same(after, inside)


def test_a_sum_that_is_broken_off_is_forgotten() -> None:
    weight = nn.Parameter(torch.randn(8, 8))
    optimizer = Flora([weight], options=SMALL)
    with pytest.raises(KeyboardInterrupt), optimizer.accumulating():
        weight.square().sum().backward()
        raise KeyboardInterrupt
    assert "sum" not in optimizer.state[weight]
    weight.square().sum().backward()
    assert weight.grad is not None, "the hooks are gone"


def test_float16_with_accumulation_is_refused(tmp_path: Path) -> None:
    given = arguments(tmp_path, gradient_accumulation_steps=2)
    given.fp16 = True
    model = tiny("llama")
    with pytest.raises(ConfigError, match=r"optim: flora .* use bf16=true"):
        Trainer(model, given, plan=make_plan(model, "all"), optimizer_cls_and_kwargs=(Flora, {}))
