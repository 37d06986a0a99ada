"""Step time above a frozen bottom of growing depth: the same four trained blocks above 4, 12 and 28 frozen ones.

Each model is a random decoder of width 512; its bottom passed once before the first round. The control is the four
blocks alone. A round trains each for a few steps, in turn; figures are ratios to the control within a round.

    python benchmarks/depth.py [--rounds 7] [--out runs/bench-depth.json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from frozen_bottom import Contender, contender, quartiles
from jobs import Job, Setting, decoder_config, quarter_labelled, without_padding
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM

from frostline.plan import Frozen, Full, Plan
from frostline.run import versions

TRAINED = 4
DEPTHS = (4, 12, 28)


def job(frozen: int, count: int) -> Job:
    def model() -> Any:
        torch.manual_seed(0)
        return LlamaForCausalLM(decoder_config(frozen + TRAINED))

    plan = Plan(blocks=(Frozen(),) * frozen + (Full(),) * TRAINED, final_norm=Full(), head=Full())
    setting = Setting("random", "quarter", f"{frozen} frozen", 8)
    return Job(setting, quarter_labelled(count), model, plan, without_padding, without_padding)


def measure(rounds: int, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FROSTLINE_CACHE"] = str(Path(folder) / "cache")
        jobs = {str(depth): job(depth, 32) for depth in DEPTHS}
        contenders: dict[str, Contender] = {
            "alone": contender("limit", jobs[str(DEPTHS[0])], folder, "float32", steps + 1)
        }
        for depth, each in jobs.items():
            contenders[depth] = contender("cached", each, folder, "float32", steps + 1)
        for number in range(rounds + 1):
            for other in contenders.values():
                other.round()
                if number == 0:
                    other.rounds.clear()
        return {name: [statistics.median(r[1:]) for r in each.rounds] for name, each in contenders.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-depth.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    seconds = measure(options.rounds, options.steps)
    table = Table("frozen blocks below 4 trained ones", "s/step", "ratio to the 4 alone", "quartiles")
    for name, values in seconds.items():
        ratios = [own / base for own, base in zip(values, seconds["alone"], strict=True)]
        low, middle, high = quartiles(ratios)
        table.add_row(name, f"{statistics.median(values):.3f}", f"{middle:.3f}", f"{low:.3f}-{high:.3f}")
    Console().print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"versions": versions(), "seconds": seconds}, indent=2) + "\n")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
