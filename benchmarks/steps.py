"""What a training step costs under each strategy, as a ratio to full fine-tuning, side by side in one process.

Every round runs each strategy once, in turn, on the same batches, so that what else the machine does falls on all
alike; the figures are medians over rounds with their quartiles. Losses stand beside the times: each strategy
starts from the same weights, so the first loss is the same for all (LoRA and untied heads included).

    python benchmarks/steps.py --model MODEL [--precision float32] [--rounds 7] [--out result.json]

Without --model it takes the model that the package carries.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from frostline.checkpoints import load_config, load_weights
from frostline.run import make_plan, versions
from frostline.run.demo import MODEL_DIR
from frostline.surgery import apply

STRATEGIES = ("all", "bot25", "bot50", "bot75", "top50", "int50", "random50", "lora", "head")


class Contender:
    """One model under one strategy, with its optimizer."""

    def __init__(self, model: str, strategy: str, bfloat16: bool) -> None:
        self.name, self.bfloat16 = strategy, bfloat16
        self.model: Any = load_weights(model, AutoModelForCausalLM, load_config(model), "float32")
        apply(make_plan(self.model, strategy), self.model)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.trained = sum(parameter.numel() for parameter in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=5e-5)
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def step(self, ids: torch.Tensor) -> None:
        """One optimizer step on token ids [batch, length]."""
        begun = time.perf_counter()
        self.model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bfloat16):
            loss = self.model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds.append(time.perf_counter() - begun)
        self.losses.append(loss.item())


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def run(model: str, precision: str, rounds: int, batch: int, length: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    contenders = [Contender(model, strategy, precision == "bfloat16") for strategy in STRATEGIES]
    vocabulary = contenders[0].model.config.vocab_size
    for round_ in range(rounds + 1):
        ids = torch.randint(3, vocabulary, (batch, length))
        for contender in contenders:
            contender.step(ids)
        if round_ == 0:  # the first round warms caches up
            for contender in contenders:
                contender.seconds.clear()
    baseline = contenders[0].seconds
    rows = [
        {
            "strategy": contender.name,
            "trainable_parameters": contender.trained,
            "time_ratio": quartiles([own / base for own, base in zip(contender.seconds, baseline, strict=True)]),
            "seconds": statistics.median(contender.seconds),
            "first_loss": contender.losses[0],
            "last_loss": contender.losses[-1],
        }
        for contender in contenders
    ]
    setting = {"model": Path(model).name, "precision": precision, "batch": batch, "length": length, "rounds": rounds}
    return {"setting": setting, "versions": versions(), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL_DIR))
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-steps.json"))
    options = parser.parse_args()
    result = run(options.model, options.precision, options.rounds, options.batch, options.length)
    table = Table(title=f"step time, ratio to all: {result['setting']}")
    for column in ("strategy", "trained", "median", "quartiles", "s/step", "first loss", "last loss"):
        table.add_column(column, justify="left" if column == "strategy" else "right")
    for row in result["rows"]:
        low, middle, high = row["time_ratio"]
        table.add_row(
            row["strategy"],
            f"{row['trainable_parameters']:,}",
            f"{middle:.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{row['seconds']:.3f}",
            f"{row['first_loss']:.4f}",
            f"{row['last_loss']:.4f}",
        )
    Console().print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
