"""What a frozen bottom that runs once saves: training time beside that of transformers and PEFT, in one process.

    all      transformers.Trainer, everything trained                                                       (a)
    plain    transformers.Trainer, the plan's parameters trained, the rest frozen by requires_grad          (b)
    lora     PEFT LoRA, r = 8, in transformers.Trainer                                                      (c)
    cached     frostline.Trainer with the activation cache; head and last block only where the loss reads
    limit    the same trainer on a model made of the trained blocks alone, fed random states                (d)

Every contender trains the same batches in the same precision, without dropout. A round trains each contender for a
few steps, in turn; figures are medians over rounds of the ratio within a round, with quartiles. `run N` is the time
of N epochs relative to `all`: for `cached` the caching pass (measured on all rows) plus N epochs of steps.

    python benchmarks/frozen_bottom.py [SETTING ...] [--rounds 5] [--precision float32] [--memory] [--out FILE]

The real models and data are looked for under $FROSTLINE_MODELS and $FROSTLINE_DATA; a setting whose model is not
there is left out, and says so.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from jobs import LENGTH, SETTINGS, Job, Setting, job_of
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from frostline.anatomy import find_anatomy, select
from frostline.core.errors import UserError
from frostline.engine import MemoryMeter, StepMeter, Trainer
from frostline.run import versions

EPOCHS = (1, 3, 10)


class Quiet(TrainerCallback):
    """Keeps the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


@dataclass
class Contender:
    """A trainer that runs a few steps at a time, and what it took: seconds per step, a list per round."""

    name: str
    trainer: Any
    steps: StepMeter
    log: Quiet
    rounds: list[list[float]] = field(default_factory=list)

    def round(self) -> None:
        self.steps.seconds.clear()
        self.trainer.train()
        self.rounds.append(list(self.steps.seconds))


def arguments(folder: str, job: Job, precision: str, steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        use_cpu=not torch.cuda.is_available(),
        seed=0,
        max_steps=steps,
        per_device_train_batch_size=job.setting.batch,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        bf16=precision == "bfloat16",
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def contender(name: str, job: Job, folder: str, precision: str, steps: int) -> Contender:
    meter, log = StepMeter(), Quiet()
    args = arguments(folder, job, precision, steps)
    common: dict[str, Any] = {"train_dataset": job.rows, "callbacks": [meter, log]}
    if name == "cached":
        trainer: Any = Trainer(
            job.model(), args, plan=job.plan, data_collator=job.collate_cached, activation_cache="on", **common
        )
    elif name == "limit":
        trainer = limit(job, args, common)
    else:
        trainer = transformers.Trainer(baseline(name, job), args, data_collator=job.collate, **common)
    trainer.remove_callback(PrinterCallback)
    return Contender(name, trainer, meter, log)


def baseline(name: str, job: Job) -> Any:
    model = job.model().float()
    if name == "plain":
        trained = {item.tensor.name for item in select(job.plan, find_anatomy(model))}
        for path, parameter in model.named_parameters():
            parameter.requires_grad_(path in trained)
    if name == "lora":
        kind = "SEQ_CLS" if "Classification" in type(model).__name__ else "CAUSAL_LM"
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, task_type=kind))
    return model


class RandomStates(nn.Embedding):
    """In the place of the embeddings: the same random states for every batch, at no cost."""

    def __init__(self, batch: int, vocabulary: int, width: int) -> None:
        super().__init__(1, width)
        self.num_embeddings = vocabulary
        self.states = torch.randn(batch, LENGTH, width)

    @property
    def word_embeddings(self) -> RandomStates:
        return self

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        ids = next(v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))
        rows, length = ids.shape
        if rows == 1:  # packed
            return self.states.reshape(1, -1, self.embedding_dim)[:, :length]
        return self.states[:rows, :length]


def limit(job: Job, args: TrainingArguments, common: dict[str, Any]) -> Any:
    """The trained blocks as a model of their own, above random states."""
    model = job.model()
    anatomy = find_anatomy(model)
    path = anatomy.blocks[0].name.rpartition(".")[0]
    where, _, name = path.rpartition(".")
    blocks = list(model.get_submodule(path))[job.plan.boundary :]
    setattr(model.get_submodule(where), name, nn.ModuleList(blocks))
    model.config.num_hidden_layers = len(blocks)
    for index, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    states = RandomStates(job.setting.batch, anatomy.vocab_size, anatomy.hidden_size)
    setattr(model.base_model, "embeddings" if hasattr(model.base_model, "embeddings") else "embed_tokens", states)
    plan = job.plan.model_copy(update={"blocks": job.plan.blocks[job.plan.boundary :]})
    return Trainer(model, args, plan=plan, data_collator=job.collate_cached, activation_cache="off", **common)


CONTENDERS = ("all", "plain", "lora", "cached", "limit")


