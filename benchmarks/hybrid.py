"""What hybrid tuning costs beside its parts: generation, training steps, peak memory, side by side in one process; and
how many graphs torch.compile makes of a training step.

Each round runs every contender once, in turn, on the same tokens. Figures are processor seconds with one thread, as
ratios to the first contender within a round: medians with quartiles. Generation is greedy, of a fixed number of
tokens. Training is a plain loop, the same for PEFT's own LoRA and for frostline's; peak memory is that of a fresh
process for each contender. `mixed` has every kind of adapter in one model, but the mixture of experts.

    python benchmarks/hybrid.py generate [--model MODEL] [--rounds 9]
    python benchmarks/hybrid.py train [--model MODEL] [--rounds 9]
    python benchmarks/hybrid.py graphs [--model MODEL]

Without --model it takes a random decoder of 16 blocks of width 512.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from jobs import decoder_config
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from frostline.adapters import HybridConfig
from frostline.anatomy import find_anatomy
from frostline.checkpoints import load_config, load_weights
from frostline.core.errors import UserError
from frostline.cost import trainable_parameters
from frostline.engine import MemoryMeter
from frostline.run import make_plan, versions
from frostline.surgery import apply

GENERATING: dict[str, tuple[str, dict[str, Any]]] = {
    "PEFT LoRA": ("peft", {}),
    "prefix": ("prefix", {}),
    "lora": ("lora", {}),
    "hlpt": ("hlpt", {}),
    "h2lpt": ("h2lpt", {}),
    "mixed": ("mixed", {}),
    "lora-r4": ("lora", {"r": 4}),
    "hlpt-ungated": ("hlpt", {"lora": {"gate": False}, "prefix": {"gate": "none"}}),
    "no adapters": ("", {}),
}
TRAINING: dict[str, tuple[str, dict[str, Any]]] = {
    "PEFT LoRA": ("peft", {}),
    "hlpt": ("hlpt", {}),
    "h2lpt": ("h2lpt", {}),
    "lora": ("lora", {"dropout": 0.0}),
    "prefix": ("prefix", {}),
    "mixed": ("mixed", {}),
    "all": ("all", {}),
}
COMPILED = ("PEFT LoRA", "hlpt", "h2lpt", "mixed")


def load(model: str) -> Any:
    if model:
        return load_weights(model, AutoModelForCausalLM, load_config(model), "float32")
    torch.manual_seed(0)
    return LlamaForCausalLM(decoder_config(16))


def adapted(model: str, strategy: str, options: dict[str, Any]) -> Any:
    base = load(model)
    if strategy == "peft":
        return peft_lora(base)
    if strategy == "mixed":
        return mixed(base)
    if strategy:
        apply(make_plan(base, strategy, options=options), base)
    return base


def peft_lora(base: Any) -> Any:
    """PEFT's LoRA on queries and values, of the rank whose parameters come closest to those of hlpt."""
    anatomy = find_anatomy(base)
    wanted = trainable_parameters(make_plan(base, "hlpt"), anatomy)
    of_rank_one = trainable_parameters(make_plan(base, "lora", options={"r": 1}), anatomy)
    rank = max(1, round(wanted / of_rank_one))
    return get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj"]))


