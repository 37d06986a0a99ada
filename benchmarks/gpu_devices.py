"""What the cache, FSDP2 of the top and pinned reads take on a GPU, as shares of plain freezing, and where time goes.

The model is the largest random Llama that plain freezing fits on the device, by formula: blocks of one width, as many
as the memory holds, in bfloat16. Its top half trains with AdamW under autocast. Each way runs in a process of its own:

    plain      the bottom is frozen, and runs in every step
    cache      its states are read: through pinned memory, while the step before runs
    pageable   the same without pinned memory
    positions  the cache, with head and last block at the loss positions alone
    sharded    the cache, and FSDP2 of what trains: on one device it gathers from itself, which shows what it costs

Memory is the most that torch's allocator held in a step. Time is the median of the steps after the first three. Where
time goes is torch's profile of two steps, by kind of operation.

    python benchmarks/gpu_devices.py [--width 4096] [--length 512] [--batch 4] [--memory 80GB] [--out gpu.json]
    python benchmarks/gpu_devices.py --width 64 --blocks 4 --length 32 --vocabulary 512 --steps 6    (tried on a CPU)
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from frostline.anatomy import find_anatomy, skeleton
from frostline.bottom import _in_use
from frostline.core.sizes import parse_size
from frostline.cost import Workload, memory
from frostline.engine import Trainer
from frostline.hooks import own_bytes
from frostline.plan import Frozen, Full, Plan
from frostline.run import versions

WAYS = ("plain", "cache", "pageable", "positions", "sharded")
WARM_UP, PROFILED = 3, 2
KINDS = {
    "matrix products": ("mm", "linear", "gemm", "cutlass"),
    "attention": ("attention", "flash", "sdpa"),
    "collectives": ("all_gather", "reduce_scatter", "nccl", "c10d", "fsdp"),
    "copies": ("copy", "memcpy", "_to_copy", "cat"),
    "optimizer": ("adam", "_foreach"),
    "loss": ("softmax", "nll"),
}


def config_of(given: argparse.Namespace, blocks: int) -> LlamaConfig:
    width = given.width
    return LlamaConfig(
        vocab_size=given.vocabulary,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=blocks,
        num_attention_heads=max(1, width // 128),
        num_key_value_heads=max(1, width // 512),
        tie_word_embeddings=False,
        dtype="bfloat16",
    )


def plan_of(blocks: int) -> Plan:
    half = blocks // 2
    return Plan(blocks=(Frozen(),) * half + (Full(),) * (blocks - half), final_norm=Full(), head=Frozen())


def work_of(given: argparse.Namespace, way: str) -> Workload:
    return Workload(
        per_device_train_batch_size=given.batch,
        length=given.length,
        bf16=True,
        frozen_dtype="bfloat16",
        activation_cache=way != "plain",
        loss_positions=way == "positions",
        label_share=0.5,
    )


def largest(given: argparse.Namespace) -> int:
    """The most blocks with which plain freezing fits, by formula; a tenth of the device is left to torch."""
    limit, blocks = 0.9 * parse_size(given.memory, "memory"), 2
    while True:
        more = blocks + 2
        anatomy = find_anatomy(skeleton(config_of(given, more), AutoModelForCausalLM))
        if memory(plan_of(more), anatomy, work_of(given, "plain")).peak > limit:
            return blocks
        blocks = more


class Meter(TrainerCallback):
    """Times the steps, notes the most memory of one, and profiles the last two."""

    def __init__(self, steps: int) -> None:
        self.seconds: list[float] = []
        self.most, self._steps, self._begun = 0, steps, 0.0
        self.profile: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._steps - PROFILED:
            on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self.profile = profile(activities=[ProfilerActivity.CPU, *on_gpu])
            self.profile.start()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.most = max(self.most, torch.cuda.max_memory_allocated())
        if self.profile is None:
            self.seconds.append(time.perf_counter() - self._begun)
        if state.global_step == self._steps:
            self.profile.stop()

    def where(self) -> dict[str, float]:
        """Kind of operation -> its share of the profiled time, on the device where there is one."""
        shares: dict[str, float] = defaultdict(float)
        for event in self.profile.key_averages():
            spent = event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
            name = event.key.lower()
            kind = next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")
            shares[kind] += spent
        whole = sum(shares.values()) or 1.0
        return {kind: spent / whole for kind, spent in sorted(shares.items(), key=lambda item: -item[1])}


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Train in one way, in this process."""
    way, steps = given.way, given.steps
    sharing: dict[str, Any] = {}
    if way == "sharded":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        places = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in places.items()})
        sharing = {"fsdp": True, "fsdp_config": {"version": 2}}
    if way == "pageable":
        setattr(_in_use, "ReadAhead", partial(_unpinned, vars(_in_use)["ReadAhead"]))  # noqa: B010
    torch.manual_seed(0)
    config = config_of(given, given.blocks)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    random = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(given.batch * 4):
        ids = torch.randint(3, given.vocabulary, (given.length,), generator=random).tolist()
        half = given.length // 2
        rows.append({"input_ids": ids, "attention_mask": [1] * given.length, "labels": [-100] * half + ids[half:]})
    args = TrainingArguments(
        output_dir=given.folder,
        per_device_train_batch_size=given.batch,
        max_steps=steps,
        optim="adamw_torch",
        bf16=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **sharing,
    )
    trainer = Trainer(
        model,
        args,
        plan=plan_of(given.blocks),
        train_dataset=rows,
        data_collator=lambda some: {name: torch.tensor([row[name] for row in some]) for name in some[0]},
        activation_cache="off" if way == "plain" else "on",
        loss_positions=way == "positions",
    )
    meter = Meter(steps)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(meter)
    trainer.train()
    predicted = memory(plan_of(given.blocks), trainer.applied.anatomy, work_of(given, way))
    return {
        "way": way,
        "seconds_per_step": statistics.median(meter.seconds[WARM_UP:]),
        "peak_bytes": meter.most,
        "predicted_peak_bytes": predicted.peak,
        "parameter_bytes": own_bytes(model.parameters()) - trainer.cache_report.freed_bytes,
        "predicted_parameter_bytes": predicted.weights,
        "caching_seconds": trainer.cache_report.seconds,
        "where": meter.where(),
        "loss": trainer.last_loss,
        "notices": list(trainer.notices),
    }


