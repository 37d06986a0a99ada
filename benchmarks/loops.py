"""What `fl.attach` and `fl.activation_cache` save in trainers and loops that users have, beside `requires_grad`.

    plain       the trainer or loop itself, with the plan's tensors frozen by `requires_grad`
    ours        the same with `fl.attach(trainer, plan)` or inside `fl.activation_cache(model)`
    frostline   `frostline.Trainer` without loss positions on the same rows, where its loss is that of the loop

Each trains three epochs of `bot75` (the lower three quarters of the blocks are frozen) from an empty cache: filling it
is in the time, which is processor time. Rounds alternate in one process, on one thread; a figure is the median share of
the plain time, with the range over the rounds. No dropout, float32; `difference` is the largest of any step's loss.

    python benchmarks/loops.py [CASE ...] [--rows 64] [--rounds 3] [--seconds]

Models and data are looked for under $FROSTLINE_MODELS and $FROSTLINE_DATA.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from jobs import SETTINGS, real_job
from rich.console import Console
from rich.table import Table
from transformers import DataCollatorForSeq2Seq, T5Config, T5ForConditionalGeneration

import frostline as fl
from frostline.anatomy import text_model

EPOCHS, BATCH, PLAN = 3, 8, "bot75"


@dataclass
class Ran:
    """One training: its losses, its seconds, and what frostline says of it."""

    losses: list[float]
    seconds: float
    notices: tuple[str, ...] = ()


Case = Callable[[str, Path, int], Ran]
"""How a case trains: which contender, a folder, the number of rows."""


def frozen(model: Any) -> Any:
    """`model` with the plan's tensors frozen by `requires_grad`."""
    text = text_model(model)
    planned = copy.deepcopy(text)
    fl.apply(fl.make_plan(planned, PLAN), planned)
    trained = {name for name, parameter in planned.named_parameters() if parameter.requires_grad}
    for name, parameter in text.named_parameters():
        parameter.requires_grad_(name in trained)
    return model


