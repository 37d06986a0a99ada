"""What the head reads, the projection onto it, and the similarity to the last block's output."""

from __future__ import annotations

import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import alone, collate, real, sample
from torch import Tensor

from architectures import tiny
from frostline.anatomy import find_anatomy
from frostline.core.errors import UserError
from frostline.signals import Measurement, measure, projected_residual, reads_of, shift, trace, trace_head


def states_of(model: Any, row: dict[str, Any]) -> list[Tensor]:
    """h_0 ... h_L [T, d] of one row, the last one before the final norm."""
    last: list[Tensor] = []
    block = model.get_submodule(find_anatomy(model).blocks[-1].name)

    def note(_module: Any, _inputs: Any, output: Any) -> None:
        last.append((output[0] if isinstance(output, tuple) else output)[0])

    handle = block.register_forward_hook(note)
    with torch.no_grad():
        states = model(**alone(row), output_hidden_states=True).hidden_states
    handle.remove()
    return [*(state[0] for state in states[:-1]), *last]


def place_of(model: Any, row: dict[str, Any], targets: int = 2) -> int:
    if not isinstance(row["labels"], list):
        return 0 if hasattr(model, "bert") else len(row["input_ids"]) - 1
    first = next(at for at, label in enumerate(row["labels"]) if label != -100)
    return first - 1


def rms_norm(weight: Tensor, state: Tensor, epsilon: float) -> Tensor:
    """The Jacobian [d, d] of gamma x / rms(x)."""
    rms = (state.square().mean() + epsilon).sqrt()
    width = len(state)
    return weight[:, None] * (torch.eye(width) - torch.outer(state, state) / (width * rms**2)) / rms


def expected_directions(model: Any, row: dict[str, Any], state: Tensor) -> Tensor:
    """[m, d] by hand."""
    if hasattr(model, "bert"):
        pooler = model.bert.pooler.dense
        slope = 1 - torch.tanh(pooler.weight @ state + pooler.bias).square()
        return model.classifier.weight * slope @ pooler.weight
    norm = rms_norm(model.model.norm.weight, state, model.config.rms_norm_eps)
    if hasattr(model, "score"):
        return model.score.weight @ norm
    label = row["input_ids"][place_of(model, row) + 1]
    return model.lm_head.weight[label][None] @ norm


def check(found: tuple[Measurement, ...], rows: list[list[float]]) -> None:
    for one, values in zip(found, zip(*rows, strict=True), strict=True):
        assert one.value == pytest.approx(statistics.mean(values), rel=1e-3, abs=1e-6)
        assert one.error == pytest.approx(statistics.stdev(values) / len(values) ** 0.5, rel=2e-3, abs=1e-6)


def check_model(model: Any, rows: list[dict[str, Any]]) -> None:
    grown = [parameter.requires_grad for parameter in model.parameters()]
    found = measure(model, rows, collate, signals=["final_similarity", "projected_residual"])
    assert set(found) == {"final_similarity", "projected_residual"} and torch.is_grad_enabled()
    assert [parameter.requires_grad for parameter in model.parameters()] == grown
    assert all(parameter.grad is None for parameter in model.parameters())
    cosines, lengths = [], []
    for row in rows:
        states = [state[place_of(model, row)].double() for state in states_of(model, row)]
        cosines.append([float(torch.cosine_similarity(state, states[-1], 0)) for state in states[1:]])
        with torch.no_grad():
            read = expected_directions(model, row, states[-1].float()).double()
        projection = torch.linalg.pinv(read) @ read
        lengths.append([float((projection @ (b - a)).norm()) for a, b in pairwise(states)])
    check(found["final_similarity"], cosines)
    check(found["projected_residual"], lengths)
    assert found["final_similarity"][-1].value == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "task", "classes"), [("llama", None, 2), ("llama", "classification", 3), ("bert", None, 3)]
)
def test_tiny_models(name: str, task: str | None, classes: int) -> None:
    model = tiny(name, task, **({"num_labels": classes} if (task or name == "bert") else {})).eval()
    check_model(model, sample(model))


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "base16"])
def test_real_models(name: str, models_dir: Path) -> None:
    check_model(*real(models_dir / name))


@pytest.mark.parametrize("tokens", ["first", "all"])
def test_the_trace_is_the_same_with_the_head(tokens: Any) -> None:
    model = tiny("gpt2").eval()
    anatomy = find_anatomy(model)
    batch = {name: value for name, value in collate(sample(model)).items() if name != "example_id"}
    reads = reads_of(batch, anatomy, tokens)
    states, directions = trace_head(model, anatomy, batch, reads)
    assert torch.equal(states["decoder"], trace(model, anatomy, batch, reads)["decoder"])
    assert directions.shape == (len(reads["decoder"].rows), 1, 32)