def _unpinned(kind: Any, *given: Any, pinned: bool, **options: Any) -> Any:
    return kind(*given, pinned=False, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--blocks", type=int, help="by default as many as fit")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--memory", help="of the device, by default all of it")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        Path(given.folder, f"{given.way}.json").write_text(json.dumps(run(given)), encoding="utf-8")
        return
    if given.blocks is None:
        if given.memory is None and not torch.cuda.is_available():
            parser.error("there is no GPU: use --blocks, or --memory")
        given.memory = given.memory or str(torch.cuda.get_device_properties(0).total_memory)
        given.blocks = largest(given)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        own = {key: getattr(given, key) for key in ("width", "blocks", "length", "batch", "vocabulary", "steps")}
        shared = [str(part) for key, value in own.items() for part in (f"--{key}", value)]
        environment = {**os.environ, "FROSTLINE_CACHE": f"{folder}/cache"}
        for way in WAYS:
            command = [sys.executable, __file__, *shared, "--way", way, "--folder", folder]
            subprocess.run(command, check=True, env=environment)
            found.append(json.loads(Path(folder, f"{way}.json").read_text(encoding="utf-8")))
    table = Table("way", "s/step", "x", "peak GiB", "x", "predicted GiB", "weights GiB", "predicted", "where time goes")
    first = found[0]
    for each in found:
        sizes = [each[key] / 2**30 for key in ("peak_bytes", "predicted_peak_bytes", "parameter_bytes")]
        most = ", ".join(f"{kind} {share:.2f}" for kind, share in list(each["where"].items())[:4])
        table.add_row(
            each["way"],
            f"{each['seconds_per_step']:.4f}",
            f"{each['seconds_per_step'] / first['seconds_per_step']:.2f}",
            f"{sizes[0]:.3f}",
            f"{each['peak_bytes'] / first['peak_bytes']:.2f}" if first["peak_bytes"] else "",
            f"{sizes[1]:.3f}",
            f"{sizes[2]:.3f}",
            f"{each['predicted_parameter_bytes'] / 2**30:.3f}",
            most,
        )
    Console(width=160).print(
        f"{given.blocks} blocks of width {given.width}, {given.batch} x {given.length} tokens", table
    )
    if given.out:
        given.out.write_text(json.dumps({"versions": versions(), "given": own, "ways": found}, indent=2), "utf-8")


if __name__ == "__main__":
    main()
