"""A merge rounds once, to the dtype that is asked for, and says what of the training that loses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from architectures import tiny
from frostline.checkpoints import _parts, merge, save_delta
from frostline.core.errors import CheckpointError
from frostline.engine import Trainer
from frostline.plan import Frozen, Full, Lora, Plan
from frostline.surgery import apply
from grids import grid
from hybrids import stir

LORA = Plan(blocks=(Frozen(), Lora(targets="all"), Frozen(), Lora(r=2)), final_norm=Frozen(), head=Frozen())
LIGHT = 0.0015
"""Values of A and B that give updates of about 1e-3 of the weights: most are below half a step of bfloat16."""


def a_base(folder: Path, name: str = "llama", dtype: torch.dtype = torch.bfloat16) -> Any:
    tiny(name).to(dtype).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def a_run(folder: Path, name: str = "llama", plan: Plan = LORA) -> tuple[Path, dict[str, Tensor]]:
    """A run on a bfloat16 base, and the trained weights in float32."""
    model = a_base(folder / "base", name)
    apply(plan, model, seed=3)
    stir(model, std=LIGHT)
    save_delta(model, folder / "run")
    return folder / "run", trained_weights(model)


def trained_weights(model: Any) -> dict[str, Tensor]:
    weights = {}
    for path, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            with torch.no_grad():
                update = layer.get_delta_weight("default")
            weights[f"{path}.weight"] = layer.get_base_layer().weight.float() + update
    return weights


@pytest.mark.parametrize(("part_bytes", "name"), grid([2**29, 100_000], ["llama", "gpt2"]))
def test_the_update_is_added_in_float32_and_rounded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, part_bytes: int
) -> None:
    monkeypatch.setattr(_parts, "PART_BYTES", part_bytes)
    run, right = a_run(tmp_path, name)
    base = load_file(tmp_path / "base" / "model.safetensors")
    for dtype in (None, "float32", "bfloat16", "float16"):
        merged = merge(run, tmp_path / f"merged-{dtype}", dtype=dtype)
        wanted = getattr(torch, dtype or "float32")
        assert merged.dtype == str(wanted).removeprefix("torch.")
        tensors: dict[str, Tensor] = {}
        for file in merged.folder.glob("*.safetensors"):
            tensors |= load_file(file)
        for key, tensor in base.items():
            assert torch.equal(tensors[key], right.get(key, tensor).to(wanted)), key
        if dtype in (None, "float32"):
            assert (merged.changed, merged.lost) == (0, 0)
            continue
        pairs = [(base[key], weight) for key, weight in right.items()]
        moved = [before.float() != after for before, after in pairs]
        same = [before.to(wanted) == after.to(wanted) for before, after in pairs]
        assert merged.changed == sum(int(entries.sum()) for entries in moved)
        assert merged.lost == sum(int((m & s).sum()) for m, s in zip(moved, same, strict=True))
        assert (merged.lost / merged.changed > 0.5) == (dtype == "bfloat16")


def test_blocks_that_trained_whole_are_counted_too(tmp_path: Path) -> None:
    model = a_base(tmp_path / "base")
    apply(Plan(blocks=(Frozen(), Frozen(), Frozen(), Full()), final_norm=Frozen(), head=Frozen()), model)
    weight = model.model.layers[3].mlp.up_proj.weight
    with torch.no_grad():
        weight.add_(torch.where(torch.arange(weight.numel()).reshape(weight.shape) < 40, 1e-9, 0.0))
        weight[0, :5] += 1.0
    save_delta(model, tmp_path / "run")
    merged = merge(tmp_path / "run", tmp_path / "merged", dtype="bfloat16")
    assert 5 < merged.changed <= 40 and merged.lost == merged.changed - 5


def test_a_value_that_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    base = tiny("llama").to(torch.bfloat16)
    with torch.no_grad():
        base.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    base.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="auto")
    apply(LORA, model)
    save_delta(model, tmp_path / "run")
    with pytest.raises(
        CheckpointError, match=r"up_proj\.weight has values up to 9\.98e\+04, too large for torch\.float16"
    ):
        merge(tmp_path / "run", tmp_path / "merged", dtype="float16")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("given", [False, True], ids=["a plan", "PEFT's own"])
def test_a_trainer_saves_the_whole_model_unrounded(tmp_path: Path, given: bool) -> None:
    model = a_base(tmp_path / "base")
    if given:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]), autocast_adapter_dtype=True)
    rows = [{"input_ids": [3, 4, 5], "labels": [3, 4, 5]}]
    args = TrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True)
    trainer = Trainer(model, args, train_dataset=rows, **({} if given else {"plan": LORA}))
    stir(trainer.model, std=LIGHT)
    trainer.save_model(str(tmp_path / "whole"), whole=True)
    right = {name.removeprefix("base_model.model."): w for name, w in trained_weights(trainer.model).items()}
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    assert right and {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(torch.equal(tensors[name], weight) for name, weight in right.items())
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["dtype"] == "float32"


def test_another_base_is_named_as_such(tmp_path: Path) -> None:
    run, _ = a_run(tmp_path)
    tiny("llama", hidden_size=64, intermediate_size=32).save_pretrained(tmp_path / "wider")
    tiny("llama", seed=5).to(torch.bfloat16).save_pretrained(tmp_path / "other")
    for name, what in (("wider", "its tensors have other shapes"), ("other", "tensors differ, first")):
        with pytest.raises(CheckpointError, match=f"{what}.*: use the model that the run was trained on") as error:
            merge(run, tmp_path / "merged", base=str(tmp_path / name))
        assert str(tmp_path / "base") in str(error.value) and "this task" not in str(error.value)
    assert not (tmp_path / "merged").exists()


def test_the_folder_has_what_converters_read(tmp_path: Path, models_dir: Path) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(models_dir / "stories260K").save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(models_dir / "stories260K")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(base)
    (base / "tokenizer.model").write_bytes(b"pieces")
    model = AutoModelForCausalLM.from_pretrained(base)
    apply(Plan(blocks=(*LORA.blocks, Frozen()), final_norm=Frozen(), head=Frozen()), model)
    save_delta(model, tmp_path / "run")
    merged = merge(tmp_path / "run", tmp_path / "merged").folder
    assert (merged / "tokenizer.model").read_bytes() == b"pieces"
    for name in ("generation_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (merged / name).read_text() == (base / name).read_text(), name
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "run")  # the run's own tokenizer is another one than the base's pieces
    again = merge(tmp_path / "run", tmp_path / "again").folder
    assert not (again / "tokenizer.model").exists() and "<new>" in (again / "tokenizer.json").read_text()
