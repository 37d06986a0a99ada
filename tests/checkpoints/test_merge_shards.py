"""A checkpoint merged part by part is the one merged whole, and no more than one part is ever in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from architectures import AUTO_CLASSES, batch_for, natural_task, tiny
from frostline.checkpoints import _parts, load_config, load_part, merge, save_delta
from frostline.core.errors import CheckpointError, FrostlineError
from frostline.plan import Frozen, Full, Lora, Partial, Plan
from frostline.run import make_plan
from frostline.surgery import apply

# Checkpoints whose names or forms are not the model's (experts, NeoX's head), tied heads, shared tables, each kind.
NAMES = ["llama", "gemma", "gpt2", "gpt_neox", "gptj", "opt", "mixtral", "qwen3_moe", "bert", "modernbert", "t5"]
THIRD = 100_000
"""Bytes of a part such that the tiny models come in about three."""

PLANS: dict[str, tuple[str, Plan | str]] = {
    "head-untied": ("llama", "head"),
    "lora": ("llama", "lora"),
    "lora-gpt2": ("gpt2", "lora"),
    "mixed": ("gpt_neox", Plan(blocks=(Frozen(), Lora(r=2), Partial(rows=0.5), Full()))),
    "int50": ("mixtral", "int50"),
}


def a_run(folder: Path, name: str, strategy: Plan | str = "bot50", dtype: torch.dtype = torch.float32) -> Path:
    """A run on a base that lies in several shards, whose trained tensors have moved."""
    tied = True if strategy == "head" else None
    tiny(name, tied=tied).to(dtype).save_pretrained(folder / "base", max_shard_size="30KB")
    model = AUTO_CLASSES[natural_task(name)].from_pretrained(folder / "base", dtype="auto")
    apply(make_plan(model, strategy) if isinstance(strategy, str) else strategy, model, seed=3)
    move(model)
    save_delta(model, folder / "run")
    return folder / "run"


def move(model: Any) -> None:
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.1)


def merged(run: Path, out: Path, part_bytes: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Path:
    monkeypatch.setattr(_parts, "PART_BYTES", part_bytes)
    return merge(run, out, **options).folder


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        own = load_file(file)
        assert not found.keys() & own.keys()
        found |= own
    return found


def same_checkpoint(parts: Path, whole: Path) -> None:
    ours, theirs = tensors_in(parts), tensors_in(whole)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == theirs.keys()
    assert set(index["weight_map"].values()) == {file.name for file in parts.glob("*.safetensors")}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in theirs.values())
    assert (parts / "config.json").read_text() == (whole / "config.json").read_text()
    others = {file.name for file in parts.iterdir()} - {file.name for file in whole.iterdir()}
    assert others == {"model.safetensors.index.json", *index["weight_map"].values()}


@pytest.mark.parametrize("name", NAMES)
def test_parts_make_the_same_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    run = a_run(tmp_path, name)
    whole = merged(run, tmp_path / "whole", 2**29, monkeypatch)
    assert (whole / "model.safetensors").is_file()
    parts = merged(run, tmp_path / "parts", THIRD, monkeypatch)
    same_checkpoint(parts, whole)
    loaded = [AUTO_CLASSES[natural_task(name)].from_pretrained(place).eval() for place in (parts, whole)]
    with torch.no_grad():
        assert torch.equal(*(model(**batch_for(model)).logits for model in loaded))


@pytest.mark.parametrize("case", PLANS)
def test_parts_fold_in_what_every_mode_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    run = a_run(tmp_path, *PLANS[case])
    whole = merged(run, tmp_path / "whole", 2**29, monkeypatch)
    same_checkpoint(merged(run, tmp_path / "parts", THIRD, monkeypatch), whole)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_parts_of_a_base_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str | None) -> None:
    run = a_run(tmp_path, "llama", dtype=torch.bfloat16)
    whole = merged(run, tmp_path / "whole", 2**29, monkeypatch, dtype=dtype)
    parts = merged(run, tmp_path / "parts", THIRD, monkeypatch, dtype=dtype)
    same_checkpoint(parts, whole)
    assert {tensor.dtype for tensor in tensors_in(parts).values()} == {torch.bfloat16 if dtype else torch.float32}
    assert load_config(str(parts)).dtype == (torch.bfloat16 if dtype else torch.float32)


def test_a_head_that_no_checkpoint_holds_and_no_plan_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny("bert", task="masked").save_pretrained(tmp_path / "base")
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    apply(Plan(blocks=(Frozen(), Frozen(), Frozen(), Full()), head=Frozen()), model, seed=5)
    move(model)
    save_delta(model, tmp_path / "run")
    parts = tensors_in(merged(tmp_path / "run", tmp_path / "parts", THIRD, monkeypatch))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in model.named_parameters())


def test_one_part_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path, "mixtral", "bot75")
    loaded: list[dict[str, int]] = []

    def noted(*given: Any) -> Any:
        part = load_part(*given)
        loaded.append({name: tensor.nbytes for name, tensor in part.named_parameters() if not tensor.is_meta})
        return part

    monkeypatch.setattr("frostline.checkpoints._merge.load_part", noted)
    limit = 120_000
    merged(run, tmp_path / "parts", limit, monkeypatch)
    names = [name for part in loaded for name in part]
    assert len(loaded) > 2 and len(names) == len(set(names))
    assert set(names) == {name for name, _ in tiny("mixtral").named_parameters()}
    assert all(sum(part.values()) <= limit for part in loaded)


def test_another_base_is_refused_though_only_its_last_block_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path, "llama")
    other = tiny("llama")
    with torch.no_grad():
        other.model.layers[3].mlp.up_proj.weight[0, 0] += 1e-3
    other.save_pretrained(tmp_path / "base", max_shard_size="30KB")
    with pytest.raises(CheckpointError, match=r"1 of \d+ tensors differ, first model.layers.3.mlp.up_proj.weight"):
        merged(run, tmp_path / "parts", THIRD, monkeypatch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run"], "nothing is half-written"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path, "llama")
    add = _parts.Shards.add

    def full(self: Any, model: Any) -> None:
        if len(self._files) == 2:
            raise OSError(28, "No space left on device")
        add(self, model)

    monkeypatch.setattr(_parts.Shards, "add", full)
    with pytest.raises(FrostlineError, match="no space left"):
        merged(run, tmp_path / "parts", THIRD, monkeypatch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run"]
