"""Packed batches: loss and gradients of the padded ones, or a refusal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, BloomConfig

from architectures import decoder_names, tiny
from frostline.core.errors import UnsupportedModel
from frostline.hooks import packed_lengths
from frostline.loss_positions import pack_rows
from frostline.plan import BlockMode, Frozen, Full, Lora, Plan
from frostline.surgery import apply
from frostline.tasks import PackingCollator


def encoded(lengths: tuple[int, ...] = (5, 9, 2, 12, 7), seed: int = 0) -> list[dict[str, Any]]:
    """Rows as tasks encode them; the first third of each has no label."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i, length in enumerate(lengths):
        ids = torch.randint(3, 128, (length,), generator=generator).tolist()
        prompt = length // 3
        made.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:], "example_id": f"train:{i}"})
    return made


def padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    def pad(name: str, value: int) -> torch.Tensor:
        sequences = [torch.tensor(row[name]) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value)

    mask = (pad("labels", -1) != -1).long()
    return {"input_ids": pad("input_ids", 0), "labels": pad("labels", -100), "attention_mask": mask}


def loss_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_a_packed_batch_names_its_rows() -> None:
    batch = PackingCollator(keep_ids=True)(encoded((3, 1, 4)))
    assert batch["input_ids"].shape == batch["labels"].shape == (1, 8)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1, 2, 3]]
    assert batch["row_starts"].tolist() == [0, 3, 4]
    assert batch["labels"][0, [0, 3, 4]].tolist() == [-100] * 3
    assert batch["example_id"] == ["train:0", "train:1", "train:2"]
    assert set(PackingCollator()(encoded())) == {"input_ids", "labels", "position_ids"}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", decoder_names)
def test_loss_and_gradients_are_those_of_the_padded_batch(name: str, attention: str) -> None:
    if (name, attention) == ("gemma2", "sdpa"):
        pytest.skip("Gemma 2 caps its attention scores, which sdpa cannot")
    model = tiny(name)
    model.set_attn_implementation(attention)
    rows = encoded()
    pack_rows(model, rows, PackingCollator())
    assert all(p.grad is None for p in model.parameters())
    loss, gradients = loss_and_gradients(model, PackingCollator()(rows))
    expected_loss, expected = loss_and_gradients(model, padded(rows))
    torch.testing.assert_close(loss, expected_loss, atol=0, rtol=1e-5)
    assert gradients.keys() == expected.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[key], atol=1e-6, rtol=1e-3, msg=key)


@pytest.mark.parametrize("mode", [Full(), Lora(targets="all", dropout=0.0)])
def test_under_a_plan_with_checkpointing_and_autocast(mode: BlockMode) -> None:
    model = tiny("llama")
    apply(Plan(blocks=(Frozen(), Frozen(), mode, mode)), model)
    model.activation_checkpointing_enable({"use_reentrant": False})
    pack_rows(model, encoded(), PackingCollator())
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradients = loss_and_gradients(model, PackingCollator()(encoded()))
        expected_loss, expected = loss_and_gradients(model, padded(encoded()))
    torch.testing.assert_close(loss, expected_loss, atol=0, rtol=2e-2)
    away = sum((gradients[key] - value).norm() ** 2 for key, value in expected.items())
    assert (away / sum(value.norm() ** 2 for value in expected.values())) ** 0.5 < 5e-2


def test_only_packed_batches_are_split() -> None:
    ids = torch.tensor([[0, 1, 0, 1, 2]])
    assert packed_lengths({"position_ids": ids}) == [2, 3]
    assert packed_lengths({"position_ids": ids, "attention_mask": torch.ones_like(ids)}) == []
    assert packed_lengths({"position_ids": torch.arange(5)[None]}) == []
    assert packed_lengths({"position_ids": ids[:, 1:2]}) == []
    assert packed_lengths({"position_ids": ids.expand(2, -1)}) == packed_lengths({"input_ids": ids}) == []


def test_attention_costs_no_more_than_that_of_the_rows_one_by_one() -> None:
    model, rows = tiny("llama", attn_implementation="eager"), encoded((8, 8, 8, 8))

    def flops(batch: dict[str, Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            loss_and_gradients(model, batch)
        return counter.get_total_flops()

    whole = flops(PackingCollator()(rows))
    split = pack_rows(model, rows, PackingCollator())
    assert flops(PackingCollator()(rows)) == flops(padded(rows)) < whole
    split.remove()
    assert flops(PackingCollator()(rows)) == whole


def test_a_model_that_lets_rows_see_each_other_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bloom = AutoModelForCausalLM.from_config(
        BloomConfig(vocab_size=128, hidden_size=32, n_layer=2, n_head=4, use_cache=False)
    )
    message = (
        r"^packing: BloomForCausalLM does not keep packed rows apart \(it has no argument position_ids\): use pack"
    )
    with pytest.raises(UnsupportedModel, match=message):
        pack_rows(bloom, encoded(), PackingCollator())
    monkeypatch.setattr("frostline.loss_positions._packing.uses_attention_function", lambda module: False)
    with pytest.raises(UnsupportedModel, match=r"OPTForCausalLM .*\(its (loss is|gradient of) .*\): use packing=false"):
        pack_rows(tiny("opt"), encoded(), PackingCollator())
    pack_rows(tiny("llama"), encoded(), PackingCollator())  # its own mask keeps them apart
