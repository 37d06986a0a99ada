"""How far a merged model is from the trained one, for each dtype that `frostline merge` writes.

base16, whose checkpoint is in bfloat16, learns TinyStories with LoRA on every block: lightly (few steps at a low rate)
and long. The trained model is base and LoRA in float32. All logits are computed in float32, so that only the weights
differ, on rows that were held out.

    error    mean distance of the merged model's logits from the trained ones, as a share of how far training moved them
    largest  the largest distance of a logit
    kept     entries that training changed, and that rounding takes back to the base's value
    loss     on the held-out rows; that of the base and of the trained model stand beside the title

    python benchmarks/merged.py [--rows 64]

The model and the data are looked for under $FROSTLINE_MODELS and $FROSTLINE_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

import frostline as fl
from frostline.checkpoints import load_config, load_tokenizer, load_weights, quiet_libraries, save_delta

MODEL, LENGTH, BATCH = "frostline/base16", 128, 8
TRAININGS = {"light: 20 steps, rate 1e-4": (20, 1e-4), "long: 500 steps, rate 1e-3": (500, 1e-3)}


def rows(count: int) -> Tensor:
    """Rows of 128 tokens, [count, 128]."""
    tokenizer = load_tokenizer(MODEL)
    lines = Path(os.environ["FROSTLINE_DATA"], "text", "tinystories_5k.jsonl").read_text().splitlines()
    tokens: list[int] = []
    for line in lines:
        tokens += tokenizer(json.loads(line)["text"], verbose=False)["input_ids"]
        if len(tokens) >= count * LENGTH:
            break
    return torch.tensor(tokens[: count * LENGTH]).reshape(count, LENGTH)


def model_in(place: str) -> Any:
    with quiet_libraries():
        return AutoModelForCausalLM.from_pretrained(place, dtype="auto")


def train(model: Any, train_rows: Tensor, rate: float) -> None:
    """One AdamW step for each batch."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for batch in train_rows.split(BATCH):
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def logits(model: Any, held_out: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(input_ids=batch).logits for batch in held_out.split(BATCH)])


def loss(found: Tensor, held_out: Tensor) -> float:
    return cross_entropy(found[:, :-1].flatten(0, 1), held_out[:, 1:].flatten()).item()


def measure(title: str, steps: int, rate: float, count: int) -> Table:
    """The table of one training."""
    data = rows(count + steps * BATCH)
    held_out, train_rows = data[:count], data[count:]
    with tempfile.TemporaryDirectory() as scratch:
        run, config = Path(scratch) / "run", load_config(MODEL)
        model = load_weights(MODEL, AutoModelForCausalLM, config)
        before = logits(model.float(), held_out)
        model = load_weights(MODEL, AutoModelForCausalLM, config)
        torch.manual_seed(0)
        fl.apply(fl.make_plan(model, "lora"), model)
        train(model.train(), train_rows, rate)
        save_delta(model, run)
        base = load_weights(MODEL, AutoModelForCausalLM, config).float()
        trained = logits(PeftModel.from_pretrained(base, fl.export_lora(run, Path(scratch) / "lora").folder), held_out)
        moved = (trained - before).abs().mean()
        losses = f"loss {loss(before, held_out):.4f} before, {loss(trained, held_out):.4f} trained"
        table = Table("written in", "error", "largest", "kept", "loss", title=f"{title} ({losses})")
        for dtype in ("float32", "float16", "bfloat16"):
            merged = fl.merge(run, Path(scratch) / dtype, dtype=dtype)
            found = logits(model_in(str(merged.folder)).float(), held_out)
            away = (found - trained).abs()
            table.add_row(
                dtype,
                f"{away.mean() / moved:.1e}",
                f"{away.max():.1e}",
                f"{merged.lost / merged.changed:.1%}" if merged.changed else "-",
                f"{loss(found, held_out):.4f}",
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64, help="held-out rows of 128 tokens")
    given = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    for title, (steps, rate) in TRAININGS.items():
        console.print(measure(title, steps, rate, given.rows))


if __name__ == "__main__":
    main()
