"""Very long texts are cut before they are tokenized, and have the tokens that they would have had."""

from __future__ import annotations

import base64
import random
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from frostline.tasks import Example, Task, TaskKind, encode, prepare_tokenizer
from frostline.tasks._clip import clip_texts

PLAIN = "Tom went to the market, bought 12 apples (3.50 each) and didn't come back.\n"
TEXTS = {
    "words": PLAIN * 1500,
    "spaces between": PLAIN * 80 + " " * 60_000 + PLAIN * 80,
    "no spaces": "x" * 40_000,
    "no spaces first": "x" * 30_000 + " yes no" * 4_000,
    "no spaces last": "yes no " * 4_000 + "x" * 30_000,
    "another script": "日本語の文章。" * 4_000,
    "another script, in lines": "日本語の文章。\n「はい」と言った。\n" * 2_000,
    "encoded bytes": base64.b64encode(random.Random(0).randbytes(30_000)).decode(),
    "one letter": "a" * 30_000,
    "digits": "".join(map(str, range(9_000))),
    "accents": "Él añadió ümläüté ﬁn ﬂow " * 3_000,
    "short": "a b c",
}


@pytest.fixture(scope="module", params=["all-MiniLM-L6-v2", "stories260K", "base16"])
def tokenizer(request: pytest.FixtureRequest, models_dir: Path) -> Any:
    return prepare_tokenizer(AutoTokenizer.from_pretrained(models_dir / request.param))


@pytest.mark.parametrize("most", [1, 60, 400])
@pytest.mark.parametrize("name", TEXTS)
def test_the_first_and_the_last_tokens_are_those_of_the_whole_text(name: str, most: int, tokenizer: Any) -> None:
    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    whole = tokens(TEXTS[name])
    start, end = (tokens(clip_texts(tokenizer, [TEXTS[name]], most, side)[0]) for side in ("start", "end"))
    assert start[:most] == whole[:most]
    assert end[-most:] == whole[-most:]
    assert (len(start) > most) == (len(end) > most) == (len(whole) > most), "that it was cut is still seen"


def test_a_text_of_words_is_cut(tokenizer: Any) -> None:
    [text] = clip_texts(tokenizer, [TEXTS["words"]], 60, "start")
    assert len(text) < 2_000


def test_a_vocabulary_that_goes_on_after_a_space_is_left_alone(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()
    assert len(clip_texts(tokenizer, [PLAIN * 1000], 8, "start")[0]) < 1_000
    other = make_tokenizer()
    other.add_tokens(["of the"])
    assert clip_texts(other, [PLAIN * 1000], 8, "start") == [PLAIN * 1000]


KINDS = [
    (TaskKind.CLASSIFICATION, Example("a", TEXTS["words"], label=0), "encoder"),
    (TaskKind.CLASSIFICATION, Example("a", TEXTS["words"], "short", label=0), "encoder"),
    (TaskKind.CLASSIFICATION, Example("a", "short", TEXTS["words"], label=0), "encoder"),
    (TaskKind.CLASSIFICATION, Example("a", TEXTS["words"], "short", label=0), "decoder"),
    (TaskKind.GENERATION, Example("a", TEXTS["words"], target="yes"), "decoder"),
    (TaskKind.GENERATION, Example("a", "Why?", target=TEXTS["words"]), "decoder"),
    (TaskKind.GENERATION, Example("a", TEXTS["words"], target=TEXTS["words"]), "encoder-decoder"),
    (TaskKind.LANGUAGE, Example("a", TEXTS["words"]), "decoder"),
    (TaskKind.CHOICE, Example("a", TEXTS["words"], choices=("yes", "no"), label=0), "encoder"),
    (TaskKind.TAGGING, Example("a", words=tuple(TEXTS["words"].split()), tags=(0,) * 21_000), "encoder"),
]


@pytest.mark.parametrize(("kind", "example", "model"), KINDS)
def test_rows_are_those_of_the_whole_text(
    kind: TaskKind, example: Example, model: Any, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "all-MiniLM-L6-v2" if model == "encoder" else "base16"
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(models_dir / name))
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.pad_token
    if example.words:
        example = Example("a", words=example.words, tags=(0,) * len(example.words))
    task = Task("t", kind, [example], [example], "loss", labels=("O", "B-A"))
    cut = encode(task, "train", tokenizer, 100, model)
    for module in ("_encode", "_encode_heads", "_words"):
        monkeypatch.setattr(f"frostline.tasks.{module}.clip_texts", lambda _tokenizer, texts, _most, _side: list(texts))
    assert cut == encode(task, "train", tokenizer, 100, model)
    assert cut.truncated == 1


@pytest.mark.parametrize("piece", [PLAIN, "日本語の文章。\n"])
def test_fifty_megabytes_take_no_time(piece: str, models_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models_dir / "all-MiniLM-L6-v2")
    example = Example("a", piece * (50 * 10**6 // len(piece)), label=0)
    task = Task("t", TaskKind.CLASSIFICATION, [example], [example], "loss", labels=("a", "b"))
    begun = time.process_time()
    assert encode(task, "train", tokenizer, 128, "encoder").lengths == [128]
    assert time.process_time() - begun < 5  # the whole text takes half a minute and gigabytes


@pytest.mark.parametrize("piece", [PLAIN, "日本語の文章。\n", "0aF"])
def test_the_end_of_fifty_megabytes_is_cut(piece: str, models_dir: Path) -> None:
    """Not so for "0aF" under WordPiece: a word of any length is one token, so the text is read whole."""
    tokenizer = AutoTokenizer.from_pretrained(models_dir / "base16")
    assert len(clip_texts(tokenizer, [piece * (50 * 10**6 // len(piece))], 128, "end")[0]) < 100_000
