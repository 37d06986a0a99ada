"""LayerDrop, AdapterDrop and UniPELT in training: against plain loops, killed and resumed, on two processes."""

from __future__ import annotations

import copy
import itertools
import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer as PlainTrainer

import frostline as fl
from architectures import tiny
from cache_cases import StopAt, arguments, collate, rows_for
from frostline.anatomy import find_anatomy
from frostline.checkpoints import trained_tensors
from frostline.core.seeding import derive_seed
from frostline.engine import Trainer
from frostline.plan import Plan
from frostline.surgery import apply
from grids import grid, slow_but
from unipelt_by_hand import bert_logits, llama_logits

STEPS = 40
OPTIMIZERS = {"sgd": {"learning_rate": 0.05}, "adamw_torch": {"learning_rate": 2e-3, "weight_decay": 0.1}}
CLOSE = {"sgd": 1e-5, "adamw_torch": 1e-3}
SEED = 11


class Recorded(Trainer):
    """Notes the batches of its steps, and their losses."""

    batches: list[dict[str, Tensor]]
    found: list[float]

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        if not hasattr(self, "batches"):
            self.batches, self.found = [], []
        self.batches.append({name: value.clone() for name, value in inputs.items()})
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.found.append(float(loss))
        return loss


def settings(folder: Path, optim: str, **options: Any) -> Any:
    given = {"max_steps": STEPS, "lr_scheduler_type": "constant", "optim": optim, "seed": SEED, **OPTIMIZERS[optim]}
    return arguments(folder, **given | options)


def trainer_of(
    folder: Path, model: Any, plan: Plan | str, optim: str = "sgd", cache: Any = "off", **options: Any
) -> Any:
    given = settings(folder, optim, **options)
    rows = rows_for(model)
    return Recorded(model, given, plan=plan, train_dataset=rows, data_collator=collate, activation_cache=cache)


