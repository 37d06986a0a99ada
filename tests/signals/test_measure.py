"""Signals of whole models against transformers' own hidden states, row by row and without padding."""

from __future__ import annotations

import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import alone, collate, sample

from architectures import tiny
from frostline.anatomy import find_anatomy
from frostline.checkpoints import load_above
from frostline.core.errors import UserError
from frostline.signals import Measurement, WarmUp, choose_signals, measure, reads_of, token_text


def hidden_states(model: Any, row: dict[str, Any]) -> list[torch.Tensor]:
    """h_0 ... h_L [T, d] of one row, the last one normed where the model has a final norm."""
    with torch.no_grad():
        return [state[0] for state in model(**alone(row), output_hidden_states=True).hidden_states]


def check(found: tuple[Measurement, ...], rows: list[list[float]]) -> None:
    """Means and standard errors of the rows' values, one for each block."""
    for one, values in zip(found, zip(*rows, strict=True), strict=True):
        assert one.value == pytest.approx(statistics.mean(values), rel=1e-4, abs=1e-6)
        assert one.error == pytest.approx(statistics.stdev(values) / len(values) ** 0.5, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("tokens", ["first", "all"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt", "gptj"])
def test_vds_is_the_distance_to_the_labels_basis(name: str, tokens: Any) -> None:
    model = tiny(name)
    rows = sample(model)
    found = measure(model.train(), rows, collate, signals=["vds"], tokens=tokens)
    assert model.training
    model.eval()
    basis = torch.linalg.pinv(model.get_output_embeddings().weight.detach().double()).T
    norm = model.get_submodule(find_anatomy(model).final_norm[0].name.rpartition(".")[0])
    deviations = []
    for row in rows:
        states, length = hidden_states(model, row), len(row["input_ids"])
        places = [length - 3] if tokens == "first" else [length - 3, length - 2]
        levels = []
        for level, state in enumerate(states):
            with torch.no_grad():
                latent = state if level == len(states) - 1 else norm(state)  # the last is normed already
            cosines = [torch.cosine_similarity(latent[p].double(), basis[row["input_ids"][p + 1]], 0) for p in places]
            levels.append(1 - float(sum(cosines)) / len(places))
        deviations.append(levels)
    check(found["vds"], [levels[1:] for levels in deviations])
    check(found["vds_gain"], [[a - b for a, b in pairwise(d)] for d in deviations])
    assert set(found) == {"vds", "vds_gain", "vds_log_gain"}


@pytest.mark.parametrize(
    ("name", "task", "place"),
    [("llama", "causal", -3), ("llama", "classification", -1), ("bert", None, 0), ("distilbert", None, 0)],
)
def test_shift_and_similarity(name: str, task: str | None, place: int) -> None:
    model = tiny(name, task).eval()
    rows = sample(model)
    found = measure(model, rows, collate, signals=["similarity", "shift"])
    lengths, cosines = [], []
    for row in rows:
        states = [state[place] for state in hidden_states(model, row)]
        pairs = list(pairwise(states))
        lengths.append([float((b - a).norm()) for a, b in pairs])
        cosines.append([float(torch.cosine_similarity(a, b, 0)) for a, b in pairs])
    upto = 4 if name != "llama" else 3  # what transformers gives last is normed
    check(found["shift"][:upto], [values[:upto] for values in lengths])
    check(found["similarity"][:upto], [values[:upto] for values in cosines])
    check(found["shift_gain"][1:upto], [[v[i] - v[i + 1] for i in range(upto - 1)] for v in lengths])
    assert found["shift_gain"][0] == found["shift_log_gain"][0] == Measurement(None)
    assert len(found["shift"]) == len(found["shift_gain"]) == 4


def test_an_encoder_decoder_has_both_stacks() -> None:
    model = tiny("t5").eval()
    rows = sample(model)
    found = measure(model, rows, collate)
    assert set(found) == {"shift", "shift_gain", "shift_log_gain", "similarity"}
    lengths = []
    for row in rows:
        with torch.no_grad():
            out = model(**alone(row), output_hidden_states=True)
        encoder = [state[0, -1] for state in out.encoder_hidden_states]
        decoder = [state[0, 0] for state in out.decoder_hidden_states]
        lengths.append([float((s[i + 1] - s[i]).norm()) for s, n in ((encoder, 3), (decoder, 2)) for i in range(n)])
    check((*found["shift"][:3], *found["shift"][4:6]), lengths)
    assert [gain.value is None for gain in found["shift_gain"]] == [True, False, False, False, True, False, False]


def test_which_token_is_read() -> None:
    batch = collate(sample(tiny("llama"))[:2])
    batch["input_ids"], batch["attention_mask"], batch["labels"] = (
        torch.cat([batch[name], torch.full((2, 1), value)], dim=1)
        for name, value in (("input_ids", 0), ("attention_mask", 0), ("labels", -100))
    )
    decoder, classes = find_anatomy(tiny("llama")), torch.tensor([0, 1])
    reads = reads_of(batch, decoder)["decoder"]
    assert reads.positions.tolist() == [0, 6]
    assert reads.targets is not None and reads.targets.tolist() == [batch["labels"][0, 1], batch["labels"][1, 7]]
    assert reads_of(batch, decoder, "all")["decoder"].positions.tolist() == [0, 1, 6, 7]
    assert reads_of({**batch, "labels": classes}, decoder)["decoder"].positions.tolist() == [2, 8]
    left = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"].flip(1), "labels": classes}
    assert reads_of(left, decoder)["decoder"].positions.tolist() == [9, 9]
    assert reads_of(left, find_anatomy(tiny("bert")))["encoder"].positions.tolist() == [7, 1]
    assert token_text(decoder, classes=True, tokens="first") == "the last input token"


@pytest.mark.parametrize(
    ("name", "task", "reason"),
    [
        ("bert", None, "BertForSequenceClassification has no language-model head"),
        ("llama", "classification", "LlamaForSequenceClassification has no language-model head"),
        ("t5", None, "the head reads the decoder's states, not the encoder's"),
    ],
)
def test_vds_is_refused_without_a_basis(name: str, task: str | None, reason: str) -> None:
    model = tiny(name, task)
    rows, anatomy = sample(model), find_anatomy(model)
    assert choose_signals(model, anatomy, rows) == ("shift", "similarity")
    with pytest.raises(UserError) as caught:
        measure(model, rows, collate, signals=["shift", "vds"])
    assert str(caught.value) == f"vds: {reason}: use shift"


def test_a_class_is_no_token() -> None:
    rows = [{**row, "labels": 1} for row in sample(tiny("llama"))]
    with pytest.raises(UserError, match="vds: a class label is not a token of the vocabulary"):
        measure(tiny("llama"), rows, collate, signals=["vds"])


def test_a_row_without_a_label_does_not_count() -> None:
    model = tiny("llama")
    rows = sample(model)
    unlabelled = {**rows[0], "labels": [-100] * len(rows[0]["labels"])}
    assert measure(model, [*rows[1:], unlabelled], collate) == measure(model, rows[1:], collate)
    for signal in ("shift", "gradient_norm"):
        with pytest.raises(UserError, match="no row of the sample has a label to predict"):
            measure(model, [unlabelled], collate, signals=[signal])


def test_an_unknown_signal() -> None:
    with pytest.raises(UserError, match="unknown signal 'vsd': did you mean 'vds'"):
        measure(tiny("llama"), sample(tiny("llama")), collate, signals=["vsd"])


def test_bfloat16_is_near_float32() -> None:
    model = tiny("llama")
    rows = sample(model)
    exact, rounded = measure(model, rows, collate), measure(model.bfloat16(), rows, collate)
    for name in ("vds", "shift", "similarity"):
        for one, other in zip(exact[name], rounded[name], strict=True):
            assert other.value == pytest.approx(one.value, rel=0.05)


@pytest.mark.parametrize("name", ["llama", "mixtral", "bert"])
def test_block_by_block_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    rows = sample(model)
    signals = ["shift", "final_similarity", "snr", *(["vds"] if name != "bert" else [])]
    expected = measure(model, rows, collate, signals=signals)
    model.save_pretrained(tmp_path)
    part, load = load_above(str(tmp_path), type(model), model.config, 4)
    away = [parameter.is_meta for parameter in part.parameters()]
    assert sum(away) > len(away) / 2
    tensors, at_once = find_anatomy(part).tensors, 0

    def counting(names: Any) -> Any:
        nonlocal at_once
        blocks = {tensor.block for tensor in tensors if not part.get_parameter(tensor.name).is_meta}
        at_once = max(at_once, len(blocks - {None}))
        return load(names)

    assert measure(part, rows, collate, signals=signals, load=counting) == expected
    assert at_once == 0  # a block is read when no other is in memory
    assert [parameter.is_meta for parameter in part.parameters()] == away
    with pytest.raises(UserError, match="gradient_norm: gradients need the whole model in memory"):
        measure(part, rows, collate, signals=["gradient_norm"], load=load)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_weight_change_is_that_of_a_plain_loop_and_is_undone(name: str, dtype: torch.dtype) -> None:
    model = tiny(name).to(dtype)
    anatomy, rows = find_anatomy(model), sample(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    warm_up = WarmUp(steps=3, learning_rate=1e-3, batch=2)
    found = measure(model, rows, collate, signals=["weight_change"], warm_up=warm_up)["weight_change"]
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) and value.dtype == after[key].dtype for key, value in before.items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())

    plain = tiny(name).to(dtype).float().eval()
    embeddings = {tensor.name for tensor in anatomy.embeddings}
    for tensor, parameter in plain.named_parameters():
        parameter.requires_grad_(tensor not in embeddings)
    learning = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    start = {tensor: parameter.detach().clone() for tensor, parameter in plain.named_parameters()}
    optimizer = torch.optim.AdamW(learning, lr=1e-3, weight_decay=0.0)
    for first in (0, 2, 4):
        batch = {key: value for key, value in collate(rows[first : first + 2]).items() if key != "example_id"}
        plain(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for block, one in zip(anatomy.blocks, found, strict=True):
        norms = [(plain.get_parameter(t.name) - start[t.name]).norm().item() for t in block.tensors]
        assert one.value == pytest.approx(statistics.mean(norms), rel=1e-4)
        assert one.error is None


def test_rows_of_several_texts_are_refused() -> None:
    model = tiny("bert", "classification")
    rows = [{"input_ids": [[5, 6, 7], [5, 6, 8]], "labels": 0}]
    with pytest.raises(UserError, match="several texts"):
        measure(model, rows, collate)


def test_rows_whose_label_is_a_number() -> None:
    model = tiny("llama", "classification", num_labels=1)
    rows = [{**row, "labels": 0.5 * index} for index, row in enumerate(sample(model))]
    classes = [{**row, "labels": 0} for row in rows]
    found, expected = (measure(model, some, collate, signals=["shift", "similarity"]) for some in (rows, classes))
    assert found == expected
