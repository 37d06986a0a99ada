"""Small trainings that one process and several can make: with the same rows in each step they are the same.

`run_in` starts the processes once for many of them, because each takes seconds to import torch.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from architectures import tiny
from cache_cases import arguments, bottom_plan, collate, frozen_by_hand, rows_for
from frostline.checkpoints import load_above, load_config, trained_tensors
from frostline.engine import Trainer, attach
from frostline.hooks import own_bytes
from frostline.plan import Frozen, Full, Lora, Partial, Plan, Prefix
from frostline.run import make_schedule

SECONDS = 400
"""After so long a group of processes counts as hanging."""
STEPS = 4
ROWS = 8
"""Rows of a step, of all processes together."""


@dataclass(frozen=True)
class Case:
    """A training of a tiny model.

    Attributes:
        model: its architecture.
        plan: its name in `PLANS`, or that of a strategy with a schedule.
        cache: `activation_cache`.
        options: more arguments of transformers.
        resumes: continue from the checkpoint after two steps that this other case saved.
        task: of the model.
        streamed: read the bottom block by block, from the folder `base`.
        read_by_first: the first process alone has read the weights.
        made: give the trainer a function that makes the model (`model_init`).
    """

    model: str = "llama"
    plan: str = "bot50"
    cache: str = "on"
    options: Mapping[str, Any] = field(default_factory=dict)
    resumes: str | None = None
    task: str | None = None
    streamed: bool = False
    read_by_first: bool = False
    made: bool = False


BEST: dict[str, Any] = {
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": True,
    "eval_strategy": "steps",
    "eval_steps": 2,
}
"""Go back to the checkpoint with the highest loss, which is not the last one."""


def plan_of(name: str, model: Any) -> Plan:
    """A plan of four blocks or more. LoRA is without dropout, which draws in each process for itself."""
    lora, prefix = Lora(r=4, dropout=0.0), Prefix(length=2)
    tops: dict[str, Any] = {"bot50": Full(), "bot50+lora": lora, "bot50+partial": Partial(rows=0.5), "hlpt": prefix}
    if name in tops:
        plan = bottom_plan(model, 2, tops[name])
        return plan.model_copy(update={"blocks": (*plan.blocks[:-1], lora)}) if name == "hlpt" else plan
    whole = bottom_plan(model, 0, Full() if name == "all" else lora)
    return whole.model_copy(update={"embeddings": Full() if name == "all" else Frozen()})


def make(case: Case, folder: Path, world: int, **more: Any) -> Trainer:
    """The trainer of a case in a process of `world`; more than one share the model (FSDP2)."""
    model = tiny(case.model, case.task)
    load = None
    if case.streamed:
        place = str(folder.parent.parent / "base")
        model, load = load_above(place, type(model), load_config(place), 2)

    def read() -> Any:
        own = tiny(case.model, case.task) if case.made else model
        return own.to("meta") if case.read_by_first and os.environ.get("RANK", "0") != "0" else own

    sharing = {"fsdp": True, "fsdp_config": {"version": 2}} if world > 1 else {}
    options = {
        "max_steps": STEPS,
        "per_device_train_batch_size": ROWS // world // case.options.get("gradient_accumulation_steps", 1),
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "save_strategy": "steps",
        "save_steps": 2,
        "log_level": "error",
        **sharing,
        **case.options,
        **more,
    }
    what: dict[str, Any] = {"plan": None}
    if case.plan in ("lisa", "gradual", "autofreeze"):
        what = {"schedule": make_schedule(model, case.plan, steps=STEPS)}
    elif case.plan != "as given":
        what = {"plan": plan_of(case.plan, model)}
    else:
        frozen_by_hand(model, plan_of("bot50", model))
    rows = rows_for(model, 2 * ROWS)
    given: dict[str, Any] = {
        "train_dataset": rows,
        "load_bottom": load,
        "eval_dataset": rows[:6],
        "data_collator": collate,
        "activation_cache": case.cache,
    }
    if case.made:
        return Trainer(args=arguments(folder, **options), model_init=read, **what, **given)
    return Trainer(read(), arguments(folder, **options), **what, **given)


def train(case: Case, folder: Path, world: int, **more: Any) -> dict[str, Any]:
    """What a training gave: losses, the trained tensors, the bytes of parameters that this process holds, and more."""
    trainer = make(case, folder, world, **more)
    before = [] if case.made else [weakref.ref(p) for p in trainer.model.parameters() if p.requires_grad]
    trainer.train(resume_from_checkpoint=None if case.resumes is None else str(folder.parent / case.resumes))
    gc.collect()
    left = [parameter() for parameter in before]
    model: Any = trainer.model
    trainer.evaluate()  # it gathers what is outside the blocks
    if case.plan != "hlpt" and not case.streamed:
        trainer.save_model(str(folder / "whole"), whole=True)
    after = None
    if not case.streamed:
        with torch.no_grad():
            after = model.eval()(**collate(rows_for(model, 2 * ROWS)[:ROWS])).logits
    weights = trained_tensors(model)  # now each process has its part alone again
    # The matrices of which some rows train; the numbers of the rows are not counted.
    matrices = [b for name, b in model.named_buffers() if "parametrizations" in name and not name.endswith("index")]
    held = [*matrices, *(p for p in model.parameters() if not p.is_meta)]
    found = {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "norms": [entry["grad_norm"] for entry in trainer.state.log_history if "loss" in entry],
        "after": after,
        "weights": weights,
        "bytes": own_bytes(held) - trainer.cache_report.freed_bytes,
        "left": [tuple(parameter.shape) for parameter in left if parameter is not None],
        "cached": trainer.cache_report.used,
        "notices": trainer.notices,
    }
    trainer.save_model(str(folder / "saved"))
    return found


def refused(what: str, folder: Path) -> None:
    """Ask for what is refused before training."""
    asked: dict[str, dict[str, Any]] = {
        "fsdp1": {"options": {"fsdp_config": {"version": 1}}},
        "offload": {"options": {"fsdp_config": {"version": 2, "cpu_offload": True}}},
        "best-as-given": {"plan": "as given", "options": BEST},
        "adafactor": {"options": {"optim": "adafactor"}},
        "autofreeze": {"plan": "autofreeze", "cache": "auto"},
    }
    if what in ("zero", "attach"):
        plain = tiny("llama")
        given: dict[str, Any] = {"fsdp": True, "fsdp_config": {"version": 2}} if what == "attach" else {}
        args = arguments(folder, **given)
        if what == "zero":
            args.deepspeed = {"zero_optimization": {"stage": 3}}
            Trainer(plain, args, plan=plan_of("bot50", plain), train_dataset=rows_for(plain), data_collator=collate)
        rows = {"train_dataset": rows_for(plain), "data_collator": collate}
        attach(transformers.Trainer(plain, args, **rows), plan_of("bot50", plain))
    elif what == "tp":
        args = arguments(folder)
        model, mesh = tiny("llama"), init_device_mesh(args.device.type, (args.world_size,))
        model.lm_head.weight = nn.Parameter(distribute_tensor(model.lm_head.weight.detach(), mesh, [Shard(0)]))
        Trainer(model, args, plan=lambda text: plan_of("bot50", text), train_dataset=rows_for(model))
    else:
        make(Case(**asked[what]), folder, 2).train()


Run = Callable[..., Any]


def run_in(world: int, runs: Mapping[str, tuple[Run, tuple[Any, ...]]], folder: Path) -> dict[str, list[Any]]:
    """Call each of `runs` in all of `world` processes, one after another. Gives name -> what each process returned.

    An exception is given as its text. Raises `TimeoutError` where the processes hang.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(rank, world, port, runs, folder)) for rank in range(world)]
    for process in processes:
        process.start()
    end = time.monotonic() + SECONDS
    try:
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        if any(process.is_alive() for process in processes):
            raise TimeoutError(f"{world} processes are not done after {SECONDS} seconds")
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(world)] for name in runs}


def _work(rank: int, world: int, port: int, runs: Mapping[str, tuple[Run, tuple[Any, ...]]], folder: Path) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()})
    os.environ["FROSTLINE_CACHE"] = str(folder / "caches")
    torch.set_num_threads(1)
    for name, (run, given) in runs.items():
        try:
            found = run(*given)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            if not type(error).__module__.startswith("frostline"):
                found += "\n" + traceback.format_exc()
        torch.save(found, folder / f"{name}-{rank}.pt")