def mixed(base: Any) -> Any:
    """Gated LoRA, parallel and series adapters, and gated prefixes, each in a quarter of the blocks, from below."""
    kinds: list[dict[str, Any]] = [
        {"mode": "lora", "targets": "down", "gate": True, "dropout": 0.0},
        {"mode": "adapter", "kind": "parallel", "bottleneck": 8},
        {"mode": "adapter", "kind": "series", "bottleneck": 8},
        {"mode": "prefix", "length": 20},
    ]
    depth = len(find_anatomy(base).blocks)
    blocks = [{"index": index, **kinds[4 * index // depth]} for index in range(depth)]
    return get_peft_model(base, HybridConfig(blocks=blocks))


def graphs(model: str) -> list[dict[str, Any]]:
    """How many graphs torch.compile makes of one forward pass with a loss, and why it breaks, for each contender."""
    rows = []
    for name in COMPILED:
        made = adapted(model, *TRAINING[name]).train()
        ids = torch.arange(64).view(4, 16) % made.config.vocab_size
        torch._dynamo.reset()
        found = torch._dynamo.explain(made)(input_ids=ids, labels=ids, use_cache=False)
        reasons = sorted({reason.reason.splitlines()[0] for reason in found.break_reasons})
        rows.append({"name": name, "graphs": found.graph_count, "breaks": found.graph_break_count, "reasons": reasons})
    return rows


def generator(model: Any, batch: int, prompt: int, tokens: int) -> Callable[[], float]:
    model.eval()
    torch.manual_seed(1)
    ids = torch.randint(3, model.config.vocab_size, (batch, prompt))

    def run() -> float:
        begun = time.process_time()
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens
            )
        return time.process_time() - begun

    return run


def trainer(model: Any, batch: int, length: int) -> Callable[[], float]:
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    torch.manual_seed(1)
    ids = torch.randint(3, model.config.vocab_size, (batch, length))

    def run() -> float:
        begun = time.process_time()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - begun

    return run


def peak(model: str, name: str) -> int:
    """Peak private memory of a contender's steps above that before its model, in a fresh process."""
    command = [sys.executable, __file__, "train", "--model", model, "--memory-of", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(model: str, name: str) -> None:
    with MemoryMeter(interval=0.001) as memory:
        step = trainer(adapted(model, *TRAINING[name]), 8, 128)
        step()
        memory.restart_peak()
        step()
        step()
        print(memory.peak_bytes)


def measure(what: str, model: str, rounds: int) -> dict[str, Any]:
    contenders = GENERATING if what == "generate" else TRAINING
    runs: dict[str, Callable[[], float]] = {}
    parameters: dict[str, int] = {}
    for name, choice in contenders.items():
        made = adapted(model, *choice)
        parameters[name] = sum(p.numel() for p in made.parameters() if p.requires_grad) if choice[0] else 0
        runs[name] = generator(made, 8, 64, 64) if what == "generate" else trainer(made, 8, 128)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            took = run()
            if number:  # the first round warms caches up
                seconds[name].append(took)
    first = next(iter(seconds.values()))
    rows = [
        {
            "name": name,
            "trainable_parameters": parameters[name],
            "ratio": statistics.quantiles(
                [own / base for own, base in zip(values, first, strict=True)], n=4, method="inclusive"
            ),
            "seconds": statistics.median(values),
            "peak_memory_bytes": peak(model, name) if what == "train" else None,
        }
        for name, values in seconds.items()
    ]
    return {"what": what, "model": Path(model).name or "random", "rounds": rounds, "rows": rows, "versions": versions()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("generate", "train", "graphs"))
    parser.add_argument("--model", default="")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory-of", choices=TRAINING, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # which peft 0.21 reads
    if options.memory_of:
        print_peak(options.model, options.memory_of)
        return
    if options.what == "graphs":
        for row in graphs(options.model):
            print(f"{row['name']}: {row['graphs']} graphs, {row['breaks']} breaks", *row["reasons"], sep="; ")
        return
    result = measure(options.what, options.model, options.rounds)
    first = result["rows"][0]
    table = Table(title=f"{options.what}, {result['model']}: ratios to {first['name']}")
    for column in ("contender", "trained", "time", "quartiles", "seconds", "peak memory", "MiB"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for row in result["rows"]:
        low, middle, high = row["ratio"]
        memory = row["peak_memory_bytes"]
        table.add_row(
            row["name"],
            f"{row['trainable_parameters']:,}",
            f"{middle:.3f}",
            f"{low:.3f}-{high:.3f}",
            f"{row['seconds']:.2f}",
            f"{memory / first['peak_memory_bytes']:.2f}" if memory else "",
            f"{memory / 2**20:.0f}" if memory else "",
        )
    Console().print(table)
    out = options.out or Path(f"runs/bench-hybrid-{options.what}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {out}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
