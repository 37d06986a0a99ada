"""Processor time from `train()` to the first optimizer step: of transformers.Trainer, and of frostline's with a cache.

empty    the activation cache is empty: every row passes the frozen bottom
full     all rows are in it
plain    transformers.Trainer with the same tensors frozen by `requires_grad`
bottom   the forward passes of the frozen bottom alone, in the batches of the caching pass: no start can be shorter

python benchmarks/startup.py [--rows 2000] [--rounds 3] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import logging
import os
import pstats
import statistics
import tempfile
import time
import warnings
from typing import Any

import torch
import transformers
from frozen_bottom import baseline
from jobs import SETTINGS, real_job
from transformers import TrainerCallback, TrainingArguments

from frostline.anatomy import find_anatomy
from frostline.bottom import BATCH_TOKENS, batches_by_length
from frostline.engine import Trainer
from frostline.hooks import capture


class FirstStep(TrainerCallback):
    """Ends training before its first optimizer step."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        raise KeyboardInterrupt


def seconds(trainer: Any) -> float:
    trainer.add_callback(FirstStep())
    begun = time.process_time()
    try:
        trainer.train()
    except KeyboardInterrupt:
        return time.process_time() - begun
    raise AssertionError("training ended without a step")


def bottom_alone(job: Any, blocks: int) -> float:
    model = job.model().eval()
    anatomy = find_anatomy(model)
    last = {"states": anatomy.blocks[blocks - 1].name}
    begun = time.process_time()
    for rows in batches_by_length(job.rows, lambda row: len(row["input_ids"]), BATCH_TOKENS["cpu"]):
        length = max(len(row["input_ids"]) for row in rows)
        batch = {key: value[:, :length] for key, value in job.collate(rows).items() if value.dim() > 1}
        with torch.no_grad():
            capture(model, last, batch)
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    job = real_job(SETTINGS["minilm-rte-bot50"], given.rows)
    found: dict[str, list[float]] = {"plain": [], "empty": [], "full": []}
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, num_train_epochs=3, per_device_train_batch_size=32, use_cpu=True, report_to="none",
            save_strategy="no", remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip

        def ours() -> Any:
            return Trainer(
                job.model(), args, plan=job.plan, train_dataset=job.rows, data_collator=job.collate_cached,
                activation_cache="on",
            )  # fmt: skip

        for number in range(given.rounds):
            os.environ["FROSTLINE_CACHE"] = f"{folder}/cache{number}"
            model = baseline("plain", job)
            found["plain"].append(
                seconds(transformers.Trainer(model, args, train_dataset=job.rows, data_collator=job.collate))
            )
            for what in ("empty", "full"):
                trainer = ours()
                if given.profile and number == given.rounds - 1:
                    profile = cProfile.Profile()
                    profile.enable()
                found[what].append(seconds(trainer))
                if given.profile and number == given.rounds - 1:
                    profile.disable()
                    pstats.Stats(profile).sort_stats("cumulative").print_stats(45)
    for what, times in found.items():
        print(f"{what:8}{statistics.median(times):6.2f} s  ({min(times):.2f} to {max(times):.2f})")
    print(f"{'bottom':8}{bottom_alone(job, job.plan.boundary):6.2f} s")


if __name__ == "__main__":
    main()
