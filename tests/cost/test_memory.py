"""Peak memory: exact parts against the model's own tensors, the whole against a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cost_cases import base16, named_plans, small

from frostline.anatomy import find_anatomy
from frostline.cost import Workload, memory
from frostline.engine import apply


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gemma"])
def test_weights_gradients_and_optimizer_are_exact(family: str, dtype: str) -> None:
    anatomy = find_anatomy(small(family))
    for name, plan in named_plans(anatomy).items():
        model = small(family).to(getattr(torch, dtype))
        apply(plan, model)
        rows = [buffer for path, buffer in model.named_buffers() if path.endswith(".frozen")]
        weights = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *rows))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        predicted = memory(plan, anatomy, Workload(frozen_dtype=dtype))
        assert predicted.weights == weights, name
        assert predicted.gradients == 4 * trained, name
        assert predicted.optimizer == 8 * trained, name


def test_sgd_has_no_state() -> None:
    anatomy = find_anatomy(small("llama"))
    assert memory(named_plans(anatomy)["all"], anatomy, Workload(optimizer="sgd")).optimizer == 0


def test_peak_is_the_largest_moment_not_the_sum() -> None:
    anatomy = find_anatomy(small("llama"))
    plan = named_plans(anatomy)["all"]
    many, one = (memory(plan, anatomy, Workload(batch=batch, length=16)) for batch in (64, 1))
    assert many.peak == many.weights + many.optimizer + many.activations + many.logits
    assert one.peak < one.weights + one.optimizer + one.gradients + one.activations + one.logits
    assert one.peak >= one.weights + one.optimizer + one.gradients


def test_accumulated_gradients_stay() -> None:
    anatomy = find_anatomy(small("llama"))
    plan = named_plans(anatomy)["all"]
    once, twice = (memory(plan, anatomy, Workload(accumulation=n)) for n in (1, 2))
    assert twice.peak == once.peak + once.gradients


def test_checkpointing_keeps_one_block_at_a_time() -> None:
    anatomy = find_anatomy(small("llama"))
    plans = named_plans(anatomy)
    for name in ("all", "bot50"):
        plain, saving = (memory(plans[name], anatomy, Workload(checkpointing=flag)) for flag in (False, True))
        assert saving.activations < plain.activations
        assert saving.peak < plain.peak
    plain, saving = (memory(plans["head"], anatomy, Workload(checkpointing=flag)) for flag in (False, True))
    assert plain == saving


def test_less_trained_takes_less() -> None:
    anatomy = find_anatomy(small("llama"))
    plans = named_plans(anatomy)
    peaks = [memory(plans[name], anatomy, Workload()).peak for name in ("all", "bot25", "bot50", "bot75", "head")]
    assert peaks == sorted(peaks, reverse=True)


MEASURE = """
import ctypes, json, sys
ctypes.CDLL("libc.so.6").mallopt(-3, 65536)  # M_MMAP_THRESHOLD: what is freed goes back at once
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import torch
from cost_cases import base16, named_plans, small, whole_batch
from frostline.anatomy import find_anatomy
from frostline.engine import apply

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def train(model, length, steps):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    for _ in range(steps):
        model(**whole_batch(model, 8, length)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

torch.set_num_threads(1)
train(small("llama"), 8, 1)
start = status("VmRSS")
model = base16(Path(sys.argv[3]), "sdpa")
for parameter in model.parameters():
    parameter.data = parameter.data.clone()
apply(named_plans(find_anatomy(model))[sys.argv[4]], model)
model.train()
if sys.argv[5] == "True":
    model.activation_checkpointing_enable({"use_reentrant": False})
Path("/proc/self/clear_refs").write_text("5")
train(model, 128, 2)
print(json.dumps(status("VmHWM") - start))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("name", "checkpointing"), [("bot50", False), ("all", True)])
def test_measured_in_a_fresh_process(models_dir: Path, name: str, checkpointing: bool) -> None:
    here = Path(__file__).resolve().parent
    arguments = [str(here), str(here.parent), str(models_dir), name, str(checkpointing)]
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    anatomy = find_anatomy(base16(models_dir))
    workload = Workload(batch=8, length=128, checkpointing=checkpointing)
    predicted = memory(named_plans(anatomy)[name], anatomy, workload).peak
    assert predicted == pytest.approx(json.loads(done.stdout.splitlines()[-1]), rel=0.1)
