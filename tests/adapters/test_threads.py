"""One model called from many threads, copied meanwhile: every call gives what it gives alone, and every copy too."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from architectures import batch_for, tiny
from frostline.adapters import router_statistics
from frostline.anatomy import find_anatomy
from frostline.plan import AdapterDrop, Forward, Frozen, LayerDrop, Lora, Plan, Residual
from frostline.surgery import apply
from grids import grid, slow_but
from hybrids import GATED_LORA, PARALLEL, PREFIX, SERIES, added, hybrid, stir

THREADS = 8
ADAPTERS: dict[str, list[dict[str, Any]]] = {
    "hlpt": [{"index": "0-1", **GATED_LORA}, {"index": 2, **PREFIX}, {"index": 3, **PREFIX, "gate": "output"}],
    "bottlenecks": [{"index": 0, **SERIES}, {"index": 1, **PARALLEL}, {"index": "2-3", **PREFIX, "gate": "none"}],
    "unipelt": [{"index": "1-3", "mode": "adapter", "kind": "unipelt", "r": 2, "length": 3, "bottleneck": 4}],
    "mixture": [{"index": "1-2", "mode": "adapter", "kind": "mixture", "experts": 4, "r": 2, "dropout": 0.0}],
}
Call = Callable[[Any], list[Tensor]]


def batches(count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """Rows of unequal lengths, padded on the left; batches of unequal sizes."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        ids = torch.randint(3, 128, (1 + i % 3, 4 + i % 5), generator=random)
        mask = torch.ones_like(ids)
        mask[1:, :2] = 0
        found.append({"input_ids": ids * mask, "attention_mask": mask})
    return found


def logits_of(batch: dict[str, Tensor]) -> Call:
    def call(model: Any) -> list[Tensor]:
        with torch.no_grad():
            return [model(**_for(model, batch)).logits]

    return call


