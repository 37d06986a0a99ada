"""Every kind of rotary positions of transformers: blocks are found, plans are made, cached training is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from command_line import frostline
from frostline.anatomy import find_anatomy, skeleton
from frostline.core.errors import UserError
from frostline.hooks import zero_tensors
from frostline.run import RunConfig, inspect_model, train
from grids import slow_but
from tiny_files import WORDS, write_model

WINDOW = 16
"""Positions of the training before longer ones were added, where a kind has them."""
LONG = {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0], "factor": 4.0}
SCALED = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": WINDOW},
    "longrope": {**LONG, "original_max_position_embeddings": WINDOW},
    "llama3": {**SCALED, "original_max_position_embeddings": WINDOW},
    "proportional": {},
}


def config_of(kind: str, model_type: str = "llama") -> Any:
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 64, "vocab_size": 128, "max_position_embeddings": 64}
    sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if model_type == "phi3":
        sizes["original_max_position_embeddings"] = WINDOW
    rope = {"rope_type": kind, "rope_theta": 100.0, **KINDS[kind]}
    return AutoConfig.for_model(model_type, **sizes, rope_parameters=rope)


def write(folder: Path, kind: str, model_type: str = "llama") -> Path:
    write_model(folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config_of(kind, model_type)).save_pretrained(folder)
    return folder


def write_texts(path: Path, longest: int) -> Path:
    texts = [" ".join(WORDS[(i * 7 + j * 3) % 8] for j in range(3 + i * 5 % (longest - 3))) for i in range(16)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def losses(model: Path, texts: Path, out: Path, **options: Any) -> tuple[list[float], tuple[str, ...]]:
    given = {"model": str(model), "task": str(texts), "strategy": "bot50", "out": str(out), "max_steps": 6}
    given |= {"learning_rate": 1e-2, "logging_steps": 1, "per_device_train_batch_size": 4, "max_length": 48}
    record = train(RunConfig(**{**given, "bf16": False, "data": {"eval": str(texts)}, **options}))
    assert record.metrics is not None
    return [entry["loss"] for entry in record.metrics.history if "loss" in entry], record.notices


def test_every_kind_of_transformers_is_here() -> None:
    assert set(KINDS) == {"default", *ROPE_INIT_FUNCTIONS}


ALL = [*(("llama", kind) for kind in KINDS), ("phi3", "longrope")]


@pytest.mark.parametrize(
    ("model_type", "kind"), slow_but([("llama", "dynamic"), ("llama", "llama3"), ("phi3", "longrope")], ALL)
)
def test_blocks_are_found_and_cached_training_is_the_same(model_type: str, kind: str, tmp_path: Path) -> None:
    config = config_of(kind, model_type)
    anatomy = find_anatomy(skeleton(config, AutoModelForCausalLM))
    assert (len(anatomy.blocks), anatomy.total_parameters) == (
        4,
        sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters()),
    )
    model, texts = write(tmp_path / "model", kind, model_type), write_texts(tmp_path / "texts.jsonl", WINDOW - 2)
    assert inspect_model(str(model)).blocks == anatomy.blocks
    assert frostline("plan", model, "--strategy", "bot50").status == 0
    plain, _ = losses(model, texts, tmp_path / "plain", activation_cache="off")
    for name, options in {"cached": {"activation_cache": "on"}, "streamed": {"streaming": True}}.items():
        found, _ = losses(model, texts, tmp_path / name, **options)
        assert found == pytest.approx(plain, abs=1e-6), name
    assert frostline("evaluate", tmp_path / "cached").status == 0
    assert frostline("generate", model, "--prompt", "the warm day", "--max-new-tokens", "4").status == 0


@pytest.mark.parametrize("model_type", slow_but(["phi3"], ["llama", "phi3"]))
def test_longrope_beyond_its_window_depends_on_the_batch_and_is_not_cached(model_type: str, tmp_path: Path) -> None:
    """The frequencies of a batch follow from its longest row, so a row has no states of its own."""
    model, texts = write(tmp_path / "model", "longrope", model_type), write_texts(tmp_path / "texts.jsonl", 3 * WINDOW)
    plain, _ = losses(model, texts, tmp_path / "plain", activation_cache="off")
    found, notices = losses(model, texts, tmp_path / "auto")
    assert found == plain
    assert any("the states of a row at the boundary change with its padding" in notice for notice in notices)
    with pytest.raises(UserError, match="the states of a row at the boundary change with its padding"):
        losses(model, texts, tmp_path / "streamed", streaming=True)


def test_the_config_as_it_is_published(tmp_path: Path) -> None:
    """`rope_scaling` with a `type`, and the window beside it, as in Phi-3's own config.json."""
    document = config_of("longrope", "phi3").to_dict()
    del document["rope_parameters"]
    scaling = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    document |= {"rope_scaling": scaling, "rope_theta": 100.0, "original_max_position_embeddings": WINDOW}
    (tmp_path / "config.json").write_text(json.dumps(document))
    assert len(inspect_model(str(tmp_path)).blocks) == 4
    ended = frostline("plan", tmp_path, "--strategy", "bot50", "--json")
    assert ended.status == 0 and ended.document["boundary"] == 2


def test_buffers_can_be_written_where_parameters_take_no_memory() -> None:
    model = skeleton(config_of("longrope"), AutoModelForCausalLM)
    zeros = zero_tensors(model)
    for name, buffer in model.named_buffers():
        assert zeros[name].shape == buffer.shape
        zeros[name].copy_(torch.ones(buffer.shape))
        assert bool((zeros[name] == 1).all())
    assert zeros["model.embed_tokens.weight"].untyped_storage().nbytes() == 4
