"""Does the embedded model's pretraining matter on the demo's task? Full fine-tuning, pretrained against random start.

    python benchmarks/random_start.py [--seeds 0 1 2]

Both have the same shape, rows, steps and learning rate; chance is 0.5.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments, set_seed

from frostline.engine import Trainer
from frostline.run import make_plan
from frostline.run.demo import MODEL_DIR, STUDY, write
from frostline.tasks import Collator, Task, encode, evaluate, load_task, prepare_tokenizer

ALL = next(choice for choice in STUDY["strategies"] if choice["name"] == "all")


def accuracy(task: Task, pretrained: bool, seed: int, folder: Path) -> float:
    """Accuracy on the dev split after full fine-tuning from one start."""
    set_seed(seed)
    config = AutoConfig.from_pretrained(MODEL_DIR, num_labels=len(task.labels))
    auto: Any = AutoModelForSequenceClassification
    model = (
        auto.from_pretrained(MODEL_DIR, config=config, dtype=torch.float32) if pretrained else auto.from_config(config)
    )
    model = model.float()
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(MODEL_DIR), model)
    settings = STUDY["config"]
    arguments = TrainingArguments(
        output_dir=str(folder),
        seed=seed,
        max_steps=settings["max_steps"],
        per_device_train_batch_size=settings["per_device_train_batch_size"],
        learning_rate=ALL["learning_rate"],
        lr_scheduler_type=settings["lr_scheduler_type"],
        warmup_steps=settings["warmup_steps"],
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = encode(task, "train", tokenizer, settings["max_length"], "decoder")
    Trainer(
        model, arguments, plan=make_plan(model, "all"), train_dataset=rows, data_collator=Collator(tokenizer)
    ).train()
    return evaluate(model, tokenizer, task, max_length=settings["max_length"]).metrics["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "data")
        task = load_task(str(Path(folder) / "data"))
        for pretrained in (True, False):
            found = [accuracy(task, pretrained, seed, Path(folder) / "run") for seed in seeds]
            name = "pretrained" if pretrained else "random start"
            print(f"{name}: {statistics.mean(found):.3f} ({', '.join(f'{value:.3f}' for value in found)})")


if __name__ == "__main__":
    main()
