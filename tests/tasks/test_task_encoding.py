from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from frostline.core.errors import UserError
from frostline.core.labels import IGNORED
from frostline.tasks import (
    Collator,
    Example,
    Message,
    Task,
    TaskKind,
    encode,
    model_kind,
    pad_rows,
    prepare_tokenizer,
)

MakeTokenizer = Callable[..., Any]
PAD, END = 0, 2


def _task(kind: TaskKind, *examples: Example, **options: Any) -> Task:
    return Task("t", kind, examples, examples, "loss", **options)


def _completion(prompt: str = "ask:", target: str = "answer", **options: Any) -> Task:
    return _task(TaskKind.GENERATION, Example("train:0", prompt, target=target, references=(target,)), **options)


def _pair(text: str = "premise", pair: str | None = "hypothesis") -> Task:
    return _task(TaskKind.CLASSIFICATION, Example("train:0", text, pair, label=1), labels=("a", "b"))


def _labelled(tokenizer: Any, row: dict[str, Any]) -> str:
    return str(tokenizer.decode([token for token in row["labels"] if token != IGNORED]))


def test_only_the_completion_and_the_end_are_labelled(tokenizer: Any) -> None:
    (row,) = encode(_completion(), "train", tokenizer, 64, "decoder")
    assert tokenizer.decode(row["input_ids"]) == "ask:answer</s>"
    assert _labelled(tokenizer, row) == "answer</s>"
    assert row["labels"] == [IGNORED] * 4 + row["input_ids"][4:]
    assert row["example_id"] == "train:0"


def test_the_prompt_is_labelled_on_demand(tokenizer: Any) -> None:
    (row,) = encode(_completion(train_on_prompt=True), "train", tokenizer, 64, "decoder")
    assert row["labels"] == row["input_ids"]


