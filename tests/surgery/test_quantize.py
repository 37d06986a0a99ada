"""Frozen matrices in 8 and 4 bits: the model with those matrices quantized, its gradients, its delta, its refusals."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from architectures import batch_for, tiny
from cache_cases import StopAt, arguments, collate, rows_for
from frostline.checkpoints import load, trained_tensors
from frostline.core.errors import ConfigError, UserError
from frostline.engine import Trainer
from frostline.plan import Frozen, Full, Lora, Plan
from frostline.run import RunConfig, make_plan, read_config, train
from frostline.surgery import apply, quantize_frozen
from frostline.surgery._quantize import Bits, QuantizedLinear

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


def lora_everywhere(blocks: int) -> Plan:
    return Plan(blocks=(Lora(targets="all", dropout=0.0),) * blocks)


def gradients(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("name", "blocks"), [("llama", 4), ("gpt2", 4), ("opt", 4), ("bert", 4), ("mixtral", 4), ("t5", 7)]
)
def test_it_is_the_model_with_its_frozen_matrices_quantized(name: str, blocks: int, bits: Bits) -> None:
    models = [tiny(name, tied=False) for _ in range(2)]
    for model in models:
        applied = apply(lora_everywhere(blocks), model)
    quantized, plain = models
    report = quantize_frozen(quantized, applied.anatomy, bits)
    layers = {n: m for n, m in quantized.named_modules() if isinstance(m, QuantizedLinear)}
    assert len(layers) == report.matrices > 0
    assert all(name.endswith(".base_layer") for name in layers)
    for path, layer in layers.items():
        module: Any = plain.get_submodule(path)
        own = module.weight
        new = layer.weight.T if isinstance(module, Conv1D) else layer.weight
        error = (new - own).norm() / own.norm()
        assert error < (0.01 if bits == 8 else 0.12), path
        own.data = new.clone()
    with torch.no_grad():
        quantized.eval()(**batch_for(quantized))  # what an evaluation leaves behind must not matter
    loss, got = gradients(quantized.train(), batch_for(quantized))
    expected_loss, expected = gradients(plain.train(), batch_for(plain))
    torch.testing.assert_close(loss, expected_loss, atol=0, rtol=1e-5)
    assert got.keys() == expected.keys()
    for key, gradient in got.items():
        torch.testing.assert_close(gradient, expected[key], atol=1e-6, rtol=1e-3, msg=key)


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "share"), [(8, 0.27), (4, 0.16)])
def test_bytes_are_those_held(bits: Bits, share: float) -> None:
    model = tiny("llama", hidden_size=128, intermediate_size=512)
    applied = apply(make_plan(model, "bot50"), model)
    frozen = [f"{block.name}." for block in applied.anatomy.blocks[:2]]
    linears = [p for n, p in model.named_parameters() if n.startswith(tuple(frozen)) and p.ndim == 2]
    report = quantize_frozen(model, applied.anatomy, bits)
    assert report.matrices == len(linears) == 14
    assert report.bytes_before == sum(p.nbytes for p in linears)
    assert report.bytes_after < share * report.bytes_before
    assert not any(p.ndim == 2 for n, p in model.named_parameters() if n.startswith(tuple(frozen)))
    assert report.notice.startswith(f"14 frozen matrices are held in {bits} bits")


@needs_bitsandbytes
def test_under_autocast_over_a_bfloat16_base() -> None:
    model = tiny("llama").to(torch.bfloat16)
    applied = apply(Plan(blocks=(Frozen(), Lora(dropout=0.0), Full(), Full())), model)
    quantize_frozen(model, applied.anatomy, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, got = gradients(model.train(), batch_for(model))
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in got.values())
    assert got.keys() == {n for n, p in model.named_parameters() if p.requires_grad}


@needs_bitsandbytes
def test_nothing_to_round_is_refused() -> None:
    model = tiny("llama")
    applied = apply(make_plan(model, "all"), model)
    with pytest.raises(ConfigError, match="frozen_bits: the plan freezes no matrix"):
        quantize_frozen(model, applied.anatomy, 8)


def test_without_bitsandbytes_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    model = tiny("llama")
    applied = apply(make_plan(model, "bot50"), model)
    with pytest.raises(
        ConfigError, match=r"^frozen_bits needs bitsandbytes: use pip install 'frostline\[quantized\]'$"
    ):
        quantize_frozen(model, applied.anatomy, 8)


@needs_bitsandbytes
def test_killed_and_resumed_is_never_killed(tmp_path: Path) -> None:
    def made(folder: str) -> Trainer:
        model = tiny("llama", dropout=0.1)
        plan = Plan(blocks=(Frozen(), Lora(), Lora(), Full()))
        options = {"optim": "adamw_torch_fused", "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 3}
        trainer = Trainer(
            model,
            arguments(tmp_path / folder, **options),
            plan=plan,
            train_dataset=rows_for(model),
            data_collator=collate,
            activation_cache="off",
        )
        quantize_frozen(model, trainer.applied.anatomy, 4)
        return trainer

    whole = made("whole")
    whole.train()
    killed = made("killed")
    killed.add_callback(StopAt(5))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = made("killed")
    resumed.train(resume_from_checkpoint=True)
    got = trained_tensors(resumed.model)
    assert all(torch.equal(tensor, got[name]) for name, tensor in trained_tensors(whole.model).items())


def config(folder: Path, models_dir: Path, *settings: str) -> RunConfig:
    (folder / "rows.jsonl").write_text("".join(f'{{"text": "Tom saw {i} dogs"}}\n' for i in range(40)))
    given = [
        "max_steps=4",
        "per_device_train_batch_size=4",
        "threads=1",
        "learning_rate=1e-3",
        *settings,
    ]
    places = {"task": str(folder / "rows.jsonl"), "out": str(folder / "run")}
    return read_config(None, given, model=str(models_dir / "stories260K"), **places)


@needs_bitsandbytes
@pytest.mark.parametrize("strategy", ["bot50", "lora"])
def test_a_run_says_so_and_its_delta_belongs_to_the_base_that_is_not_quantized(
    tmp_path: Path, models_dir: Path, strategy: str
) -> None:
    record = train(config(tmp_path, models_dir, "frozen_bits=4", f"strategy={strategy}"))
    assert any("held in 4 bits" in notice for notice in record.notices)
    assert record.metrics is not None and record.metrics.after["loss"] < record.metrics.before["loss"]
    model = load(tmp_path / "run")
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())


def test_quantized_blocks_and_an_activation_cache_do_not_go_together(tmp_path: Path, models_dir: Path) -> None:
    for other in ("activation_cache=on", "streaming=true"):
        with pytest.raises(UserError, match="frozen_bits: quantized blocks stay in memory"):
            train(config(tmp_path, models_dir, "frozen_bits=8", other))
    assert not (tmp_path / "run").exists()