def settings(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-3,
        "optim": "sgd",
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def trained(trainer: Any, contender: str) -> Ran:
    if contender == "ours":
        fl.attach(trainer, plan=PLAN)
    transformers.set_seed(1)
    begun = time.process_time()
    trainer.train()
    seconds = time.process_time() - begun
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Ran(losses, seconds, getattr(trainer, "notices", ()))


def own(model: Any, contender: str) -> Any:
    return frozen(model) if contender == "plain" else model


def with_trainer(make: Callable[[Any, Path, int], Any], model: Callable[[], Any]) -> Case:
    return lambda contender, folder, rows: trained(make(own(model(), contender), folder, rows), contender)


def quick(trainer: Any, model: Any, folder: Path, rows: Any, collate: Any) -> Ran:
    """`frostline.Trainer` without loss positions."""
    args = transformers.TrainingArguments(**settings(folder), remove_unused_columns=False)
    given = {"train_dataset": rows, "data_collator": collate, "activation_cache": "on", "loss_positions": False}
    return trained(trainer(model, args, plan=PLAN, **given), "frostline")


# TRL, on a decoder of 16 blocks.


def decoder() -> Any:
    return real_job(SETTINGS["base16-webnlg-bot75"], 1).model()


def tokenizer() -> Any:
    from frostline.checkpoints import load_tokenizer

    found = load_tokenizer("frostline/base16")
    found.pad_token = found.pad_token or found.eos_token
    return found


def texts(rows: int) -> list[str]:
    job, words = real_job(SETTINGS["base16-webnlg-bot75"], rows), tokenizer()
    return [words.decode(row["input_ids"], skip_special_tokens=True) for row in job.rows]


def sft(model: Any, folder: Path, rows: int, **options: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(**settings(folder), gradient_checkpointing=False, **options)
    return SFTTrainer(model, args, train_dataset=Dataset.from_dict({"text": texts(rows)}), processing_class=tokenizer())


def packed(model: Any, folder: Path, rows: int) -> Any:
    return sft(model, folder, rows * 4, packing=True, max_length=128)


def case_sft(contender: str, folder: Path, rows: int) -> Ran:
    if contender != "frostline":
        return trained(sft(own(decoder(), contender), folder, rows), contender)
    prepared = sft(decoder(), folder, rows)
    return quick(fl.Trainer, decoder(), folder, prepared.train_dataset, prepared.data_collator)


def pairs(rows: int) -> Dataset:
    found = [text.split(" ", 8) for text in texts(rows)]
    prompts = [" ".join(words[:4]) for words in found]
    chosen = [" " + " ".join(words[4:]) for words in found]
    return Dataset.from_dict({"prompt": prompts, "chosen": chosen, "rejected": chosen[1:] + chosen[:1]})


def dpo(model: Any, folder: Path, rows: int) -> Any:
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(**settings(folder), gradient_checkpointing=False)
    reference = decoder()  # TRL would load it by the name of the model
    given = {"args": args, "train_dataset": pairs(rows), "processing_class": tokenizer()}
    return DPOTrainer(model, reference, **given)


def reward(model: Any, folder: Path, rows: int) -> Any:
    from trl import RewardConfig, RewardTrainer

    args = RewardConfig(**settings(folder), gradient_checkpointing=False)
    return RewardTrainer(model, args, train_dataset=pairs(rows), processing_class=tokenizer())


def judge() -> Any:
    base = decoder()
    torch.manual_seed(0)
    config = copy.deepcopy(base.config)
    config.num_labels, config.pad_token_id = 1, tokenizer().pad_token_id
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.base_model.load_state_dict(base.base_model.state_dict())
    return model


# sentence-transformers, on MiniLM.


def embedder() -> Any:
    from sentence_transformers import SentenceTransformer

    place = Path(os.environ["FROSTLINE_MODELS"]) / "all-MiniLM-L6-v2"
    model = SentenceTransformer(str(place), device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def sentences(loss: str) -> Callable[[Any, Path, int], Any]:
    def make(model: Any, folder: Path, rows: int) -> Any:
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
        from sentence_transformers.sentence_transformer import losses

        from frostline.tasks import load_task

        read = list(load_task("rte").train)[:rows]
        columns: dict[str, list[Any]] = {
            "anchor": [example.text for example in read],
            "positive": [example.pair for example in read],
        }
        if loss == "CosineSimilarityLoss":
            columns["score"] = [i % 10 / 10 for i in range(len(read))]
        args = SentenceTransformerTrainingArguments(**settings(folder))
        data = Dataset.from_dict(columns)
        return SentenceTransformerTrainer(model, args, train_dataset=data, loss=getattr(losses, loss)(model))

    return make


# Loops of the user's own, on MiniLM with a classifier.


def job(rows: int) -> Any:
    return real_job(SETTINGS["minilm-rte-bot75"], rows)


def batches(found: Any, rows: int) -> Iterator[dict[str, Any]]:
    for epoch in range(EPOCHS):
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(epoch)).tolist()
        for start in range(0, rows, BATCH):
            yield found.collate([found.rows[index] for index in order[start : start + BATCH]])


def maybe_cached(model: Any, contender: str, found: Any) -> AbstractContextManager[Any]:
    return fl.activation_cache(model, found.rows, found.collate) if contender == "ours" else nullcontext()


def planned(found: Any, contender: str) -> Any:
    model = own(found.model(), contender)
    if contender != "plain":
        fl.apply(found.plan, model)
    return model.train()


def plain_loop(contender: str, folder: Path, rows: int) -> Ran:
    found = job(rows)
    if contender == "frostline":
        return quick(fl.Trainer, found.model(), folder, found.rows, found.collate)
    model = planned(found, contender)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    begun = time.process_time()
    with maybe_cached(model, contender, found) as cache:
        for batch in batches(found, rows):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    return Ran(losses, time.process_time() - begun, cache.notices if cache else ())


def with_accelerate(contender: str, folder: Path, rows: int) -> Ran:
    from accelerate import Accelerator

    found = job(rows)
    model = planned(found, contender)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    losses = []
    begun = time.process_time()
    with maybe_cached(model, contender, found) as cache:
        for batch in batches(found, rows):
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    return Ran(losses, time.process_time() - begun, cache.notices if cache else ())


def with_lightning(contender: str, folder: Path, rows: int) -> Ran:
    import lightning

    found = job(rows)
    model, losses = planned(found, contender), []

    class Tuned(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _index: int) -> Any:
            loss = self.model(**batch).loss
            losses.append(float(loss.detach()))
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=1e-3)

    loader = torch.utils.data.DataLoader(found.rows, batch_size=BATCH, collate_fn=found.collate)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", enable_model_summary=False, default_root_dir=str(folder), **quiet
    )
    begun = time.process_time()
    with maybe_cached(model, contender, found) as cache:
        trainer.fit(Tuned(), loader)
    return Ran(losses, time.process_time() - begun, cache.notices if cache else ())


