"""Masked language models: labels are at their own positions."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from samples import alone, collate, sample

from architectures import tiny
from frostline.anatomy import find_anatomy
from frostline.core.errors import UserError
from frostline.signals import loss_gradients, measure, reads_of, token_text


def masked_rows(model: Any) -> list[dict[str, Any]]:
    """Some tokens of each row labelled, the first one in every second row."""
    rows = sample(model)
    for number, row in enumerate(rows):
        row["labels"] = [
            token if (position + number) % 2 == 0 else -100 for position, token in enumerate(row["input_ids"])
        ]
    return rows


def tensors(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in collate(rows).items() if name != "example_id"}


@pytest.mark.parametrize("name", ["bert", "modernbert"])
@pytest.mark.parametrize("tokens", ["first", "all"])
def test_the_labelled_token_is_read(name: str, tokens: Any) -> None:
    model = tiny(name, "masked").eval()
    rows = masked_rows(model)
    reads = reads_of(collate(rows), find_anatomy(model), tokens)["encoder"]
    places = [[position for position, label in enumerate(row["labels"]) if label != -100] for row in rows]
    wanted = [(row, place) for row, own in enumerate(places) for place in (own if tokens == "all" else own[:1])]
    assert list(zip(reads.rows.tolist(), reads.positions.tolist(), strict=True)) == wanted
    assert reads.targets is not None and reads.targets.tolist() == [rows[row]["labels"][at] for row, at in wanted]
    text = {"first": "the first labelled token", "all": "every labelled token"}
    assert token_text(find_anatomy(model), classes=False, tokens=tokens) == text[tokens]

    lengths, cosines = [], []
    for row, own in zip(rows, places, strict=True):
        with torch.no_grad():
            before, after = (
                state[0, own if tokens == "all" else own[:1]].double()
                for state in model(**alone(row), output_hidden_states=True).hidden_states[:2]
            )
        lengths.append(float((after - before).norm(dim=-1).mean()))
        cosines.append(float(torch.cosine_similarity(before, after, dim=-1).mean()))
    found = measure(model, rows, collate, signals=["shift", "similarity"], tokens=tokens)
    assert found["shift"][0].value == pytest.approx(statistics.mean(lengths), rel=1e-5)
    assert found["similarity"][0].value == pytest.approx(statistics.mean(cosines), rel=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert", "deberta-v2"])
def test_no_basis_where_the_head_transforms_the_states(name: str) -> None:
    model = tiny(name, "masked").eval()
    rows = masked_rows(model)
    with pytest.raises(UserError, match="vds: the head changes the blocks' states by another matrix before it scores"):
        measure(model, rows, collate, signals=["vds"])
    assert "vds" not in measure(model, rows, collate)


def test_every_label_counts_in_the_gradient() -> None:
    """Of batches with unequal numbers of labels: the gradient of the mean loss of one batch of all rows."""
    model = tiny("bert", "masked").eval()
    rows = masked_rows(model)
    model.zero_grad()
    model(**tensors(rows)).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    found = loss_gradients(model, find_anatomy(model), [tensors([row]) for row in rows])
    assert found and all(torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-7) for name in found)
    only_first = {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[9, -100, -100]])}
    assert loss_gradients(model, find_anatomy(model), [only_first])