def gradients_of(batch: dict[str, Tensor]) -> Call:
    def call(model: Any) -> list[Tensor]:
        logits = model(**_for(model, batch)).logits
        weighted = (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum()
        found = torch.autograd.grad(weighted, list(added(model).values()), allow_unused=True)
        return [logits.detach(), *(gradient for gradient in found if gradient is not None)]

    return call


def text_of(batch: dict[str, Tensor], beams: int) -> Call:
    def call(model: Any) -> list[Tensor]:
        return [model.generate(**batch, num_beams=beams, do_sample=False, min_new_tokens=4, max_new_tokens=4)]

    return call


def loss_of(batch: dict[str, Tensor]) -> Call:
    """The loss of a pass in training, with its gradients."""

    def call(model: Any) -> list[Tensor]:
        loss = model(**batch).loss
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return [loss.detach(), *torch.autograd.grad(loss, trained)]

    return call


def _for(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**batch, "decoder_input_ids": batch["input_ids"]} if model.config.is_encoder_decoder else batch


def serving(model: Any) -> list[Call]:
    calls: list[Call] = []
    for i, batch in enumerate(batches(12)):
        if i % 4 < 2 and model.can_generate():
            calls.append(text_of(batch, beams=3 if i % 4 else 1))
        else:
            calls.append(gradients_of(batch) if i % 4 == 2 else logits_of(batch))
    return calls


def check_threads(model: Any, calls: Sequence[Call], each: int, copies: int = 3) -> list[Any]:
    """Each of the threads makes `each` of the calls while the model is copied. Returns the copies, checked too."""
    alone = [call(model) for call in calls]
    together = threading.Barrier(THREADS + 1)

    def run(first: int) -> int:
        together.wait()
        found = (((first + i) % len(calls), calls[(first + i) % len(calls)](model)) for i in range(each))
        return sum(not same(result, alone[which]) for which, result in found)

    with ThreadPoolExecutor(THREADS) as pool:
        runs = [pool.submit(run, first) for first in range(THREADS)]
        together.wait()
        copied = [copy.deepcopy(model) for _ in range(copies)]
        assert sum(run.result() for run in runs) == 0
    for each_model in (model, *copied):
        assert all(same(call(each_model), result) for call, result in zip(calls, alone, strict=True))
    return copied


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


@pytest.mark.slow
def test_a_hundred_calls_of_each_thread_are_the_calls_alone() -> None:
    """With beams, batches of unequal length and gradients; then the same of a copy that was made meanwhile."""
    model = hybrid(tiny("llama"), ADAPTERS["hlpt"]).eval()
    copied, *_ = check_threads(model, serving(model), each=100)
    check_threads(copied, serving(copied), each=100)


@pytest.mark.parametrize(
    ("name", "adapters"),
    slow_but(
        [("opt", "bottlenecks"), ("gpt2", "unipelt"), ("gptj", "mixture")],  # hlpt: test_prefix_calls.py
        grid(["llama", "opt", "gpt2", "gptj", "bert", "t5"], list(ADAPTERS)),
    ),
)
def test_threads_get_what_each_gets_alone(name: str, adapters: str) -> None:
    if adapters == "mixture" and name in ("opt", "bert"):
        pytest.skip("no module of its own for the feed-forward")
    model = hybrid(tiny(name), ADAPTERS[adapters]).eval()
    copied, *_ = check_threads(model, serving(model), each=6)
    (call,) = [logits_of(batch) for batch in batches(1)]
    before = call(model)
    stir(copied, seed=2)
    changed = call(copied)
    assert not torch.allclose(changed[0], before[0], atol=1e-3)
    assert same(call(model), before), "the copy's adapters are its own"
    stir(model, seed=2)
    assert same(call(model), changed)


def training_batches(model: Any) -> list[Call]:
    return [loss_of(batch_for(model, batch=1 + i % 3, length=5 + i % 4, seed=i)) for i in range(6)]


def test_each_pass_in_training_has_its_own_balance_loss() -> None:
    model = hybrid(tiny("llama"), [{**ADAPTERS["mixture"][0], "balance": 0.5}]).train()
    check_threads(model, training_batches(model), each=12)
    passes = {part.passes for part in model.modules() if hasattr(part, "passes")}
    assert passes == {6 + THREADS * 12 + 6}, "the statistics count every pass of every thread"
    assert len(router_statistics(model)) == 2


@pytest.mark.parametrize(
    "forward",
    [
        Forward(residual=Residual(alpha=0.1, span=2)),
        Forward(residual=Residual(alpha=0.1, span=1), loss_weights=(0.0, 0.5, 0.25, 1.0)),
        Forward(layerdrop=LayerDrop(evaluate="every_other"), adapterdrop=AdapterDrop(evaluate=1)),
    ],
    ids=["residual", "layered", "without blocks and adapters"],
)
@pytest.mark.parametrize("name", slow_but(["llama"], ["llama", "bert"]))
def test_a_changed_forward_pass_keeps_passes_apart(name: str, forward: Forward) -> None:
    model = tiny(name)
    lora = Lora(targets="down", r=2, alpha=4, dropout=0.0, gate=True)
    blocks = (Frozen(), lora, lora, lora)
    apply(Plan(blocks=blocks, final_norm=Frozen(), head=Frozen(), forward=forward), model)
    assert len(find_anatomy(model).blocks) == len(blocks)
    stir(model)
    check_threads(model.train(), training_batches(model), each=12)
    check_threads(model.eval(), [logits_of(batch) for batch in batches(6)], each=12)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_within_a_model_disturbs_neither(training: bool) -> None:
    """Each has routers, prefixes and an interaction of its own; the inner one runs inside a block of the outer one."""
    blocks = [{**ADAPTERS["mixture"][0], "index": 1, "balance": 0.5}, {"index": "2-3", **PREFIX}]
    models = [hybrid(tiny("llama", seed=seed), blocks) for seed in (0, 1)]
    for model in models:
        model.train(training)
    outer, inner = (loss_of(batch_for(model, seed=seed)) for seed, model in enumerate(models))
    alone = [outer(models[0]), inner(models[1]), outer(models[0])]
    found: list[list[Tensor]] = []
    layer = next(module for path, module in models[0].named_modules() if path.endswith("layers.2"))
    handle = layer.register_forward_pre_hook(lambda *_: found.append(inner(models[1])))
    found.append(outer(models[0]))
    assert [same(each, expected) for each, expected in zip(found, alone[1:], strict=True)] == [True, True]
    handle.remove()
    layer.register_forward_pre_hook(lambda *_: found.append(_once(found, lambda: outer(models[0]))))
    found = []
    assert same(outer(models[0]), alone[0])


def _once(found: list[list[Tensor]], call: Callable[[], list[Tensor]]) -> list[Tensor]:
    """`call()` the first time; nothing while that call itself comes here again."""
    if found:
        return []
    found.append([])
    return call()


@pytest.mark.parametrize("name", ["llama", "gptj"])
def test_a_saved_module_comes_back_as_it_was(name: str) -> None:
    model = hybrid(tiny(name), ADAPTERS["hlpt"]).eval()
    (call,) = [logits_of(batch) for batch in batches(1)]
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert same(call(loaded), call(model))
    before = call(model)
    stir(loaded, seed=2)
    assert not same(call(loaded), before)
    assert same(call(model), before)


@pytest.mark.slow
def test_the_example_serves_right_texts() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "examples/serve_under_threads.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("30 requests in 8 threads: as alone\na copy made meanwhile: the same\n")
