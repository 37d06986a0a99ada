"""Noise in the texts that a model reads."""

from __future__ import annotations

from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest

from frostline.core.errors import ConfigError
from frostline.tasks import Task, TaskOptions, load_task

Write = Callable[..., Path]
ROWS = [{"prompt": f"Where does the {n}. of many rivers begin?", "completion": f"In hill {n}."} for n in range(60)]


def load(write: Write, rows: list[dict[str, Any]], noise: float, **options: Any) -> Task:
    return load_task(str(write("a.jsonl", rows)), TaskOptions(noise=noise, **options))


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_about_so_many_characters_differ_and_no_answer_does(share: float, write: Write) -> None:
    plain, noisy = load(write, ROWS, 0.0), load(write, ROWS, share)
    assert plain.notices == noisy.notices[:-1] and f"noise: {share:g} of the characters" in noisy.notices[-1]
    edits = total = 0
    for split in ("train", "eval"):
        for before, after in zip(plain.split(split), noisy.split(split), strict=True):
            assert (before.target, before.references, before.id) == (after.target, after.references, after.id)
            steps = SequenceMatcher(None, before.text, after.text, autojunk=False).get_opcodes()
            edits += sum(max(b - a, d - c) for kind, a, b, c, d in steps if kind != "equal")
            total += len(before.text)
    assert edits / total == pytest.approx(share, abs=4 * (share * (1 - share) / total) ** 0.5 + 0.02)


def test_each_example_has_noise_of_its_own_by_the_seed(write: Write) -> None:
    once, again, other = (load(write, ROWS, 0.2, seed=seed, eval_share=0.1) for seed in (1, 1, 2))
    few = load(write, ROWS, 0.2, seed=1, max_train_rows=5)
    assert once.fingerprint == again.fingerprint != other.fingerprint
    texts = {example.id: example.text for example in once.train}
    assert all(texts[example.id] == example.text for example in few.train)
    assert [example.text for example in once.train[3:6]] == [once.train[index].text for index in (3, 4, 5)]
    assert len({text.partition(" ")[0] for text in texts.values()}) > 5


def test_pairs_and_what_a_user_says_have_noise(write: Write) -> None:
    pair = {"premise": "all of them went home", "hypothesis": "some went home"}
    noisy = load(write, [pair | {"label": ("yes", "no")[n % 2]} for n in range(40)], 0.5)
    assert all(one.text != pair["premise"] and one.pair != pair["hypothesis"] for one in noisy.train)
    assert {one.label for one in noisy.train} == {0, 1}
    said = [("user", "how tall is tower {}?"), ("assistant", "It is {} m tall.")]
    chats = [{"messages": [{"role": role, "content": text.format(n)} for role, text in said]} for n in range(40)]
    for one in load(write, chats, 0.5).train:
        assert not one.messages[0].content.startswith("how tall is tower")
        assert one.messages[1].content.endswith("m tall.")


def test_texts_that_cannot_change_are_refused(write: Write) -> None:
    words = [{"tokens": ["Rome", "is", "old"], "tags": ["B-LOC", "O", "O"]} for _ in range(20)]
    with pytest.raises(ConfigError, match=r"data\.noise: a tagging task has none, since each word has a tag"):
        load(write, words, 0.1)
    with pytest.raises(ConfigError, match=r"data\.noise: a language task has none"):
        load(write, [{"text": f"plain {n}"} for n in range(20)], 0.1)