def optimizer_for(optim: str, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """As transformers makes it: weight decay for matrices alone."""
    options = OPTIMIZERS[optim]
    if optim == "sgd":
        return torch.optim.SGD(parameters, lr=options["learning_rate"])
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": options["weight_decay"]},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options["learning_rate"])


def plain_loop(
    model: Any, optim: str, batches: Sequence[Any], around: Callable[[int], Any], loss_of: Callable[[Any], Tensor]
) -> list[float]:
    """The slow way: a loop in which `around` a step the model is another one."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = optimizer_for(optim, trained), []
    for step, batch in enumerate(batches):
        for parameter in trained:
            parameter.grad = None
        with around(step):
            loss = loss_of(batch)
            loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in trained if p.grad is not None], 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def own_loss(model: Any) -> Callable[[Any], Tensor]:
    def loss(batch: Any) -> Tensor:
        found: Tensor = model.train()(**batch, **without_cache).loss
        return found

    # A list of fewer blocks does not fit the numbers by which they find their part of a cache of keys and values.
    without_cache = {} if model.config.model_type == "bert" else {"use_cache": False}
    return loss


def skipped(step: int, able: list[int], stack: str, p: float = 0.2, made: int = 0) -> set[int]:
    generator = random.Random(derive_seed(SEED, "layerdrop", stack, step, made))
    while True:
        found = {index for index in able if generator.random() < p}
        if found != set(able):
            return found


def frozen(model: Any, plan: Plan) -> Any:
    """`model` with the tensors frozen that `plan` freezes, by `requires_grad` alone."""
    planned = copy.deepcopy(model)
    apply(plan, planned)
    trained = {name for name, parameter in planned.named_parameters() if parameter.requires_grad}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return model


@pytest.mark.parametrize(
    ("name", "count", "optim"),
    slow_but(
        [("bert", 0, "adamw_torch"), ("gpt2", 2, "sgd")],
        grid([("llama", 0), ("bert", 0), ("gpt2", 2), ("llama", 2)], [*OPTIMIZERS]),
    ),
)
def test_layerdrop_is_a_loop_over_models_without_the_skipped_blocks(
    tmp_path: Path, name: str, count: int, optim: str
) -> None:
    """The blocks are taken out of the list, so they neither compute, nor get gradients, nor does AdamW move them.

    With a frozen bottom, it is read from the activation cache.
    """
    model = tiny(name, dropout=0.0)
    reference = copy.deepcopy(model)
    plan = fl.make_plan(model, "layerdrop", seed=SEED, options={"frozen": count} if count else {})
    trainer = trainer_of(tmp_path, model, plan, optim, "on" if count else "off")
    trainer.train()
    assert trainer.cache_report.used == bool(count), trainer.cache_report.reason
    frozen(reference, plan)
    anatomy = find_anatomy(reference)
    above, _, _ = anatomy.blocks[0].name.rpartition(".")
    holder, name_of_list = reference.get_submodule(above.rpartition(".")[0]), above.rpartition(".")[2]
    whole, able, stack = getattr(holder, name_of_list), list(range(count, 4)), anatomy.blocks[0].stack
    gone = []

    @contextmanager
    def without(step: int) -> Iterator[None]:
        gone.append(skipped(step, able, stack))
        kept = nn.ModuleList(block for index, block in enumerate(whole) if index not in gone[-1])
        setattr(holder, name_of_list, kept)
        depth, reference.config.num_hidden_layers = reference.config.num_hidden_layers, len(kept)
        yield
        setattr(holder, name_of_list, whole)
        reference.config.num_hidden_layers = depth

    expected = plain_loop(reference, optim, trainer.batches, without, own_loss(reference))
    assert trainer.found == pytest.approx(expected, abs=CLOSE[optim])
    assert sum(map(bool, gone)) > 10
    if optim == "sgd":
        theirs = dict(reference.named_parameters())
        for key, tensor in trained_tensors(trainer.model).items():
            torch.testing.assert_close(tensor, theirs[key].detach(), atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize(
    ("name", "kind", "optim"),
    slow_but(
        [("llama", "lora", "sgd"), ("bert", "series-adapter", "adamw_torch")],
        grid([("llama", "lora"), ("bert", "series-adapter"), ("llama", "")], [*OPTIMIZERS]),
    ),
)
def test_robust_adapterdrop_is_a_loop_in_which_the_lowest_adapters_are_switched_off(
    tmp_path: Path, name: str, kind: str, optim: str
) -> None:
    model = tiny(name, dropout=0.0)
    strategy = f"adapterdrop+{kind}" if kind else "adapterdrop"
    options: dict[str, Any] = {"robust": True}
    if kind == "lora":
        options["lora"] = {"dropout": 0.0, "r": 4}
    plan = fl.make_plan(model, strategy, seed=SEED, options=options)
    reference = copy.deepcopy(model)
    trainer = trainer_of(tmp_path, model, plan, optim)
    trainer.train()
    apply(plan.model_copy(update={"forward": type(plan.forward)()}), reference, seed=SEED)
    blocks = [reference.get_submodule(block.name) for block in find_anatomy(tiny(name)).blocks]
    counts = []

    @contextmanager
    def without(step: int) -> Iterator[None]:
        counts.append(random.Random(derive_seed(SEED, "adapterdrop", step, 0)).randrange(4))
        off = [m for block in blocks[: counts[-1]] for m in block.modules() if isinstance(m, BaseTunerLayer)]
        for layer in off:
            layer.enable_adapters(False)
        yield
        for layer in off:
            layer.enable_adapters(True)

    expected = plain_loop(reference, optim, trainer.batches, without, own_loss(reference))
    assert trainer.found == pytest.approx(expected, abs=CLOSE[optim])
    assert set(counts) == {0, 1, 2, 3}


def test_specialised_adapterdrop_is_a_frozen_bottom_with_adapters_above(tmp_path: Path) -> None:
    """No backward pass runs below, and the frozen bottom runs once."""
    model = tiny("llama", dropout=0.0)
    plan = fl.make_plan(model, "adapterdrop+lora", options={"dropped": 2})
    assert plan.boundary == 2
    assert plan.model_copy(update={"strategy": ""}) == fl.make_plan(model, "bot50+lora").model_copy(
        update={"strategy": ""}
    )
    trainer = trainer_of(tmp_path, model, plan, cache="on")
    trainer.train()
    assert trainer.cache_report.used


@pytest.mark.parametrize(("name", "gates", "optim"), grid([("llama", "token"), ("bert", "sequence")], [*OPTIMIZERS]))
def test_unipelt_learns_what_its_formula_learns(tmp_path: Path, name: str, gates: str, optim: str) -> None:
    model = tiny(name, dropout=0.0)
    plan = fl.make_plan(model, "unipelt", options={"gates": gates})
    reference = copy.deepcopy(model)
    trainer = trainer_of(tmp_path, model, plan, optim)
    trainer.train()
    apply(plan, reference, seed=SEED)

    def loss(batch: Any) -> Tensor:
        if name == "bert":
            return functional.cross_entropy(bert_logits(reference.eval(), batch, averaged=True), batch["labels"])
        logits, labels = llama_logits(reference, batch)[:, :-1], batch["labels"][:, 1:]
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    expected = plain_loop(reference, optim, trainer.batches, lambda _: nullcontext(), loss)
    assert trainer.found == pytest.approx(expected, abs=CLOSE[optim])
    assert expected[0] - expected[-1] > 0.01


def test_adamw_does_not_move_what_a_step_skips(tmp_path: Path) -> None:
    """Neither by its momentum nor by weight decay; its count of steps stands still too."""
    model = tiny("llama", dropout=0.0)
    plan = fl.make_plan(model, "layerdrop", seed=SEED, options={"p": 0.5})
    trainer = trainer_of(tmp_path, model, plan, "adamw_torch", max_steps=8)
    seen: list[tuple[int, dict[str, Tensor]]] = []

    own = trainer.training_step

    def training_step(*given: Any, **options: Any) -> Any:
        seen.append((trainer.state.global_step, {k: v.detach().clone() for k, v in model.named_parameters()}))
        return own(*given, **options)

    trainer.training_step = training_step
    trainer.train()
    seen.append((8, {key: value.detach().clone() for key, value in model.named_parameters()}))
    made = dict.fromkeys(range(4), 0)
    for (step, before), (_, after) in itertools.pairwise(seen):
        gone = skipped(step, [0, 1, 2, 3], "decoder", 0.5)
        for index in range(4):
            made[index] += index not in gone
            for key in (key for key in before if f"layers.{index}." in key):
                assert torch.equal(before[key], after[key]) == (index in gone), (step, key)
    assert 0 < min(made.values()) < 8
    for index in range(4):
        weight = model.model.layers[index].mlp.up_proj.weight
        assert int(trainer.optimizer.state[weight]["step"]) == made[index]


def test_each_batch_of_an_accumulated_step_has_a_draw_of_its_own(tmp_path: Path) -> None:
    """As in fairseq, where every pass draws. What no batch of a step used is not moved."""
    model = tiny("llama", dropout=0.0)
    reference = copy.deepcopy(model)
    plan = fl.make_plan(model, "layerdrop", seed=SEED, options={"p": 0.5})
    options = {"max_steps": 6, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    trainer = trainer_of(tmp_path, model, plan, **options)
    trainer.train()
    optimizer = torch.optim.SGD(reference.parameters(), lr=OPTIMIZERS["sgd"]["learning_rate"])
    whole = reference.model.layers
    for step in range(6):
        optimizer.zero_grad()
        pair = trainer.batches[2 * step : 2 * step + 2]
        counts = [int(batch["labels"][:, 1:].ne(-100).sum()) for batch in pair]
        for made, batch in enumerate(pair):
            gone = skipped(step, [0, 1, 2, 3], "decoder", 0.5, made)
            reference.model.layers = nn.ModuleList(b for i, b in enumerate(whole) if i not in gone)
            reference.config.num_hidden_layers = len(reference.model.layers)
            (own_loss(reference)(batch) * counts[made] / sum(counts)).backward()
            reference.model.layers = whole
        torch.nn.utils.clip_grad_norm_([p for p in reference.parameters() if p.grad is not None], 1.0)
        optimizer.step()
    theirs = dict(reference.named_parameters())
    for key, tensor in trained_tensors(trainer.model).items():
        torch.testing.assert_close(
            tensor, theirs[key].detach(), atol=1e-6, rtol=1e-5, msg=lambda m, key=key: f"{key}: {m}"
        )


STRATEGIES = [
    ("llama", "layerdrop", {"p": 0.5}),
    ("t5", "layerdrop", {"p": 0.5}),
    ("bert", "layerdrop+lora", {}),
    ("llama", "layerdrop", {"frozen": 2, "p": 0.5}),
    ("llama", "adapterdrop+lora", {"robust": True}),
    ("bert", "adapterdrop", {"robust": True}),
    ("t5", "unipelt", {}),
    ("llama", "layerdrop+unipelt", {}),
]


@pytest.mark.parametrize(("name", "strategy", "options"), slow_but(STRATEGIES[2::2], STRATEGIES))
def test_killed_and_resumed_is_never_killed(tmp_path: Path, name: str, strategy: str, options: dict[str, Any]) -> None:
    """Bit for bit, with dropout, two batches in a step and the activation cache where there is a frozen bottom."""

    def make(folder: str, **more: Any) -> Any:
        model = tiny(name, dropout=0.1)
        plan = fl.make_plan(model, strategy, seed=SEED, options=options)
        given = {"max_steps": 7, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2} | more
        return trainer_of(tmp_path / folder, model, plan, "adamw_torch", "auto", **given)

    whole = make("whole")
    whole.train()
    killed = make("killed", save_strategy="steps", save_steps=1)
    killed.add_callback(StopAt(5))
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = make("killed", save_strategy="steps", save_steps=1)
    resumed.train(resume_from_checkpoint=True)
    got = trained_tensors(resumed.model)
    for key, tensor in trained_tensors(whole.model).items():
        assert torch.equal(tensor, got[key]), key


@pytest.mark.parametrize("strategy", ["layerdrop", "adapterdrop+lora"])
def test_an_attached_trainer_draws_the_same(tmp_path: Path, strategy: str) -> None:
    def plan_for(model: Any) -> Plan:
        robust = {"robust": True} if strategy.startswith("adapter") else {"p": 0.5}
        return fl.make_plan(model, strategy, seed=SEED, options=robust)

    ours = trainer_of(tmp_path / "ours", tiny("llama", dropout=0.0), plan_for, max_steps=6)
    ours.train()
    model = tiny("llama", dropout=0.0)
    given = settings(tmp_path / "plain", "sgd", max_steps=6)
    plain = PlainTrainer(model, given, train_dataset=rows_for(model), data_collator=collate)
    fl.attach(plain, plan=plan_for(model), activation_cache="off").train()
    got = trained_tensors(model)
    for key, tensor in trained_tensors(ours.model).items():
        torch.testing.assert_close(tensor, got[key], atol=1e-6, rtol=1e-5, msg=key)
    assert plain.accelerator.ddp_handler.find_unused_parameters


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ({"ddp_find_unused_parameters": False}, "ddp_find_unused_parameters: .*: use ddp_find_unused_parameters=True"),
        ({"torch_compile": True}, "torch_compile: .*: use torch_compile=False"),
    ],
)
def test_settings_that_need_every_gradient_are_refused(tmp_path: Path, setting: dict[str, Any], what: str) -> None:
    model = tiny("llama")
    with pytest.raises(fl.ConfigError, match=what):
        trainer_of(tmp_path, model, fl.make_plan(model, "layerdrop"), **setting)


TWO_PROCESSES = """
    import sys
    from pathlib import Path
    import torch
    import frostline as fl
    from architectures import tiny
    from frostline.checkpoints import trained_tensors
    from test_drops_in_training import SEED, StopAt, trainer_of

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    cases = [("llama", "layerdrop", {"p": 0.5}, False), ("bert", "adapterdrop+lora", {"robust": True}, True)]
    for name, strategy, options, checkpointing in cases:
        for kind in ("whole", "killed", "resumed"):
            model = tiny(name, dropout=0.0)
            plan = fl.make_plan(model, strategy, seed=SEED, options=options)
            given = {"max_steps": 6, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}
            given |= {"activation_checkpointing": checkpointing} | (
                {} if kind == "whole" else {"save_strategy": "steps", "save_steps": 1}
            )
            place = folder / (strategy + ("whole" if kind == "whole" else "killed"))
            trainer = trainer_of(place, model, plan, "adamw_torch" if strategy == "layerdrop" else "sgd", **given)
            if kind == "killed":
                trainer.add_callback(StopAt(4))
            try:
                trainer.train(resume_from_checkpoint=kind == "resumed" or None)
            except KeyboardInterrupt:
                assert kind == "killed"
            torch.save(trained_tensors(trainer.model), folder / f"{strategy}-{kind}-{trainer.args.process_index}.pt")
            batches = [{k: v for k, v in batch.items()} for batch in trainer.batches]
            torch.save(batches, folder / f"{strategy}-batches-{kind}-{trainer.args.process_index}.pt")
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_skip_the_same_blocks_and_resume_exactly(tmp_path: Path) -> None:
    """AdamW moves a block that no process used in a step as little as on one process."""
    script, tests = tmp_path / "train.py", Path(__file__).resolve().parents[1]
    script.write_text(textwrap.dedent(TWO_PROCESSES))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = (tests, tests / "engine", *sys.path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for strategy in ("layerdrop", "adapterdrop+lora"):
        found = {
            (kind, rank): torch.load(tmp_path / f"{strategy}-{kind}-{rank}.pt")
            for kind in ("whole", "resumed")
            for rank in (0, 1)
        }
        for key, tensor in found["whole", 0].items():
            assert all(torch.equal(tensor, each[key]) for each in found.values()), key
    batches = [torch.load(tmp_path / f"layerdrop-batches-whole-{rank}.pt") for rank in (0, 1)]
    reference = tiny("llama", dropout=0.0)
    optimizer, whole = optimizer_for("adamw_torch", list(reference.parameters())), reference.model.layers
    for step in range(6):
        optimizer.zero_grad()
        parts = [(made, batches[rank][2 * step + made]) for made in (0, 1) for rank in (0, 1)]
        total = sum(int(batch["labels"][:, 1:].ne(-100).sum()) for _, batch in parts)
        for made, batch in parts:
            gone = skipped(step, [0, 1, 2, 3], "decoder", 0.5, made)
            reference.model.layers = nn.ModuleList(b for i, b in enumerate(whole) if i not in gone)
            reference.config.num_hidden_layers = len(reference.model.layers)
            (own_loss(reference)(batch) * int(batch["labels"][:, 1:].ne(-100).sum()) / total).backward()
            reference.model.layers = whole
        torch.nn.utils.clip_grad_norm_([p for p in reference.parameters() if p.grad is not None], 1.0)
        optimizer.step()
    theirs = dict(reference.named_parameters())
    for key, tensor in torch.load(tmp_path / "layerdrop-whole-0.pt").items():
        torch.testing.assert_close(tensor, theirs[key].detach(), atol=1e-4, rtol=1e-3, msg=key)
