"""The good inputs that are damaged: all made here, tiny, and the same each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pyarrow
import torch
import transformers
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import frostline as fl
from frostline.plan import document

WORDS = ("warm", "cold", "sun", "snow", "day", "night", "the", "a", "is", "was")
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")
SMALL = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
ENDS = {"decoder_start_token_id": 0, "eos_token_id": 2}
SIZES: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "num_key_value_heads": 1, "max_position_embeddings": 256},
    "bert": {**SMALL, "max_position_embeddings": 256},
    "gpt2": {"vocab_size": 32, "n_embd": 8, "n_layer": 3, "n_head": 2, "n_positions": 256},
    "t5": {
        "vocab_size": 32,
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 16,
        "num_layers": 2,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    },
    "mixtral": {**SMALL, "num_key_value_heads": 1, "num_local_experts": 2, "max_position_embeddings": 256},
    "modernbert": {**SMALL, "pad_token_id": 0, "max_position_embeddings": 256},
}
MODELS = ("llama", "bert", "gpt2", "t5", "mixtral", "modernbert")
CLASSES = {"bert": "BertForMaskedLM", "modernbert": "ModernBertForMaskedLM", "t5": "T5ForConditionalGeneration"}

CONFIG = {
    "strategy": "bot50",
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "max_length": 16,
    "bf16": False,
    "threads": 1,
    "activation_cache": "off",
    "learning_rate": 1e-3,
    "generate_rows": 1,
    "max_new_tokens": 2,
    "data": {"columns": {"text": "text", "label": "label"}, "eval_share": 0.25},
}


def write_model(folder: Path, kind: str = "llama") -> Path:
    """A random model with a tokenizer of ten words."""
    config = transformers.AutoConfig.for_model(kind, **SIZES[kind])
    auto = getattr(transformers, CLASSES.get(kind, ""), None) or transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto(config) if kind in CLASSES else auto.from_config(config)
    model.save_pretrained(folder)
    known = [*SPECIALS, *WORDS]
    known += [f"w{number}" for number in range(SMALL["vocab_size"] - len(known))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def rows(count: int = 8) -> list[dict[str, Any]]:
    """Rows of a classification of two labels."""
    return [{"text": f"the {WORDS[i % 2]} {WORDS[4 + i % 3]}", "label": ("yes", "no")[i % 2]} for i in range(count)]


FORMS: tuple[list[dict[str, Any]], ...] = (
    rows(),
    [{"text": f"the day {i}"} for i in range(6)],
    [{"prompt": f"the {w}", "completion": "sun"} for w in WORDS[:6]],
    [{"premise": "the sun", "hypothesis": f"the {w}", "label": i % 3} for i, w in enumerate(WORDS[:6])],
    [{"text": f"the {w}", "score": i / 3, "label": i / 3} for i, w in enumerate(WORDS[:6])],
    [
        {"messages": [{"role": "user", "content": f"the {w}"}, {"role": "assistant", "content": "sun"}]}
        for w in WORDS[:5]
    ],
    [{"tokens": ["the", w], "tags": ["O", "B-X"]} for w in WORDS[:5]],
    [{"question": "the", "context": "the sun is", "answers": {"text": ["sun"], "answer_start": [4]}} for _ in range(4)],
    [{"question": f"the {w}", "choices": ["sun", "snow"], "answer": i % 2} for i, w in enumerate(WORDS[:6])],
)


def jsonl(form: list[dict[str, Any]]) -> bytes:
    """The rows as JSON lines."""
    return "".join(f"{json.dumps(row)}\n" for row in form).encode()


def csv(form: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    """The rows as CSV."""
    lines = [form[0].keys(), *(row.values() for row in form)]
    return "".join(f"{delimiter.join(map(str, line))}\n" for line in lines).encode()


def write_parquet(path: Path, form: list[dict[str, Any]], compression: str = "snappy") -> bytes:
    """The rows as Parquet: the file's bytes."""
    parquet.write_table(pyarrow.Table.from_pylist(form), path, compression=compression)
    return path.read_bytes()


def plans(model: Path) -> list[dict[str, Any]]:
    """Plans of several strategies for the model."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model)
    names = ("bot50", "lora", "int50", "bot50+lora", "head", "all")
    return [document(fl.make_plan(loaded, name)) for name in names]


def write_adapter(model: Path, folder: Path) -> Path:
    """The folder of a LoRA that PEFT wrote."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model)
    peft.get_peft_model(loaded, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    return folder
