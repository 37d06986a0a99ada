"""Ids and loss of chats against the tokenizer's own `apply_chat_template`, for templates of six families."""

from __future__ import annotations

from typing import Any

import pytest
from chat_templates import END, MARKED, SPECIALS, TEMPLATES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from frostline.core.errors import UserError
from frostline.core.labels import IGNORED
from frostline.tasks import Example, Message, Task, TaskKind, chat_prompt, encode, turn_end

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {}}},)


def byte_tokenizer(template: str, *, begin: bool = False, merges: list[tuple[str, str]] | None = None) -> Any:
    """One token a byte, or for the `merges` of two; `begin`: it puts its begin token before a text."""
    words = [*SPECIALS, *BYTES, *("".join(pair) for pair in merges or [])]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges or []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS[:-2])
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=template
    )


def chat(*turns: tuple[str, str], tools: tuple[dict[str, Any], ...] = ()) -> Example:
    return Example("train:0", messages=tuple(Message(*turn) for turn in turns), tools=tools)


def rows_of(tokenizer: Any, example: Example, length: int = 500, **options: Any) -> list[dict[str, Any]]:
    task = Task("t", TaskKind.LANGUAGE, [example], [example], "loss", **options)
    return list(encode(task, "train", tokenizer, length, "decoder"))


