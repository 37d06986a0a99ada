"""What an activation cache is found by: everything its states depend on, and nothing that a forward pass did before."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

from architectures import tiny
from cache_cases import cache_trainer, rows_for, train
from frostline.bottom import row_key
from frostline.surgery import quantize_frozen


@pytest.fixture(autouse=True)
def cache_here(tmp_path: Path, own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_CACHE", str(tmp_path / "cache"))


def corrected(shift: float) -> Any:
    """A model whose routers choose experts by scores and a correction, which is a buffer of the checkpoint."""
    experts = {"moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
    config = AutoConfig.for_model(
        "glm4_moe",
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=0,
        pad_token_id=0,
        **experts,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    model.get_buffer("model.layers.0.mlp.gate.e_score_correction_bias")[0] += shift
    return model


def test_a_buffer_below_the_boundary_counts_as_a_weight(tmp_path: Path) -> None:
    train(tmp_path, corrected(0.0), "on")
    assert train(tmp_path, corrected(0.0), "on").cache_report.rows == 0
    changed = train(tmp_path, corrected(0.1), "on")
    assert changed.cache_report.used and changed.cache_report.rows == 12


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([[1, 0], [1, 1]], [[1, 1], [1, 1]]),
        ([0.5, 1.0], [0.5, 0.9]),
        ([0, 1], [0.0, 1.0]),
        ([1, 2, 3, 4], [[1, 2], [3, 4]]),
        (1, 2),
    ],
)
def test_every_feature_that_the_model_takes_is_part_of_its_row(one: Any, other: Any) -> None:
    first, second = ({"input_ids": [3, 4], "extra": extra} for extra in (one, other))
    assert row_key(first, ["input_ids", "extra"]) != row_key(second, ["input_ids", "extra"])
    assert row_key(first, ["input_ids"]) == row_key(second, ["input_ids"])


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_how_exactly_matrices_are_multiplied_counts(tmp_path: Path, precision: str) -> None:
    train(tmp_path, tiny("llama"), "on")
    backends: Any = torch.backends
    before = backends.fp32_precision
    try:
        backends.fp32_precision = precision  # what transformers' `tf32` sets
        assert cache_trainer(tmp_path, tiny("llama"), "on").session.decide().rows == 12
    finally:
        backends.fp32_precision = before


def test_a_quantized_bottom_has_no_cache(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    trainer = cache_trainer(tmp_path, tiny("llama"), "auto")
    quantize_frozen(trainer.model, trainer.applied.anatomy, 8)
    report = trainer.session.decide()
    assert not report.used and "is quantized" in report.reason


class CallsAfterKnownRows(TrainerCallback):
    """After a pass over rows that are in the cache, calls the model with others of the same shape."""

    def __init__(self, rows: list[dict[str, Any]], how: str) -> None:
        self.rows, self.how = rows, how
        self.asked: list[torch.Tensor] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        ids = torch.tensor([self.rows[0]["input_ids"]])
        other = (ids + 1) % 100 + 3
        whole = copy.deepcopy(model)  # nothing stands in for its bottom
        for asked in (model, whole):
            asked.eval()
            with torch.no_grad():
                asked(input_ids=ids, attention_mask=torch.ones_like(ids))
                if self.how == "by position":
                    output = asked(other, torch.ones_like(ids))
                elif self.how == "embedded":
                    output = asked(inputs_embeds=torch.ones(*ids.shape, 32))
                else:
                    past = asked(input_ids=ids[:, :-1], use_cache=True).past_key_values
                    output = asked(input_ids=ids[:, -1:], past_key_values=past)
            self.asked.append(output.logits)
        model.train()


@pytest.mark.parametrize("how", ["by position", "embedded", "after other tokens"])
def test_states_of_one_pass_are_never_another_s(tmp_path: Path, how: str) -> None:
    trainer = cache_trainer(tmp_path, tiny("llama"), "on", max_steps=2)
    calls = CallsAfterKnownRows(rows_for(trainer.model), how)
    trainer.add_callback(calls)
    trainer.train()
    assert len(calls.asked) == 4
    for own, copied in (calls.asked[:2], calls.asked[2:]):  # weights that lie elsewhere may multiply in another order
        torch.testing.assert_close(own, copied, atol=1e-5, rtol=0)