@pytest.mark.parametrize("name", ["gemma2", "opt", "gptj", "distilbert", "roberta", "modernbert", "deberta-v2"])
def test_a_number_of_the_head_changes_as_its_direction_says(name: str) -> None:
    """Central differences of the head's own numbers, through norm, pooler and caps."""
    model = tiny(name).double().eval()
    anatomy = find_anatomy(model)
    batch = {key: value for key, value in collate(sample(model)[1:2]).items() if key != "example_id"}
    (read,) = reads_of(batch, anatomy).values()
    _, directions = trace_head(model, anatomy, batch, {anatomy.blocks[0].stack: read})
    step = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-4
    block = model.get_submodule(anatomy.blocks[-1].name)

    def scores(sign: int) -> Tensor:
        def move(_module: Any, _inputs: Any, output: Any) -> Any:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[read.rows, read.positions] += sign * step
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handle = block.register_forward_hook(move)
        with torch.no_grad():
            logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        handle.remove()
        if logits.dim() == 2:
            return logits
        return logits[read.rows, read.positions, read.targets][:, None]

    slopes = (scores(1) - scores(-1)) / 2
    torch.testing.assert_close(directions @ step.float(), slopes.float(), rtol=1e-3, atol=1e-8)


def test_the_projection() -> None:
    draw = torch.Generator().manual_seed(0)
    before, after = torch.randn(2, 4, 5, 8, generator=draw)
    read = torch.randn(5, 3, 8, generator=draw)
    twice = torch.cat([read, 2 * read[:, :1] - read[:, 1:2]], dim=1)  # a dependent row adds no direction
    found = projected_residual(before, after, read)
    torch.testing.assert_close(projected_residual(before, after, twice), found)
    torch.testing.assert_close(projected_residual(before, after, 1e-3 * read), found)  # lengths do not matter
    for level in range(4):
        for token in range(5):
            basis, _ = torch.linalg.qr(read[token].T.double())
            part = basis.T @ (after - before)[level, token].double()
            assert float(found[level, token]) == pytest.approx(float(part.norm()), rel=1e-5)
    whole = torch.randn(5, 8, 8, generator=draw)
    torch.testing.assert_close(projected_residual(before, after, whole), shift(before, after))


@pytest.mark.parametrize(
    ("name", "task", "options", "reason"),
    [
        ("t5", None, {}, "the head reads the decoder's states, not the encoder's"),
        ("bert", None, {"num_labels": 40}, "the head gives 40 numbers, which read all of 32 dimensions"),
    ],
)
def test_refused_where_it_would_say_nothing(name: str, task: str | None, options: Any, reason: str) -> None:
    model = tiny(name, task, **options)
    with pytest.raises(UserError) as caught:
        measure(model, sample(model), collate, signals=["shift", "projected_residual"])
    assert str(caught.value) == f"projected_residual: {reason}: use shift"


def test_refused_where_the_head_reads_another_token() -> None:
    model = tiny("bert")
    model.classifier.weight.data.zero_()
    with pytest.raises(UserError, match="projected_residual: the head does not read the token that is measured"):
        measure(model, sample(model), collate, signals=["projected_residual"])
    rows = [{**row, "labels": 1} for row in sample(tiny("llama"))]
    with pytest.raises(UserError, match="projected_residual: a class label is not a token of the vocabulary: use sh"):
        measure(tiny("llama"), rows, collate, signals=["projected_residual"])


def test_tags_read_all_classes() -> None:
    from transformers import BertForTokenClassification

    model = BertForTokenClassification(tiny("bert", num_labels=3).config).eval()
    rows = [{**row, "labels": [1] * len(row["input_ids"])} for row in sample(tiny("bert"))]
    found = measure(model, rows, collate, signals=["projected_residual"], tokens="all")["projected_residual"]
    projection = torch.linalg.pinv(model.classifier.weight.detach()) @ model.classifier.weight.detach()
    lengths = []
    for row in rows:
        pairs = pairwise(states_of(model, row))
        lengths.append([float(((b - a) @ projection).norm(dim=-1).mean()) for a, b in pairs])
    check(found, lengths)


def test_each_stack_is_compared_with_its_own_last_block() -> None:
    model = tiny("t5").eval()
    rows = sample(model)
    found = measure(model, rows, collate, signals=["final_similarity"])["final_similarity"]
    assert [round(found[block].value or 0, 5) for block in (3, 6)] == [1, 1]
    stacks: dict[str, list[Tensor]] = {"encoder": [], "decoder": []}
    handles = [
        block.register_forward_hook(lambda _m, _i, output, stack=stack: stacks[stack].append(output[0]))
        for stack in stacks
        for block in getattr(model, stack).block
    ]
    cosines = []
    for row in rows:
        for held in stacks.values():
            held.clear()
        with torch.no_grad():
            model(**alone(row))
        encoder = [state[0, -1] for state in stacks["encoder"]]
        decoder = [state[0, 0] for state in stacks["decoder"]]
        cosines.append([float(torch.cosine_similarity(s, held[-1], 0)) for held in (encoder, decoder) for s in held])
    for handle in handles:
        handle.remove()
    check(found, cosines)
