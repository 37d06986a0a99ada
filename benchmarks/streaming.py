"""A model whose frozen bottom is read block by block, beside one that is held whole: memory and losses.

A random Llama of about 1.1 billion parameters (2.2 GB in bfloat16) is written to a temporary folder; its top two
blocks and head train on 200 rows, once by plain freezing and once with the bottom streamed from the checkpoint,
each in a fresh process. Memory is the process's largest resident set, all pages counted, and of it the private
ones (the rest is mapped from files, which the system may drop).

    python benchmarks/streaming.py [--rows 200] [--length 64] [--blocks 22] [--out runs/bench-streaming.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from jobs import random_rows, without_padding
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from frostline.checkpoints import load_above, load_config, load_weights
from frostline.engine import Trainer
from frostline.plan import Frozen, Full, Plan
from frostline.run import versions

TRAINED = 2


def write_model(folder: Path, blocks: int) -> None:
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=blocks,
        num_attention_heads=32,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="500MB")


class Watch:
    """The largest resident and private memory of this process, in bytes, read every 10 ms."""

    def __init__(self) -> None:
        self.resident = self.private = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            fields = dict(
                line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line
            )
            self.resident = max(self.resident, int(fields["VmRSS"].split()[0]) * 1024)
            self.private = max(self.private, int(fields["RssAnon"].split()[0]) * 1024)
            time.sleep(0.01)


def train(way: str, model: str, count: int, length: int, epochs: int) -> dict[str, Any]:
    torch.set_num_threads(os.cpu_count() or 1)
    transformers.logging.set_verbosity_error()
    config = load_config(model)
    watch = Watch()
    blocks = config.num_hidden_layers
    plan = Plan(blocks=(Frozen(),) * (blocks - TRAINED) + (Full(),) * TRAINED, final_norm=Full(), head=Full())
    options: dict[str, Any] = {"activation_cache": "off"}
    if way == "streaming":
        part, load = load_above(model, AutoModelForCausalLM, config, plan.boundary)
        options = {"activation_cache": "on", "load_bottom": load}
    else:
        part = load_weights(model, AutoModelForCausalLM, config)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FROSTLINE_CACHE"] = folder
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            num_train_epochs=epochs,
            per_device_train_batch_size=8,
            learning_rate=1e-4,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        rows = random_rows(count, length, length - length // 2)
        begun = time.perf_counter()
        trainer = Trainer(part, arguments, plan=plan, train_dataset=rows, data_collator=without_padding, **options)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        seconds = time.perf_counter() - begun
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "seconds": seconds,
        "caching_seconds": trainer.cache_report.seconds,
        "resident": watch.resident,
        "private": watch.private,
        "losses": [float(loss) for loss in losses],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=22)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--way", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-streaming.json"))
    options = parser.parse_args()
    if options.way:
        print(json.dumps(train(*options.way, options.rows, options.length, options.epochs)))
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), options.blocks)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        for way in ("plain", "streaming"):
            command = [sys.executable, __file__, "--way", way, folder, "--rows", str(options.rows)]
            command += ["--length", str(options.length), "--epochs", str(options.epochs)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            results[way] = json.loads(done.stdout.splitlines()[-1])
    table = Table("way", "peak resident GB", "peak private GB", "seconds", "first loss", "last loss")
    for way, result in results.items():
        resident, private = (f"{result[key] / 1e9:.2f}" for key in ("resident", "private"))
        first, last = (f"{result['losses'][i]:.4f}" for i in (0, -1))
        table.add_row(way, resident, private, f"{result['seconds']:.0f}", first, last)
    Console().print(table)
    pairs = zip(results["plain"]["losses"], results["streaming"]["losses"], strict=True)
    apart = max(abs(one - other) for one, other in pairs)
    print(f"weights on disk: {size / 1e9:.2f} GB; losses of a step differ by at most {apart:.1e}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"versions": versions(), "bytes": size, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
