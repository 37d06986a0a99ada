"""The losses of six training steps on every path that a training can take, as text.

The file is kept, so a change that only moves code must leave the losses as they are
(`tests/engine/test_golden_losses.py`). Where a change is intended, `python tests/golden_losses.py >
tests/golden_losses.txt` writes them again. Training is SGD in float32 on tiny models whose weights depend on a seed.
Another CPU rounds differently, by about 1e-6 of a loss.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from architectures import tiny
from cache_cases import arguments, collate, losses, rows_for
from frostline.checkpoints import load_above, load_config
from frostline.engine import Flora, Trainer
from frostline.loss_positions import pack_rows
from frostline.plan import FloraOptions, Forward, Frozen, Full, Lora, Mixture, Partial, Plan, Prefix, Residual, Split
from frostline.run import make_plan
from frostline.split import SplitTrainer
from frostline.surgery import quantize_frozen
from frostline.tasks import PackingCollator

STEPS = 6
Make = Callable[[Path], Trainer]


def make(folder: Path, model: Any, plan: Plan | str, kind: Any = Trainer, **options: Any) -> Trainer:
    """A trainer of `model` under a plan; `options` are the trainer's, or else transformers' arguments."""
    own = ("activation_cache", "loss_positions", "optimizer_in_backward", "optimizer_cls_and_kwargs", "load_bottom")
    own = (*own, "split", "data_collator", "schedule")
    mine = {key: options.pop(key) for key in own if key in options}
    given = {"max_steps": STEPS, "learning_rate": 0.05, "optim": "sgd", "lr_scheduler_type": "constant", **options}
    chosen = make_plan(model, plan) if isinstance(plan, str) else plan
    rows = rows_for(model)
    mine = {"data_collator": collate, "activation_cache": "off", "loss_positions": False, **mine}
    return kind(model, arguments(folder, **given), plan=chosen, train_dataset=rows, **mine)


def of(name: str, plan: Plan | str, *, task: str | None = None, **options: Any) -> Make:
    return lambda folder: make(folder, tiny(name, task), plan, **options)


def packed(folder: Path) -> Trainer:
    trainer = make(folder, tiny("llama"), "bot50", data_collator=PackingCollator(), activation_cache="on")
    pack_rows(trainer.model, rows_for(trainer.model), PackingCollator())
    return trainer


def quantized(folder: Path) -> Trainer:
    trainer = make(folder, tiny("llama"), Plan(blocks=(Lora(r=2, dropout=0.0),) * 4, head=Frozen()))
    quantize_frozen(trainer.model, trainer.applied.anatomy, 8)
    return trainer


def streamed(folder: Path) -> Trainer:
    model = tiny("llama")
    plan = make_plan(model, "bot50")
    model.save_pretrained(folder / "base")
    part, load = load_above(str(folder / "base"), type(model), load_config(str(folder / "base")), plan.boundary)
    return make(folder, part, plan, load_bottom=load, activation_cache="on")


def split(folder: Path) -> Trainer:
    plan = Plan(blocks=(Lora(r=2, dropout=0.0),) * 4, final_norm=Frozen(), head=Frozen())
    return make(folder, tiny("llama"), plan, SplitTrainer, split=Split(cut=2, clients=1))


MIXED = Plan(blocks=(Frozen(), Lora(r=2, dropout=0.0, lr_scale=2.0), Partial(rows=0.5), Full()))
HYBRID = Plan(blocks=(*[Lora(r=2, dropout=0.0, targets="down", gate=True)] * 2, *[Prefix(length=3)] * 2), head=Frozen())
EXPERTS = Plan(blocks=(Frozen(), *[Mixture(experts=3, r=2, dropout=0.0)] * 3), final_norm=Frozen(), head=Frozen())
LAYERED = Plan(
    blocks=(Frozen(), *[Full()] * 3),
    forward=Forward(loss_weights=(0.0, 0.5, 0.0, 1.0), residual=Residual(alpha=0.1)),
)
FLORA = {"optimizer_cls_and_kwargs": (Flora, {"options": FloraOptions(rank=4, kappa=3), "seed": 5})}

PATHS: dict[str, Make] = {
    **{f"{name} all": of(name, "all") for name in ("llama", "gpt2", "bert", "t5", "mixtral")},
    **{f"llama {plan}": of("llama", plan) for plan in ("bot50", "top50", "int50", "head")},
    "bert bitfit": of("bert", "bitfit"),
    "llama mixed": of("llama", MIXED),
    "llama hybrid": of("llama", HYBRID),
    "llama experts": of("llama", EXPERTS),
    "llama layered": of("llama", LAYERED),
    "llama classifier": of("llama", "bot50", task="classification"),
    "bert masked": of("bert", "bot50", task="masked"),
    "llama accumulated": of("llama", "bot50", per_device_train_batch_size=2, gradient_accumulation_steps=2),
    "llama checkpointed": of("llama", "bot25", activation_checkpointing=True),
    "llama in backward": of("llama", "bot50", optimizer_in_backward=True, max_grad_norm=0.0),
    "llama flora": of("llama", "bot50", **FLORA),
    **{
        f"{name} {plan} cached": of(name, plan, activation_cache="on")
        for name in ("llama", "gpt2", "gptj", "bert", "t5", "mixtral", "modernbert", "deberta-v2")
        for plan in ("bot50", "head")
        if (name, plan) != ("t5", "head")
    },
    **{
        f"{name} loss positions": of(name, "bot50", loss_positions=True)
        for name in ("llama", "gpt2", "bert", "gemma2", "qwen3")
    },
    "llama both": of("llama", "bot50", activation_cache="on", loss_positions=True),
    "bert both": of("bert", "bot50", activation_cache="on", loss_positions=True),
    "llama packed": packed,
    "llama quantized": quantized,
    "llama streamed": streamed,
    "llama split": split,
}


def losses_of(name: str) -> list[float]:
    """The loss of every step on one path."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        trainer = PATHS[name](Path(folder))
        trainer.train()
        return losses(trainer)


if __name__ == "__main__":
    torch.set_num_threads(1)
    import os

    os.environ["FROSTLINE_CACHE"] = tempfile.mkdtemp()
    import contextlib
    import sys

    for path in PATHS:
        with contextlib.redirect_stdout(sys.stderr):
            found = losses_of(path)
        print(path + ":", *(f"{loss:.7f}" for loss in found))
