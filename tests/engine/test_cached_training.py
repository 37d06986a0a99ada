"""Training from the activation cache is the same training, on every architecture, or it is refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from architectures import ARCHITECTURES, tiny
from cache_cases import assert_same_training, losses, streaming_trainer, trained
from frostline.anatomy import tensor_hashes
from frostline.checkpoints import load, save_delta
from grids import grid, slow_but

LONG = (
    "llama",
    "gemma2",
    "mistral",
    "qwen3",
    "gpt2",
    "gptj",
    "gpt_neox",
    "mixtral",
    "bert",
    "deberta-v2",
    "modernbert",
    "t5",
)
OPTIMIZERS = [("sgd", False), ("adamw_torch_fused", False), ("adamw_torch_fused", True)]
SHORT = [name for name in ARCHITECTURES if name not in LONG]


@pytest.mark.parametrize(
    ("name", "optim", "bf16"),
    slow_but(
        [("llama", "sgd", False), ("gpt2", "adamw_torch_fused", False), ("t5", "adamw_torch_fused", True)],
        grid(LONG, OPTIMIZERS),
    ),
)
def test_fifty_steps_are_the_same(tmp_path: Path, name: str, optim: str, bf16: bool) -> None:
    """The losses; after SGD, the weights too."""
    rate = 0.1 if optim == "sgd" else 1e-3
    options: dict[str, Any] = {"max_steps": 50, "optim": optim, "learning_rate": rate, "bf16": bf16}
    with_it, without = (trained(tmp_path, name, mode, **options) for mode in ("on", "off"))
    assert len(losses(with_it)) == 50
    assert_same_training(with_it, without, bf16)


@pytest.mark.parametrize("name", slow_but(["gemma", "qwen3_moe", "roberta"], SHORT))
def test_same_training(tmp_path: Path, name: str) -> None:
    bf16 = SHORT.index(name) % 3 == 0
    with_it, without = (trained(tmp_path, name, mode, bf16=bf16) for mode in ("on", "off"))
    assert_same_training(with_it, without, bf16)


@pytest.mark.parametrize(
    "name", slow_but(["llama", "t5"], ["llama", "mixtral", "gpt2", "bert", "t5", "gpt_neox", "deberta-v2"])
)
def test_streaming_is_the_same_training(tmp_path: Path, name: str) -> None:
    without = trained(tmp_path, name, "off", boundary=3)
    streaming = streaming_trainer(tmp_path, tiny(name), 3)
    streaming.train()
    assert losses(streaming) == pytest.approx(losses(without), abs=1e-4)
    assert streaming.applied.base == without.applied.base
    assert streaming.evaluate()["eval_loss"] == pytest.approx(without.evaluate()["eval_loss"], abs=1e-4)


def test_an_encoder_that_is_wholly_below_the_boundary_is_streamed(tmp_path: Path) -> None:
    """T5's first block makes the position bias of all others, so it is in memory while each of them runs."""
    without = trained(tmp_path, "t5", "off", boundary=4)
    streaming = streaming_trainer(tmp_path, tiny("t5"), 4)
    streaming.train()
    assert streaming.cache_report.used
    assert losses(streaming) == pytest.approx(losses(without), abs=1e-4)


def test_a_streamed_bfloat16_base_is_the_delta_s_own(tmp_path: Path) -> None:
    """The final norm is widened to train before the base's other tensors are hashed."""
    model = tiny("llama").bfloat16()
    streaming = streaming_trainer(tmp_path, model, 3, num_train_epochs=1)  # one epoch: it streams because it has to
    streaming.train()
    assert streaming.cache_report.used
    assert streaming.applied.base == tensor_hashes(model)
    save_delta(streaming.model, tmp_path / "run")
    loaded = load(tmp_path / "run")
    assert torch.equal(loaded.model.norm.weight, streaming.model.model.norm.weight)
