"""Chats from training to `frostline generate --messages`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from command_line import frostline
from frostline.core.errors import DataError
from frostline.tasks import Message, chat_prompt, read_chats
from grids import slow_but
from tiny_files import write_model

SPECIAL = (
    "{{ bos_token }}{% if tools %}w7 {% for tool in tools %}{{ tool.name }} {% endfor %}{% endif %}"
    "{% for m in messages %}w8 {{ m.role }} {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}w8 assistant {% endif %}"
)
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}Ask: {{ m.content }}\nSay:{% else %} "
    "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
CHATS = [
    [{"role": "user", "content": "the warm day"}, {"role": "assistant", "content": "sun is warm"}],
    [{"role": "user", "content": "the cached night"}, {"role": "assistant", "content": "snow"}],
]


def tiny(folder: Path) -> Path:
    """A tiny model whose turns end with a token that is not its tokenizer's end token."""
    write_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = {"w101": "<end>"}
    text = (folder / "tokenizer.json").read_text()
    for old, new in names.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    (folder / "tokenizer.json").write_text(text)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = SPECIAL
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, trained on two chats until it knows them."""
    place = tmp_path_factory.mktemp("chats")
    tiny(place / "model")
    rows = "".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS * 4)
    (place / "chats.jsonl").write_text(rows)
    names = ("--model", place / "model", "--task", place / "chats.jsonl", "--strategy", "all", "--out", place / "run")
    settings = ("max_steps=60", "learning_rate=1e-2", "per_device_train_batch_size=8", "max_length=32")
    ended = frostline("train", *settings, f"data.eval={place / 'chats.jsonl'}", *names, "--json")
    assert ended.status == 0, ended.err
    assert ended.document["metrics"]["after"]["loss"] < 0.05
    return place


def written(place: Path, content: Any, *options: str) -> list[dict[str, Any]]:
    (place / "asked.json").write_text(content if isinstance(content, str) else json.dumps(content))
    ended = frostline("generate", place / "run", "--messages", place / "asked.json", *options, "--json")
    assert ended.status == 0, ended.err
    return list(ended.document["generated"])


def test_generate_gives_the_answers_that_were_trained_and_stops_there(place: Path) -> None:
    [answer] = written(place, CHATS[0][:1])
    assert answer == {"messages": CHATS[0][:1], "text": "sun is warm"}
    several = "".join(json.dumps(chat[:1]) + "\n" for chat in CHATS)
    assert [one["text"] for one in written(place, several)] == ["sun is warm", "snow"]
    with_prompt = written(place, {"messages": CHATS[1][:1]}, "--prompt", "the warm")
    assert [one.get("prompt") for one in with_prompt] == ["the warm", None]
    assert with_prompt[1]["text"] == "snow"
    shown = frostline("generate", place / "run", "--messages", place / "asked.json")
    assert shown.out == "snow\n"


def test_a_prompt_that_is_a_rendered_chat_is_the_same(place: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "run")
    text = tokenizer.apply_chat_template(CHATS[1][:1], tokenize=False, add_generation_prompt=True)
    ended = frostline("generate", place / "run", "--prompt", text, "--max-new-tokens", "1", "--json")
    assert ended.document["generated"][0]["text"].strip() == "snow"


def test_tools_and_system_reach_the_template(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "asked.json"
    path.write_text(json.dumps([{"messages": CHATS[0][:1], "system": "the sun", "tools": [{"name": "w9"}]}]))
    [chat] = read_chats(path)
    assert chat.messages == (Message("system", "the sun"), Message("user", "the warm day"))
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    text = "<s> w7 w9 w8 system the sun <end> w8 user the warm day <end> w8 assistant"
    assert chat_prompt(tokenizer, chat).ids == tokenizer(text)["input_ids"]


def test_chats_that_make_several_rows_are_said(tmp_path: Path) -> None:
    tiny(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    last = "{% if m.role == 'assistant' and loop.last %}w9 {% endif %}{{ m.content }}"
    tokenizer.chat_template = SPECIAL.replace("{{ m.content }}", last)
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": CHATS[0] + CHATS[1]}) + "\n")
    names = ("--model", tmp_path / "model", "--task", tmp_path / "chats.jsonl", "--out", tmp_path / "run")
    ended = frostline("train", "max_steps=1", "strategy=all", f"data.eval={tmp_path / 'chats.jsonl'}", *names, "--json")
    assert ended.status == 0, ended.err
    assert any("1 chats make 2 training rows" in notice for notice in ended.document["notices"])


@pytest.mark.parametrize("added", slow_but([True], [True, False]), ids=["adds its begin token", "adds none"])
def test_a_real_model_learns_a_chat(added: bool, models_dir: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(models_dir / ("stories260K" if added else "base16"), model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert (tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id) is added
    tokenizer.chat_template = PLAIN
    tokenizer.save_pretrained(model)
    chat = [{"role": "user", "content": "Who is it?"}, {"role": "assistant", "content": "It is Lily, a little girl."}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    names = ("--model", model, "--task", tmp_path / "chat.jsonl", "--strategy", "all", "--out", tmp_path / "run")
    settings = ("max_steps=40", "learning_rate=3e-3", "max_length=64", f"data.eval={tmp_path / 'chat.jsonl'}")
    ended = frostline("train", *settings, *names)
    assert ended.status == 0, ended.err
    (tmp_path / "asked.json").write_text(json.dumps(chat[:1]))
    asked = frostline("generate", tmp_path / "run", "--messages", tmp_path / "asked.json", "--json")
    assert asked.document["generated"][0]["text"].strip() == "It is Lily, a little girl."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty: use a JSON list"),
        ("[{]", "asked.json:1: not JSON"),
        ("[]", "a chat is a list of messages"),
        ('{"messages": []}', "a chat is a list of messages"),
        ('{"messages": [{"role": "user", "content": "x"}], "tool": 1}', "found 'tool': remove it"),
        ('[{"role": "user", "content": "x", "tool_calls": [1]}]', "message 1 has the key 'tool_calls'"),
        ('[{"role": "user", "content": ""}]', "message 1.content must be a text"),
        ('[{"role": "user", "content": [{"type": "image"}]}]', "only parts of the type 'text'"),
        ('[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]', "the last message is the assist"),
        ('{"messages": [{"role": "system", "content": "x"}], "system": "y"}', "use one of them"),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": {}}', "tools must be a list"),
        ("[" * 3000, "not JSON"),
    ],
)
def test_wrong_messages_are_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "asked.json"
    path.write_text(content)
    with pytest.raises(DataError) as raised:
        read_chats(path)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "asked.json").write_text(json.dumps(CHATS[0][:1]))
    ended = frostline("generate", tmp_path / "model", "--messages", tmp_path / "asked.json")
    assert ended.status == 2 and "the tokenizer has no chat template" in ended.error
