"""The embedded default: the generated task says nothing on its surface, and the shipped model has read English."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from frostline.run.demo import MODEL_DIR
from frostline.run.demo.task import KINDS, LABELS, NAMES, PATTERNS, ROWS, WORDS, rows, write

STORIES = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside with her dog.",
    'Tom lost his red ball in the park. He was very sad. His mom said, "Don\'t cry, we will find it."',
    "The cat and the bird were good friends. They played all day and then they went home to sleep.",
)


@pytest.mark.parametrize("split", ROWS)
def test_rows_are_deterministic_distinct_and_balanced(split: str) -> None:
    found = rows(split)
    assert found == rows(split)
    assert found != rows(split, seed=1)
    assert len({row["text"] for row in found}) == len(found) == ROWS[split]
    assert Counter(row["label"] for row in found) == dict.fromkeys(LABELS, ROWS[split] // 2)


def _vocabulary(split: str) -> set[str]:
    return {word for choices in WORDS[split].values() for word in choices}


def test_no_content_word_stands_in_both_splits() -> None:
    assert not _vocabulary("train") & _vocabulary("dev")
    for split, other in (("train", "dev"), ("dev", "train")):
        seen = {word for row in rows(split) for word in row["text"].split()}
        assert not seen & _vocabulary(other)


@pytest.mark.parametrize("split", ROWS)
def test_each_word_has_one_kind_so_that_a_swap_always_breaks_the_sentence(split: str) -> None:
    kinds: dict[str, set[str]] = {}
    for place, choices in WORDS[split].items():
        assert len(set(choices)) == len(choices)
        for word in choices:
            kinds.setdefault(word, set()).add(KINDS.get(place, place))
    assert all(len(kind) == 1 for kind in kinds.values())


@pytest.mark.parametrize("split", ROWS)
def test_the_order_of_the_small_words_is_that_of_a_pattern_under_both_labels(split: str) -> None:
    content = {word for place in KINDS for word in WORDS[split][place]}
    other = set(NAMES) | set(WORDS[split]["place"])

    def skeleton(text: str) -> str:
        return " ".join("*" if word in content else "+" if word in other else word for word in text.split())

    patterns = {re.sub(r"{(name|place)}", "+", pattern) for pattern in PATTERNS}
    patterns = {re.sub(r"{\w+}", "*", pattern) for pattern in patterns}
    for label in LABELS:
        assert {skeleton(row["text"]) for row in rows(split) if row["label"] == label} == patterns


def test_words_and_pairs_of_words_cannot_tell_the_labels_of_dev() -> None:
    """Naive Bayes, trained on the words and neighbouring words of train, stays near chance on dev."""

    def features(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {(word,) for word in words} | set(pairwise(words))

    counts = {label: Counter[tuple[str, ...]]() for label in LABELS}
    for row in rows("train"):
        counts[row["label"]].update(features(row["text"]))

    def guess(text: str) -> str:
        return max(LABELS, key=lambda label: sum(math.log(counts[label][f] + 1) for f in features(text)))

    right = sum(guess(row["text"]) == row["label"] for row in rows("dev"))
    assert abs(right / ROWS["dev"] - 0.5) < 0.08


def test_write_gives_the_rows_as_jsonl(tmp_path: Path) -> None:
    write(tmp_path)
    for split in ROWS:
        lines = (tmp_path / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == rows(split)


def test_the_shipped_folder_is_small_and_holds_no_pickle() -> None:
    files = [path for path in MODEL_DIR.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    assert (MODEL_DIR / "README.md").is_file()


def test_the_shipped_model_has_read_english() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    assert model.config.num_hidden_layers >= 8
    assert {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} == {0, 1, 2}
    for text in STORIES:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        assert ids[0, 0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == text
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss.item()
        assert loss < 0.45 * math.log(model.config.vocab_size)


def test_the_shipped_model_loads_as_a_classifier_that_knows_its_padding() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForSequenceClassification.from_pretrained(MODEL_DIR, num_labels=2, dtype=torch.float32).eval()
    texts = [row["text"] for row in rows("dev")[:4]]
    with torch.no_grad():
        together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