def measure(setting: Setting, rounds: int, steps: int, count: int, precision: str) -> dict[str, Any]:
    """Seconds per step of each contender, a list per round, with its losses and what the caching pass took."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FROSTLINE_CACHE"] = str(Path(folder) / "cache")
        job = job_of(setting, count)
        contenders = [contender(name, job, folder, precision, steps + 1) for name in CONTENDERS]
        cached = next(c for c in contenders if c.name == "cached")
        for number in range(rounds + 1):
            for each in contenders:
                each.round()
            if number == 0:  # warms up, and makes the caching pass
                report = cached.trainer.cache_report
                for each in contenders:
                    each.rounds.clear()
    seconds = {each.name: [statistics.median(r[1:]) for r in each.rounds] for each in contenders}
    return {
        "setting": asdict(setting),
        "rows": len(job.rows),
        "frozen_blocks": job.plan.boundary,
        "trained_parameters": {each.name: trained_parameters(each.trainer.model) for each in contenders},
        "seconds": seconds,
        "caching_pass": {"seconds": report.seconds, "rows": report.rows, "bytes": report.bytes},
        "losses": {each.name: each.log.losses[: 3 * (steps + 1)] for each in contenders},
        "notices": list(cached.trainer.notices),
    }


def trained_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def ratios(result: dict[str, Any], name: str, base: str) -> list[float]:
    return [own / other for own, other in zip(result["seconds"][name], result["seconds"][base], strict=True)]


def run_ratio(result: dict[str, Any], epochs: int, name: str, base: str) -> float:
    """Time of a run of `epochs` relative to `base`'s, medians, the caching pass included."""
    steps = epochs * result["rows"] / result["setting"]["batch"]
    time = {key: steps * statistics.median(values) for key, values in result["seconds"].items()}
    time["cached"] += result["caching_pass"]["seconds"]
    return time[name] / time[base]


def shares(result: dict[str, Any]) -> dict[str, float]:
    """Costs with the cache as shares of those of transformers.Trainer; peak memory where it was measured."""
    step = statistics.median(ratios(result, "cached", "all"))
    found = {"step": step, "three epochs": run_ratio(result, 3, "cached", "all")}
    if memory := result.get("peak_memory"):
        found["peak memory"] = memory["cached"] / memory["all"]
    return found


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def peak_memory(setting: str, name: str, precision: str, count: int) -> int:
    """Peak private memory of one contender's steps above that before its model, in a fresh process."""
    command = [sys.executable, __file__, setting, "--memory-of", name, "--precision", precision, "--rows", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stdout.splitlines()[-1])


def print_peak_memory(setting: Setting, name: str, precision: str, count: int) -> None:
    ctypes.CDLL("libc.so.6").mallopt(-3, 65536)  # M_MMAP_THRESHOLD: what is freed goes back at once
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FROSTLINE_CACHE"] = str(Path(folder) / "cache")
        job = job_of(setting, count)
        with MemoryMeter(interval=0.001) as memory:
            each = contender(name, job, folder, precision, 3)
            each.trainer.add_callback(Restart(memory))
            each.trainer.train()
            print(memory.peak_bytes)


class Restart(TrainerCallback):
    """Forgets what loading and the caching pass took."""

    def __init__(self, memory: MemoryMeter) -> None:
        self.memory = memory

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.memory.restart_peak()


def show(results: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="step time and run time, ratios of medians (quartiles over rounds)")
    for column in ("setting", "frozen", "contender", "step / all", "step / plain", "step / limit", "last loss"):
        table.add_column(column)
    for epochs in EPOCHS:
        table.add_column(f"run {epochs} / all")
    table.add_column("run 3 / plain")
    table.add_column("peak MiB")
    for result in results:
        for name in CONTENDERS:
            low, middle, high = quartiles(ratios(result, name, "all"))
            cells = [f"{middle:.3f} ({low:.3f}-{high:.3f})"]
            cells.append(f"{quartiles(ratios(result, name, 'plain'))[1]:.3f}")
            low, middle, high = quartiles(ratios(result, name, "limit"))
            cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
            cells.append(f"{result['losses'][name][-1]:.4f}")
            cells += [f"{run_ratio(result, epochs, name, 'all'):.3f}" for epochs in EPOCHS]
            cells.append(f"{run_ratio(result, 3, name, 'plain'):.3f}")
            memory = result.get("peak_memory", {}).get(name)
            cells.append("" if memory is None else f"{memory / 2**20:.0f}")
            table.add_row(result["name"], str(result["frozen_blocks"]), name, *cells)
        table.add_section()
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=", ".join(SETTINGS))
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--steps",
        type=int,
        default=5,
        help="measured steps of a round; the checks before steps 2 and 4 stay out of their median",
    )
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--memory", action="store_true", help="also peak memory, each contender in a fresh process")
    parser.add_argument("--memory-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-frozen-bottom.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    chosen = options.settings or list(SETTINGS)
    if options.memory_of:
        return print_peak_memory(SETTINGS[chosen[0]], options.memory_of, options.precision, options.rows)
    results: list[dict[str, Any]] = []
    console = Console(width=200)
    for name in chosen:
        console.print(f"[dim]{name} ...")
        try:
            result = measure(SETTINGS[name], options.rounds, options.steps, options.rows, options.precision)
        except UserError as error:
            console.print(f"left out: {name}: {error}")
            continue
        if options.memory:
            few = 2 * SETTINGS[name].batch
            result["peak_memory"] = {kind: peak_memory(name, kind, options.precision, few) for kind in CONTENDERS}
        results.append({"name": name, **result, "shares": shares(result)})
        document = {
            "versions": versions(),
            "hardware": {"processor": platform.processor() or platform.machine(), "threads": 1},
            "precision": options.precision,
            "rounds": options.rounds,
            "results": results,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=2) + "\n")
    show(results, console)
    console.print(f"written: {options.out}")
    return None


if __name__ == "__main__":
    main()
