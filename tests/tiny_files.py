"""A tiny random model with a tokenizer, and a tiny classification task, as files that a run can be given."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from architectures import VOCABULARY, tiny

SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = ["warm", "cached", "sun", "snow", "day", "night", "the", "a", "is", "was"]


def write_model(folder: Path, name: str = "llama") -> Path:
    """A random model of 4 blocks, and a tokenizer that knows ten words."""
    tiny(name, max_position_embeddings=256).save_pretrained(folder)
    known = [*SPECIALS, *WORDS]
    known += [f"w{number}" for number in range(VOCABULARY - len(known))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def write_task(folder: Path, rows: int = 16) -> Path:
    """Sentences about warm and cached days, half of each label."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", rows), ("dev", 8)):
        lines = [
            {"text": f"the {WORDS[i % 2]} {WORDS[4 + i // 2 % 2]} is w{i % 5}", "label": ("yes", "no")[i % 2]}
            for i in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