def test_the_end_is_learned_even_where_it_is_the_pad_token(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = prepare_tokenizer(make_tokenizer(pad=False))
    rows = encode(
        _task(TaskKind.GENERATION, *(Example(t, "ask:", target=t) for t in ("yes", "indeed"))),
        "train",
        tokenizer,
        64,
        "decoder",
    )
    batch = Collator(tokenizer)(rows)
    assert batch["input_ids"][0].tolist().count(END) == 4
    assert batch["labels"][0].tolist().count(END) == 1
    assert batch["attention_mask"].sum(1).tolist() == [8, 11]


@pytest.mark.parametrize(("begin", "end"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_tokenizers_own_frame_does_not_come_between_prompt_and_completion(
    begin: bool, end: bool, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer(begin=begin, end=end)
    (row,) = encode(_completion(), "train", tokenizer, 64, "decoder")
    assert tokenizer.decode(row["input_ids"]) == f"{'<s>' if begin else ''}ask:answer</s>"


def test_a_long_prompt_is_cut_from_the_left_behind_its_begin_token(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(begin=True)
    encoded = encode(_completion("0123456789"), "train", tokenizer, 12, "decoder")
    assert tokenizer.decode(encoded[0]["input_ids"]) == "<s>6789answer</s>"
    assert encoded.truncated == 1
    assert encoded.lengths == [12]


def test_a_long_completion_keeps_one_prompt_token(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(begin=True)
    encoded = encode(_completion("0123456789"), "train", tokenizer, 5, "decoder")
    assert tokenizer.decode(encoded[0]["input_ids"]) == "<s>9ans"
    assert _labelled(tokenizer, encoded[0]) == "ans"


@pytest.mark.parametrize("max_length", range(3, 24))
def test_no_example_is_longer_than_the_limit_and_each_has_a_label(
    max_length: int, make_tokenizer: MakeTokenizer
) -> None:
    encoded = encode(_completion("0123456789"), "train", make_tokenizer(begin=True), max_length, "decoder")
    assert len(encoded[0]["input_ids"]) == len(encoded[0]["labels"]) == min(max_length, 18)
    assert encoded[0]["labels"][-1] != IGNORED
    assert encoded.truncated == (max_length < 18)


def test_cut_examples_are_counted_and_logged(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    texts = ["short", "a much longer text", "another longer text"]
    task = _task(TaskKind.LANGUAGE, *(Example(t, t) for t in texts))
    assert encode(task, "eval", tokenizer, 10, "decoder").truncated == 2
    assert caplog.messages == ["t, eval: 2 of 3 examples cut to 10 tokens"]


def test_plain_text_is_labelled_whole_and_cut_at_its_end(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(begin=True)
    task = _task(TaskKind.LANGUAGE, Example("a", "text"))
    (row,) = encode(task, "train", tokenizer, 64, "decoder")
    assert row["labels"] == row["input_ids"]
    assert tokenizer.decode(row["input_ids"]) == "<s>text</s>"
    (row,) = encode(task, "train", tokenizer, 3, "decoder")
    assert tokenizer.decode(row["labels"]) == "<s>te"


def test_an_encoder_gets_the_tokenizers_own_pair(pair_tokenizer: Any) -> None:
    (row,) = encode(_pair(), "train", pair_tokenizer, 64, "encoder")
    assert pair_tokenizer.decode(row["input_ids"]) == "[CLS]premise[SEP]hypothesis[SEP]"
    assert row["token_type_ids"] == [0] * 9 + [1] * 11
    assert row["labels"] == 1
    assert "attention_mask" not in row


def test_an_encoder_takes_a_single_text_too(pair_tokenizer: Any) -> None:
    (row,) = encode(_pair(pair=None), "train", pair_tokenizer, 64, "encoder")
    assert pair_tokenizer.decode(row["input_ids"]) == "[CLS]premise[SEP]"


def test_an_encoders_longer_text_is_cut(pair_tokenizer: Any) -> None:
    encoded = encode(_pair("a rather long premise", "short"), "train", pair_tokenizer, 14, "encoder")
    assert pair_tokenizer.decode(encoded[0]["input_ids"]) == "[CLS]a rath[SEP]short[SEP]"
    assert encoded.truncated == 1


@pytest.mark.parametrize("end", [False, True])
def test_a_decoders_pair_ends_on_its_last_token(end: bool, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(begin=True, end=end)
    (row,) = encode(_pair(), "train", tokenizer, 64, "decoder")
    assert tokenizer.decode(row["input_ids"]) == "<s>premise\nhypothesis"
    encoded = encode(_pair(), "train", tokenizer, 15, "decoder")
    assert tokenizer.decode(encoded[0]["input_ids"]) == "<s>ise\nhypothesis"
    assert encoded.truncated == 1


def test_a_decoders_head_reads_the_last_token(decoder_classifier: Any, tokenizer: Any) -> None:
    rows = encode(
        _task(TaskKind.CLASSIFICATION, *(Example(t, t, label=0) for t in ("long text", "ab")), labels=("a", "b")),
        "train",
        tokenizer,
        64,
        "decoder",
    )
    batch = Collator(tokenizer)(rows)
    decoder_classifier.eval()
    with torch.no_grad():
        together = decoder_classifier(**batch).logits[1]
        alone = decoder_classifier.score(decoder_classifier.model(torch.tensor([rows[1]["input_ids"]]))[0])[0, -1]
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("end", [False, True])
def test_an_encoder_decoder_reads_the_prompt_and_writes_the_completion(
    end: bool, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer(end=end)
    (row,) = encode(_completion(), "train", tokenizer, 64, "encoder-decoder")
    assert tokenizer.decode(row["input_ids"]) == f"ask:{'</s>' if end else ''}"
    assert tokenizer.decode(row["labels"]) == "answer</s>"
    encoded = encode(_completion(), "train", tokenizer, 3, "encoder-decoder")
    assert (len(encoded[0]["input_ids"]), len(encoded[0]["labels"]), encoded.truncated) == (3, 3, 1)


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        (TaskKind.GENERATION, "encoder"),
        (TaskKind.LANGUAGE, "encoder"),
        (TaskKind.LANGUAGE, "encoder-decoder"),
    ],
)
def test_a_kind_of_model_that_cannot_do_the_task(kind: TaskKind, model: Any, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=f"task 't' is a {kind} task, which an {model} model cannot do"):
        encode(_task(kind, Example("a", "text", target="x")), "train", tokenizer, 64, model)


def test_a_completion_needs_an_end_token(pair_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="the tokenizer has no end token"):
        encode(_completion(), "train", pair_tokenizer, 64, "decoder")


# Chats

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{{ m.role }}:{% if loop.last and m.role == 'assistant' %}[{% endif %}"
    "{{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def _chat(*turns: str) -> Task:
    roles = ["user", "assistant"] * len(turns)
    messages = tuple(Message(role, turn) for role, turn in zip(roles, turns, strict=False))
    return _task(TaskKind.LANGUAGE, Example("train:0", messages=messages))


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_only_the_assistants_turns_are_labelled(template: str, tokenizer: Any) -> None:
    tokenizer.chat_template = template
    (row,) = encode(_chat("hi", "ho", "and", "so", "dropped"), "train", tokenizer, 200, "decoder")
    whole = tokenizer.apply_chat_template(
        [message._asdict() for message in _chat("hi", "ho", "and", "so").train[0].messages], tokenize=False
    )
    assert tokenizer.decode(row["input_ids"]) == whole
    assert _labelled(tokenizer, row) == "ho<|im_end|>so<|im_end|>"


def test_a_chats_prompt_is_labelled_on_demand(tokenizer: Any) -> None:
    tokenizer.chat_template = PLAIN
    task = _task(TaskKind.LANGUAGE, *_chat("hi", "ho").train, train_on_prompt=True)
    (row,) = encode(task, "train", tokenizer, 200, "decoder")
    assert row["labels"] == row["input_ids"]


def test_a_long_chat_keeps_its_last_answer(tokenizer: Any) -> None:
    tokenizer.chat_template = PLAIN
    encoded = encode(_chat("a long question", "ho"), "train", tokenizer, 5, "decoder")
    assert tokenizer.decode(encoded[0]["input_ids"]) == "\nho<|im_end|>\n"
    assert encoded.truncated == 1


def test_an_answer_that_the_template_changes_later_has_a_row_of_its_own(tokenizer: Any) -> None:
    tokenizer.chat_template = FORGETFUL
    (row,) = encode(_chat("hi", "ho"), "train", tokenizer, 200, "decoder")
    assert _labelled(tokenizer, row) == "[ho;"
    rows = encode(_chat("hi", "ho", "and", "so"), "train", tokenizer, 200, "decoder")
    assert [_labelled(tokenizer, row) for row in rows] == ["[ho;", "[so;"]
    tokenizer.chat_template = FORGETFUL.replace("assistant:{% endif %}", "model:{% endif %}")
    with pytest.raises(UserError, match=r"^train:0: the chat template does not show where the assistant's turns are"):
        encode(_chat("hi", "ho"), "train", tokenizer, 200, "decoder")


def test_a_tokenizer_without_a_template_is_an_error(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        encode(_chat("hi", "ho"), "train", tokenizer, 200, "decoder")


def test_a_template_that_refuses_a_chat_is_an_error(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match="train:0: the chat template refuses this chat: roles must alternate"):
        encode(_chat("hi", "ho"), "train", tokenizer, 200, "decoder")


# Batches


def _rows(tokenizer: Any, prompts: Sequence[str]) -> Sequence[dict[str, Any]]:
    task = _task(TaskKind.GENERATION, *(Example(p, p, target="x") for p in prompts))
    return encode(task, "train", tokenizer, 64, "decoder").rows


def test_batches_are_padded_on_the_right_to_the_longest_row(tokenizer: Any) -> None:
    tokenizer.padding_side = "left"
    rows = _rows(tokenizer, ["a", "abc"])
    batch = Collator(tokenizer)(rows)
    assert batch["input_ids"].tolist() == [rows[0]["input_ids"] + [PAD] * 2, rows[1]["input_ids"]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [rows[0]["labels"] + [IGNORED] * 2, rows[1]["labels"]]
    assert "example_id" not in batch
    assert tokenizer.padding_side == "left"


def test_batches_may_be_padded_to_a_length_and_keep_their_ids(tokenizer: Any) -> None:
    batch = Collator(tokenizer, pad_to=8, keep_ids=True)(_rows(tokenizer, ["a", "abc"]))
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (2, 8)
    assert batch["example_id"] == ["a", "abc"]


def test_rows_that_bring_a_mask_keep_it() -> None:
    rows = [{"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0], "labels": 1}, {"input_ids": [7], "labels": 0}]
    batch = pad_rows([rows[0], {**rows[1], "attention_mask": [1]}], 9)
    assert batch["input_ids"].tolist() == [[5, 6, 0], [7, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]


def test_class_labels_become_a_vector(pair_tokenizer: Any) -> None:
    batch = Collator(pair_tokenizer)(encode(_pair(), "train", pair_tokenizer, 64, "encoder").rows)
    assert batch["labels"].tolist() == [1]
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels"}


def test_a_tokenizer_is_prepared(decoder: Any, make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(pad=False)
    tokenizer.padding_side = "left"
    assert prepare_tokenizer(tokenizer, decoder) is tokenizer
    assert (tokenizer.pad_token, tokenizer.padding_side, decoder.config.pad_token_id) == ("</s>", "right", END)
    assert prepare_tokenizer(make_tokenizer()).pad_token == "<pad>"
    bare = make_tokenizer(pad=False)
    bare.eos_token = None
    with pytest.raises(UserError, match="neither a pad token nor an end token"):
        prepare_tokenizer(bare)


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("llama", "decoder"),
        ("gpt2", "decoder"),
        ("gemma2", "decoder"),
        ("opt", "decoder"),
        ("mixtral", "decoder"),
        ("bert", "encoder"),
        ("roberta", "encoder"),
        ("deberta-v2", "encoder"),
        ("distilbert", "encoder"),
        ("modernbert", "encoder"),
        ("t5", "encoder-decoder"),
        ("bart", "encoder-decoder"),
    ],
)
def test_the_kind_of_a_model(model_type: str, kind: str) -> None:
    assert model_kind(AutoConfig.for_model(model_type)) == kind


@pytest.mark.parametrize("name", ["stories260K", "base16"])
def test_real_decoder_tokenizers(name: str, models_dir: Path) -> None:
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(models_dir / name))
    task = _completion("Aarhus | leader | Bundsgaard\n", "The leader is Bundsgaard.")
    (row,) = encode(task, "train", tokenizer, 128, "decoder")
    prompt = tokenizer(task.train[0].text)["input_ids"]
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"][: len(prompt)] == [IGNORED] * len(prompt)
    answer = [token for token in row["labels"] if token != IGNORED]
    assert answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The leader is Bundsgaard."


def test_a_real_encoder_tokenizer_with_padding_of_its_own(models_dir: Path) -> None:
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(models_dir / "all-MiniLM-L6-v2"))
    encoded = encode(_pair("A man sleeps.", "Nobody is awake."), "train", tokenizer, 128, "encoder")
    assert tokenizer.decode(encoded[0]["input_ids"]) == "[CLS] a man sleeps. [SEP] nobody is awake. [SEP]"
    assert Collator(tokenizer)(encoded.rows)["input_ids"].shape == (1, encoded.lengths[0])