def reference(tokenizer: Any, family: str, example: Example) -> tuple[list[int], list[int]]:
    """Ids and labels by transformers alone: the marked form of the template."""
    found = tokenizer.apply_chat_template(
        [message._asdict() for message in example.messages],
        tools=list(example.tools) or None,
        chat_template=MARKED[family],
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    pairs = zip(found["input_ids"], found["assistant_masks"], strict=True)
    return found["input_ids"], [token if mask else IGNORED for token, mask in pairs]


ONE = chat(("user", "hi there"), ("assistant", "good day"))
TWO = chat(("user", "hi"), ("assistant", "ho"), ("user", "and"), ("assistant", "so"))
CALL = chat(("user", "hi"), ("assistant", "call"), ("tool", "sun"), ("assistant", "so"), tools=TOOLS)
SYSTEM = chat(("system", "be brief"), ("user", "hi"), ("assistant", "ho"))


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("example", [ONE, TWO, SYSTEM, CALL], ids=["one", "two", "system", "tools"])
def test_ids_and_loss_are_those_of_the_tokenizers_own_template(
    example: Example, family: str, begin: bool, marked: bool
) -> None:
    tokenizer = byte_tokenizer((MARKED if marked else TEMPLATES)[family], begin=begin)
    if example is SYSTEM and family == "gemma":
        with pytest.raises(UserError, match=r"^train:0: the chat template refuses this chat: System role not support"):
            rows_of(tokenizer, example)
        return
    if example is CALL and family not in ("llama3", "qwen3"):
        refused = "roles must alternate" if family == "mistral" else "the chat template leaves the tools out: use a"
        with pytest.raises(UserError, match=refused):
            rows_of(tokenizer, example)
        return
    *_, row = rows_of(tokenizer, example)
    ids, labels = reference(tokenizer, family, example)
    assert row["input_ids"] == ids
    if example is TWO and family == "qwen3":
        first = len(tokenizer.apply_chat_template([m._asdict() for m in TWO.messages[:3]], return_dict=False))
        labels = [IGNORED] * first + labels[first:]  # the first answer counts in a row of its own
    if not marked:  # what follows the token that ends a turn does not count
        end = tokenizer.convert_tokens_to_ids(END[family])
        labels = [IGNORED if before == end else label for before, label in zip([0, *ids], labels, strict=False)]
    assert row["labels"] == labels
    assert row["input_ids"].count(1) == int("bos_token" in TEMPLATES[family]), "one begin token, where there is one"


def test_an_answer_whose_thinking_is_dropped_later_counts_where_it_is_whole() -> None:
    tokenizer = byte_tokenizer(TEMPLATES["qwen3"])
    thought = chat(
        ("user", "a?"),
        ("assistant", "<think>\nhm\n</think>\n\nA"),
        ("user", "b?"),
        ("assistant", "<think>\nso\n</think>\n\nB"),
    )
    first, second = rows_of(tokenizer, thought)
    before = [message._asdict() for message in thought.messages]
    assert first["input_ids"] == tokenizer.apply_chat_template(before[:2], return_dict=False)
    assert second["input_ids"] == tokenizer.apply_chat_template(before, return_dict=False)
    written = [tokenizer.decode([t for t in row["labels"] if t != IGNORED]) for row in (first, second)]
    assert written == ["<think>\nhm\n</think>\n\nA<|im_end|>", "<think>\nso\n</think>\n\nB<|im_end|>"]
    for row, count in ((first, 1), (second, 3)):  # each follows exactly the tokens from which it is generated
        asked = chat_prompt(tokenizer, chat(*thought.messages[:count])).ids
        assert row["input_ids"][: len(asked)] == asked
        assert all(label == IGNORED for label in row["labels"][: len(asked)])
        assert row["labels"][len(asked) : -1] == row["input_ids"][len(asked) : -1]


def test_the_loss_of_an_answer_does_not_depend_on_what_follows_the_end_of_a_turn() -> None:
    for after in ("", "\n", "\n\n", " next: "):
        template = TEMPLATES["chatml"].replace("<|im_end|>\n", f"<|im_end|>{after}")
        tokenizer = byte_tokenizer(template)
        (row,) = rows_of(tokenizer, TWO)
        assert tokenizer.decode([t for t in row["labels"] if t != IGNORED]) == "ho<|im_end|>so<|im_end|>"
        (row,) = rows_of(tokenizer, chat(("user", "hi"), ("assistant", "a.<|im_end|>\n.")))
        assert tokenizer.decode([t for t in row["labels"] if t != IGNORED]) == "a.<|im_end|>\n.<|im_end|>"
    (row,) = rows_of(byte_tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"), ONE)
    assert tokenizer.decode([t for t in row["labels"] if t != IGNORED]) == "assistant: good day\n"


def test_roles_that_the_template_does_not_name_are_refused() -> None:
    tokenizer = byte_tokenizer(TEMPLATES["chatml"])
    for last in ("asistant", "observation"):
        example = chat(*TWO.messages, ("function_call", "x"), (last, "y"))
        found = rf"^train:0: the chat has roles that its template does not name: function_call, {last}: rename them to"
        with pytest.raises(UserError, match=found):
            rows_of(tokenizer, example)
        with pytest.raises(UserError, match=found):
            chat_prompt(tokenizer, example)
    named = TEMPLATES["chatml"].replace("{{ m.role }}", "{{ 'call' if m.role == 'function_call' else m.role }}")
    assert rows_of(byte_tokenizer(named), chat(("user", "a"), ("function_call", "x"), ("assistant", "b")))
    assert rows_of(tokenizer, chat(("developer", "a"), ("user", "a"), ("tool", "x"), ("assistant", "b")))


def test_where_the_prompt_counts_too_each_of_its_tokens_counts_once() -> None:
    tokenizer = byte_tokenizer(TEMPLATES["qwen3"])
    first, second = rows_of(tokenizer, TWO, train_on_prompt=True)
    assert first["labels"] == first["input_ids"]
    both = next(i for i, (a, b) in enumerate(zip(first["input_ids"], second["input_ids"], strict=False)) if a != b)
    assert second["labels"] == [IGNORED] * both + second["input_ids"][both:]
    (row,) = rows_of(byte_tokenizer(TEMPLATES["chatml"]), TWO, train_on_prompt=True)
    assert row["labels"] == row["input_ids"]


@pytest.mark.parametrize("marked", [False, True])
def test_an_answer_that_begins_inside_a_token_follows_the_tokens_it_is_generated_from(marked: bool) -> None:
    newline = "\u010a"
    tokenizer = byte_tokenizer((MARKED if marked else TEMPLATES)["chatml"], merges=[(newline, newline)])
    example = chat(("user", "hi"), ("assistant", "\nho"))
    (row,) = rows_of(tokenizer, example)
    asked = chat_prompt(tokenizer, chat(("user", "hi"))).ids
    assert row["input_ids"][: len(asked)] == asked
    assert tokenizer.decode([t for t in row["labels"] if t != IGNORED]) == "\nho<|im_end|>" + "\n" * marked
    whole = tokenizer.apply_chat_template([m._asdict() for m in example.messages], return_dict=False)
    assert len(whole) == len(row["input_ids"]) - 1, "the template's own tokens join both line breaks"
    assert tokenizer.decode(whole) == tokenizer.decode(row["input_ids"])


def test_a_tokenizer_that_adds_spaces_to_parts_is_not_split() -> None:
    words = {w: i for i, w in enumerate([*SPECIALS, *sorted({*"▁aehistour:;.xyz", "t:", ":h", ";"})])}
    tokenizer = Tokenizer(models.BPE(words, [(":", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        chat_template="{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
    )
    (row,) = rows_of(fast, chat(("user", "sa"), ("assistant", "so")))
    assert row["input_ids"] == fast("user:sa;assistant:so;")["input_ids"]
    with pytest.raises(UserError, match=r"^train:0: the tokenizer joins the assistant's text with the text beside it"):
        rows_of(fast, chat(("user", "sa"), ("assistant", "ho")))


def test_a_cut_keeps_the_begin_token_and_the_last_answer() -> None:
    tokenizer = byte_tokenizer(TEMPLATES["llama3"])
    (row,) = rows_of(tokenizer, chat(("user", "a long question"), ("assistant", "ho")), length=4)
    assert tokenizer.decode(row["input_ids"]) == "<s>ho<|eot_id|>"
    assert row["labels"] == [IGNORED, *row["input_ids"][1:]]


def test_a_template_that_drops_the_system_message_is_refused() -> None:
    dropping = TEMPLATES["chatml"].replace("messages %}", "messages if m.role != 'system' %}")
    with pytest.raises(
        UserError, match="leaves the system message out: put its text into the first message of the user"
    ):
        rows_of(byte_tokenizer(dropping), SYSTEM)


def test_named_templates_are_chosen_as_transformers_does() -> None:
    tokenizer = byte_tokenizer(TEMPLATES["chatml"])
    tokenizer.chat_template = {"default": MARKED["chatml"], "tool_use": MARKED["llama3"]}
    (row,) = rows_of(tokenizer, CALL)
    assert (row["input_ids"], row["labels"]) == reference(tokenizer, "llama3", CALL)
    (row,) = rows_of(tokenizer, TWO)
    assert (row["input_ids"], row["labels"]) == reference(tokenizer, "chatml", TWO)


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_template_shows_what_ends_a_turn(family: str) -> None:
    tokenizer = byte_tokenizer(TEMPLATES[family])
    assert turn_end(tokenizer, chat(("user", "hi"))) == tokenizer.convert_tokens_to_ids(END[family])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert turn_end(tokenizer, chat(("user", "hi"))) is None


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("kind", ["prompt", "text", "pair"])
def test_text_that_starts_with_the_begin_token_gets_no_second_one(kind: str, begin: bool) -> None:
    tokenizer = byte_tokenizer("", begin=begin)
    example = {
        "prompt": Example("a", "<s>ask:", target="yes</s>"),
        "text": Example("a", "<s>some text</s>"),
        "pair": Example("a", "<s>some text", label=0),
    }[kind]
    shape = {"prompt": TaskKind.GENERATION, "text": TaskKind.LANGUAGE, "pair": TaskKind.CLASSIFICATION}[kind]
    task = Task("t", shape, [example], [example], "loss", labels=("a", "b"))
    (row,) = encode(task, "train", tokenizer, 64, "decoder")
    expected = {"prompt": "<s>ask:yes</s>", "text": "<s>some text</s>", "pair": "<s>some text"}[kind]
    assert tokenizer.decode(row["input_ids"]) == expected
    (row,) = encode(task, "train", tokenizer, 6, "decoder")
    assert row["input_ids"][0] == 1, "a cut keeps it"


@pytest.mark.parametrize("begin", [False, True])
def test_a_text_that_is_far_too_long_keeps_its_begin_token(begin: bool) -> None:
    task = Task("t", TaskKind.GENERATION, [Example("a", "<s>" + "some words " * 2000, target="yes")], [], "loss")
    (row,) = encode(task, "train", byte_tokenizer("", begin=begin), 12, "decoder")
    assert byte_tokenizer("").decode(row["input_ids"]) == "<s> words yes</s>"


def test_text_that_ends_with_the_end_token_gets_no_second_one() -> None:
    tokenizer = byte_tokenizer("")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 2)]
    )
    task = Task("t", TaskKind.GENERATION, [Example("a", "ask:</s>", target="yes")], [], "loss")
    (row,) = encode(task, "train", tokenizer, 64, "encoder-decoder")
    assert tokenizer.decode(row["input_ids"]) == "ask:</s>"
