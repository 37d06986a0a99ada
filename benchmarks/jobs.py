"""What the benchmarks train: models, rows, plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from frostline.checkpoints import load_tokenizer, quiet_libraries
from frostline.plan import Plan
from frostline.run import make_plan
from frostline.run._setup import load_model
from frostline.tasks import Collator, PackingCollator, encode, load_task, model_kind, prepare_tokenizer

LENGTH = 128


@dataclass(frozen=True)
class Setting:
    """A model, its data and a plan. `padded` fills every batch to 128 tokens; if not, `cached` alone packs its rows."""

    model: str
    task: str
    strategy: str
    batch: int
    padded: bool = True

    @property
    def name(self) -> str:
        return f"{self.model.rpartition('/')[2]} {self.task} {self.strategy}{'' if self.padded else ' unpadded'}"


SETTINGS = {
    "minilm-rte-bot50": Setting("sentence-transformers/all-MiniLM-L6-v2", "rte", "bot50", 32),
    "minilm-rte-bot75": Setting("sentence-transformers/all-MiniLM-L6-v2", "rte", "bot75", 32),
    "minilm-mnli-bot50": Setting("sentence-transformers/all-MiniLM-L6-v2", "mnli", "bot50", 32),
    "minilm-mnli-bot75": Setting("sentence-transformers/all-MiniLM-L6-v2", "mnli", "bot75", 32),
    "base16-webnlg-bot50": Setting("frostline/base16", "webnlg", "bot50", 16),
    "base16-webnlg-bot75": Setting("frostline/base16", "webnlg", "bot75", 16),
    "base16-webnlg-bot75-unpadded": Setting("frostline/base16", "webnlg", "bot75", 16, padded=False),
    "decoder32k-bot50": Setting("random", "quarter", "bot50", 16),
    "decoder32k-bot75": Setting("random", "quarter", "bot75", 16),
}


@dataclass
class Job:
    """What all contenders of a setting share."""

    setting: Setting
    rows: list[dict[str, Any]]
    model: Callable[[], Any]
    plan: Plan
    collate: Callable[[Any], Any]
    collate_cached: Callable[[Any], Any]


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


def real_job(setting: Setting, count: int) -> Job:
    task = load_task(setting.task)
    with quiet_libraries():
        first = load_model(setting.model, task, seed=0, dtype="float32")
        tokenizer = prepare_tokenizer(load_tokenizer(setting.model))
    rows = [dict(row) for row in encode(task, "train", tokenizer, LENGTH, model_kind(first.config))][:count]

    def model() -> Any:
        with quiet_libraries():
            return without_dropout(load_model(setting.model, task, seed=0, dtype="float32"))

    padded = Collator(tokenizer, pad_to=LENGTH)
    cached = padded if setting.padded else PackingCollator()
    return Job(setting, rows, model, make_plan(first, setting.strategy), padded, cached)


def random_job(setting: Setting, count: int) -> Job:
    """A 12-block decoder of width 512 with a vocabulary of 32k."""

    def model() -> Any:
        torch.manual_seed(0)
        return LlamaForCausalLM(decoder_config(12))

    plan = make_plan(model(), setting.strategy)
    return Job(setting, quarter_labelled(count), model, plan, without_padding, without_padding)


def random_rows(count: int, length: int, labelled: int) -> list[dict[str, list[int]]]:
    """Rows of `length` random tokens, of which the last ones are labelled."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 32000, (count, length), generator=random).tolist()
    return [{"input_ids": row, "labels": [-100] * (length - labelled) + row[-labelled:]} for row in ids]


def quarter_labelled(count: int) -> list[dict[str, list[int]]]:
    """Rows of 128 random tokens, the last quarter labelled."""
    return random_rows(count, LENGTH, LENGTH // 4)


def without_padding(rows: Any) -> dict[str, torch.Tensor]:
    batch = {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}
    return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


def decoder_config(blocks: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=blocks,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )


def job_of(setting: Setting, count: int) -> Job:
    return random_job(setting, count) if setting.model == "random" else real_job(setting, count)