def seq2seq(model: Any, folder: Path, rows: int) -> Any:
    """A random T5 of 12 blocks; it generates for an evaluation after each epoch."""
    random = torch.Generator().manual_seed(0)
    found = [
        {
            "input_ids": torch.randint(3, 2000, (48 + i % 80,), generator=random).tolist(),
            "labels": torch.randint(3, 2000, (24 + i % 20,), generator=random).tolist(),
        }
        for i in range(rows)
    ]
    args = transformers.Seq2SeqTrainingArguments(
        **settings(folder), predict_with_generate=True, eval_strategy="epoch", generation_max_length=8
    )
    pad = DataCollatorForSeq2Seq(tokenizer(), model)
    return transformers.Seq2SeqTrainer(model, args, train_dataset=found, eval_dataset=found[:8], data_collator=pad)


def t5() -> Any:
    torch.manual_seed(0)
    sizes = {"d_model": 256, "d_ff": 1024, "d_kv": 32, "num_heads": 8, "num_layers": 6, "vocab_size": 2000}
    return T5ForConditionalGeneration(
        T5Config(**sizes, dropout_rate=0.0, pad_token_id=0, decoder_start_token_id=0, eos_token_id=1)
    )


CASES: dict[str, Case] = {
    "sft": case_sft,
    "sft-packed": with_trainer(packed, decoder),
    "dpo": with_trainer(dpo, decoder),
    "reward": with_trainer(reward, judge),
    "st-ranking": with_trainer(sentences("MultipleNegativesRankingLoss"), embedder),
    "st-cosine": with_trainer(sentences("CosineSimilarityLoss"), embedder),
    "seq2seq": with_trainer(seq2seq, t5),
    "loop": plain_loop,
    "accelerate": with_accelerate,
    "lightning": with_lightning,
}
WITH_FROSTLINE = ("sft", "loop")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    table = Table("trainer", "share of plain", "range", "frostline.Trainer", "plain, s", "difference", "notices")
    for name in given.cases or CASES:
        contenders = ("plain", "ours", *(("frostline",) if name in WITH_FROSTLINE else ()))
        runs: dict[str, list[Ran]] = {contender: [] for contender in contenders}
        for _ in range(given.rounds):
            for contender in contenders:
                with tempfile.TemporaryDirectory() as folder:
                    os.environ["FROSTLINE_CACHE"] = f"{folder}/cache"
                    runs[contender].append(CASES[name](contender, Path(folder), given.rows))
        plain = [run.seconds for run in runs["plain"]]

        def shares(contender: str, runs: Any = runs, plain: Any = plain) -> list[float]:
            return [run.seconds / seconds for run, seconds in zip(runs[contender], plain, strict=True)]

        ours = shares("ours")
        mine, theirs = runs["ours"][0].losses, runs["plain"][0].losses
        away = max(abs(a - b) for a, b in zip(mine, theirs, strict=True))
        table.add_row(
            name,
            f"{statistics.median(ours):.2f}",
            f"{min(ours):.2f}-{max(ours):.2f}",
            f"{statistics.median(shares('frostline')):.2f}" if "frostline" in runs else "",
            f"{statistics.median(plain):.1f}",
            f"{away:.0e}",
            "; ".join(runs["ours"][0].notices),
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
