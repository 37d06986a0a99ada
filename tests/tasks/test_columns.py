"""Usual names of columns are recognised, the reading is said in one line, and every column is read or named."""

from __future__ import annotations

import json
import random
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frostline.core.errors import UserError
from frostline.core.settings import lay_over
from frostline.rows._forms import FORMS
from frostline.tasks import Example, Message, Task, TaskKind, TaskOptions, load_task

Write = Callable[..., Path]
Rows = list[dict[str, Any]]
C, G, L = TaskKind.CLASSIFICATION, TaskKind.GENERATION, TaskKind.LANGUAGE
USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}


def load(write: Write, rows: Rows, **options: Any) -> Task:
    path = write("a.jsonl", rows)
    return load_task(str(path), TaskOptions.model_validate({"eval": str(path), **options}))


def only(write: Write, row: dict[str, Any], **options: Any) -> Example:
    return load(write, [row], **options).train[0]


def refused(write: Write, rows: Rows, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(write, rows, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


FLAG = r"""(?:'data\.(?:[^']|'"'"')*'|data\.[\w.]+=[^\s,)]+)"""


def flags_in(message: str) -> list[list[str]]:
    """The groups of options that a message offers, as a shell reads them."""
    return [shlex.split(group) for group in re.findall(rf"{FLAG}(?: {FLAG})*", message)]


def options_of(flags: list[str]) -> dict[str, Any]:
    """What the command line makes of them."""
    document: dict[str, Any] = {}
    lay_over(document, flags)
    data: dict[str, Any] = document["data"]
    return data


TEXT_PAIRS = [
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentence_A", "sentence_B"),
    ("text1", "text2"),
    ("Question 1", "Question 2"),
    ("question", "answer"),
    ("question", "passage"),
    ("question", "sentence"),
    ("query", "document"),
    ("claim", "evidence"),
    ("text", "pair"),
]


@pytest.mark.parametrize(("first", "second"), TEXT_PAIRS)
def test_pairs_of_texts(first: str, second: str, write: Write) -> None:
    rows = [{first: "a", second: "b", "label": label, "idx": 7} for label in ("yes", "no")]
    task = load(write, rows)
    assert [(e.text, e.pair, task.labels[e.label or 0]) for e in task.train] == [("a", "b", "yes"), ("a", "b", "no")]
    assert task.notices[0] == f"read as pairs: {first}, {second} -> label (2 classes)"
    assert task.notices[1] == "columns not used: idx"


@pytest.mark.parametrize("text", ["text", "sentence", "review", "content", "Tweet", "utterance", "body"])
@pytest.mark.parametrize("label", ["label", "Class", "category", "sentiment", "stars", "target", "intent"])
def test_a_text_and_its_label(text: str, label: str, write: Write) -> None:
    task = load(write, [{label: name, text: "a"} for name in ("x", "y")])
    assert (task.kind, [e.text for e in task.train], task.labels) == (C, ["a", "a"], ("x", "y"))
    assert task.notices[0] == f"read as classification: {text} -> {label} (2 classes)"


@pytest.mark.parametrize(
    ("row", "prompt", "said"),
    [
        ({"source": "a", "target": "b"}, "a", "source -> target"),
        ({"input": "a", "output": "b"}, "a", "input -> output"),
        ({"inputs": "a", "targets": "b"}, "a", "inputs -> targets"),
        ({"prompt": "a", "response": "b"}, "a", "prompt -> response"),
        ({"prompt": "a", "answer": "b"}, "a", "prompt -> answer"),
        ({"question": "a", "answer": "b"}, "a", "question -> answer"),
        ({"instruction": "a", "output": "b"}, "a", "instruction -> output"),
        (
            {"instruction": "a", "input": "i", "output": "b", "text": "all"},
            "a\n\ni\n\n",
            "instruction, input -> output",
        ),
        ({"instruction": "a", "input": "", "output": "b"}, "a\n\n", "instruction, input -> output"),
        ({"instruction": "a", "context": None, "response": "b"}, "a\n\n", "instruction, context -> response"),
        ({"system": "s", "prompt": "a", "completion": "b"}, "s\n\na\n\n", "system, prompt -> completion"),
        ({"system_prompt": "s", "question": "a", "response": "b"}, "s\n\na\n\n", "system_prompt, question -> response"),
        ({"question": "a", "context": "c", "answer": "b"}, "a\n\nc\n\n", "question, context -> answer"),
        ({"dialogue": "a", "summary": "b", "topic": "t"}, "a", "dialogue -> summary"),
        ({"article": "a", "highlights": "b"}, "a", "article -> highlights"),
        ({"document": "a", "summary": "b"}, "a", "document -> summary"),
        ({"text": "a", "summary": "b"}, "a", "text -> summary"),
    ],
)
def test_texts_to_write(row: dict[str, Any], prompt: str, said: str, write: Write) -> None:
    task = load(write, [row])
    assert (task.kind, task.train[0].text, task.train[0].target) == (G, prompt, "b")
    assert task.notices[0] == f"read as generation: {said}"


def test_several_right_texts(write: Write) -> None:
    example = only(write, {"source": "a", "targets": ["b", "c"]})
    assert (example.text, example.target, example.references) == ("a", "b", ("b", "c"))


def test_yes_or_no_about_a_passage_is_a_label_and_other_answers_are_texts(write: Write) -> None:
    rows = [{"question": "q", "passage": "p", "answer": answer} for answer in (True, False)]
    task = load(write, rows)
    assert (task.kind, task.labels, task.train[0].pair) == (C, ("false", "true"), "p")
    assert load(write, [{**rows[0], "answer": "in May"}]).kind is G


CHATS: list[tuple[dict[str, Any], tuple[Message, ...]]] = [
    ({"messages": [USER, ANSWER]}, (Message("user", "hi"), Message("assistant", "ho"))),
    (
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}], "system": "s"},
        (Message("system", "s"), Message("user", "hi"), Message("assistant", "ho")),
    ),
    (
        {"conversations": [{"from": "system", "value": "s"}, {"from": "gpt", "value": "ho"}], "system": "s"},
        (Message("system", "s"), Message("assistant", "ho")),
    ),
    (
        {"messages": [{**USER, "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}, ANSWER]},
        (Message("user", "hi"), Message("assistant", "ho")),
    ),
    ({"prompt": [USER], "completion": [ANSWER]}, (Message("user", "hi"), Message("assistant", "ho"))),
]  # fmt: skip


@pytest.mark.parametrize(("row", "messages"), CHATS)
def test_chats(row: dict[str, Any], messages: tuple[Message, ...], write: Write) -> None:
    task = load(write, [row])
    assert (task.kind, task.train[0].messages) == (L, messages)
    assert task.notices[0].startswith("read as chats: ")


@pytest.mark.parametrize("tools", [[{"name": "f"}], '[{"name": "f"}]'])
def test_tools_are_kept(tools: Any, write: Write) -> None:
    task = load(write, [{"messages": [USER, ANSWER], "tools": tools}, {"messages": [USER, ANSWER]}])
    assert [example.tools for example in task.train] == [({"name": "f"},), ()]
    assert task.notices[0] == "read as chats: messages, tools"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{**USER, "content": [{"type": "image_url"}]}]}, r"content\[0\] is 'image_url': only parts"),
        ({"messages": [USER, {"role": "assistant"}]}, r"'messages\[1\].content' must be text, found nothing"),
        ({"messages": [{"role": "system", "content": "a"}, ANSWER], "system": "b"}, "has another system message than"),
        ({"messages": [USER, ANSWER], "tools": "none"}, "column 'tools' is no list of tools"),
        ({"messages": [USER, ANSWER], "tools": ["f"]}, "column 'tools' must be a list of objects"),
        ({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}, "column 'prompt' has an answer too"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, r"TRL's DPOTrainer with frostline\.attach\(trainer\)"),
        ({"prompt": "p", "completion": "a", "label": True}, r"TRL's KTOTrainer with frostline\.attach\(trainer\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_right_is_refused(row: dict[str, Any], message: str, write: Write) -> None:
    assert re.search(message, refused(write, [row]))


def test_the_chosen_answers_alone_can_be_asked_for(write: Write) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    task = load(write, [row], columns={"prompt": "prompt", "completion": "chosen"})
    assert (task.train[0].target, task.notices[1]) == ("a", "columns not used: rejected")


CHOICES: list[tuple[dict[str, Any], str, tuple[str, ...], int]] = [
    ({"question": "q", "choices": ["x", "y"], "answer": 0}, "q", ("x", "y"), 0),
    ({"question": "q", "options": ["x", "y"], "label": "B"}, "q", ("x", "y"), 1),
    ({"question": "q", "choices": ["x", "y"], "answer": "y"}, "q", ("x", "y"), 1),
    ({"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, "q", ("x", "y"), 1),
    ({"question_stem": "q", "choices": {"text": ["x", "y"], "label": [*"AB"]}, "answerKey": "A"}, "q", ("x", "y"), 0),
    ({"question": "q", "A": "x", "B": "y", "answer": "B"}, "q", ("x", "y"), 1),
    ({"ctx": "q", "endings": ["x", "y"], "label": "0", "ctx_a": "z"}, "q", ("x", "y"), 0),
    ({"startphrase": "q", "ending0": "x", "ending1": "y", "label": 0}, "q", ("x", "y"), 0),
    ({"sentence": "q", "option1": "x", "option2": "y", "answer": "2"}, "q", ("x", "y"), 1),
    ({"goal": "q", "sol1": "x", "sol2": "y", "label": 0}, "q", ("x", "y"), 0),
    ({"context": "c", "question": "q", "answerA": "x", "answerB": "y", "label": "2"}, "c\nq", ("x", "y"), 1),
    ({"premise": "c", "question": "q", "choice1": "x", "choice2": "y", "label": 0}, "c\nq", ("x", "y"), 0),
    ({"article": "c", "question": "q", "options": ["x", "y"], "answer": "A"}, "c\nq", ("x", "y"), 0),
]  # fmt: skip


@pytest.mark.parametrize(("row", "text", "choices", "label"), CHOICES)
def test_choices(row: dict[str, Any], text: str, choices: tuple[str, ...], label: int, write: Write) -> None:
    task = load(write, [row])
    example = task.train[0]
    assert (task.kind, example.text, example.choices, example.label) == (TaskKind.CHOICE, text, choices, label)
    assert task.labels == ()


SQUAD = {"question": "who?", "context": "the cat sat", "id": 1}


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ({"text": ["cat", "the cat"], "answer_start": [4, 0]}, (("cat", 4), ("the cat", 0))),
        ({"text": "cat", "answer_start": 4}, (("cat", 4),)),
        ({"text": ["cat"], "answer_start": [-1]}, (("cat", 4),)),
        ([{"text": "cat", "answer_start": 4}], (("cat", 4),)),
        ({"text": [], "answer_start": []}, ()),
        (["cat", "sat"], (("cat", 4), ("sat", 8))),
    ],
)
def test_answers_in_a_context(answers: Any, found: tuple[tuple[str, int], ...], write: Write) -> None:
    task = load(write, [{**SQUAD, "answers": answers}])
    example = task.train[0]
    assert (task.kind, example.text, example.pair) == (TaskKind.EXTRACTION, "who?", "the cat sat")
    assert example.answers == found
    assert task.notices[0] == "read as extraction: question, context -> answers"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["cat"], "answer_start": [5]}, "the answer 'cat' does not start at character 5"),
        ({"text": ["t"], "answer_start": [-1]}, "the answer 't' is 3 times in the context"),
        ({"text": ["dog"]}, "the answer 'dog' is 0 times in the context"),
        ({"text": ["cat"], "answer_start": ["4"]}, "'cat' (answer_start) must be a whole number, found text"),
        ({"text": ["cat"], "answer_start": [4.5]}, "'cat' (answer_start) must be a whole number, found 4.5"),
        ({"text": ["cat"], "answer_start": [4, 5]}, "has 1 texts, but 2 starts"),
    ],
)
def test_answers_that_are_not_where_they_should_be(answers: Any, message: str, write: Write) -> None:
    assert message in refused(write, [{**SQUAD, "answers": answers}])


def test_squads_own_file(tmp_path: Path) -> None:
    question = {"question": "who?", "id": "1", "answers": [{"text": "cat", "answer_start": 4}], "is_impossible": False}
    paragraph = {"context": "the cat sat", "qas": [question, {**question, "answers": [], "is_impossible": True}]}
    path = tmp_path / "train-v2.0.json"
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "Cats", "paragraphs": [paragraph]}]}))
    task = load_task(str(path), TaskOptions(eval=str(path)))
    assert [(e.text, e.pair, e.answers) for e in task.train] == [
        ("who?", "the cat sat", (("cat", 4),)),
        ("who?", "the cat sat", ()),
    ]


@pytest.mark.parametrize("tags", ["tags", "ner_tags", "pos_tags"])
def test_words_and_their_tags(tags: str, write: Write) -> None:
    rows = [{"tokens": ["Anna", "ran"], tags: ["B-PER", "O"]}, {"tokens": ["x"], tags: ["O"]}]
    task = load(write, rows)
    assert (task.kind, task.labels) == (TaskKind.TAGGING, ("B-PER", "O"))
    assert [(e.words, e.tags) for e in task.train] == [(("Anna", "ran"), (0, 1)), (("x",), (1,))]
    assert task.notices[0] == f"read as tagging: tokens -> {tags} (2 tags)"
    numbers = load(write, [{"tokens": ["a", "b"], tags: [3, -100]}])
    assert (numbers.labels, numbers.train[0].tags) == (("3",), (0, -100))
    assert "2 words, but 1 tags" in refused(write, [{"tokens": ["a", "b"], tags: ["O"]}])


def test_two_columns_of_tags_are_refused_with_the_options_that_decide(write: Write) -> None:
    rows = [{"tokens": ["a"], "pos_tags": ["NN"], "ner_tags": ["O"]}]
    ner, pos = flags_in(refused(write, rows))
    assert load(write, rows, **options_of(ner)).labels == ("O",)
    assert load(write, rows, **options_of(pos)).labels == ("NN",)


def test_a_column_that_the_first_row_lacks_counts(write: Write) -> None:
    task = load(write, [{"text": "a", "label": "x"}, {"text": "a", "label": "y", "pair": "b"}])
    assert [e.pair for e in task.train] == [None, "b"]
    task = load(write, [{"text": "a", "label": "x"}, {"text": "a", "label": "y", "note": "n", "url": "u"}])
    assert task.notices[1] == "columns not used: note, url"


def test_a_column_only_of_the_evaluation_rows_is_named_too(write: Write) -> None:
    evaluation = write("b.jsonl", [{"text": "a", "label": "x", "extra": 1}])
    task = load(write, [{"text": "a", "label": "x"}], eval=str(evaluation))
    assert "columns not used: extra" in task.notices


UNKNOWN: list[tuple[Rows, int]] = [
    (
        [
            {"Freitext": f"Der Service war gut {i}", "Kategorie": "Lob" if i % 2 else "Kritik", "Nr": i}
            for i in range(9)
        ],
        2,
    ),
    ([{"de": f"Guten Tag {i}", "en": f"Good day {i}"} for i in range(9)], 1),
    ([{"translation": {"en": f"Good day {i}", "de": f"Guten Tag {i}"}} for i in range(9)], 1),
    ([{"Satz A": f"eins {i}", "Satz B": f"zwei {i}", "yes": str(i % 2)} for i in range(9)], 2),
    ([{"a: b": f"eins {i}", "it's": f"zwei {i}"} for i in range(9)], 1),
    ([{"question": f"q {i}", "answer": f"a {i}", "category": "xy"[i % 2]} for i in range(9)], 2),
    ([{"text": f"t {i}", "Kategorie": "xy"[i % 2]} for i in range(9)], 2),
    ([{"talk": [USER, ANSWER]} for _ in range(9)], 1),
]


@pytest.mark.parametrize(("rows", "ways"), UNKNOWN)
def test_the_error_has_the_options_for_this_file(rows: Rows, ways: int, write: Write) -> None:
    message = refused(write, rows)
    assert len(message) - len(message.split(": ")[0]) < 280
    groups = flags_in(message)
    assert len(groups) == ways
    for flags in groups:
        task = load(write, rows, **options_of(flags))
        assert len(task.train) == 9
        mapped = options_of(flags).get("columns", {})
        for column in mapped.values():
            assert column in task.notices[0]


def test_dotted_columns_read_inside_objects(write: Write) -> None:
    rows = [{"translation": {"en": "Good day", "de": "Guten Tag"}, "meta": {"id": 1}}]
    task = load(write, rows, columns={"prompt": "translation.en", "completion": "translation.de"})
    assert (task.train[0].text, task.train[0].target) == ("Good day", "Guten Tag")
    assert task.notices[1] == "columns not used: meta"


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("classification", [{"text": "t", "label": 0.0}, {"text": "t", "label": 1.0}]),
        ("regression", [{"text": "t", "label": "1"}, {"text": "t", "label": 4}]),
        ("multi-label", [{"text": "t", "label": ["a"]}]),
        ("tagging", [{"words": ["t"], "tags": ["a"]}]),
        ("extraction", [{**SQUAD, "answers": ["cat"]}]),
        ("multiple-choice", CHOICES[0][:1]),
        ("generation", [{"prompt": "p", "completion": "c", "text": "t", "label": "x"}]),
        ("language", [{"text": "t", "label": "x"}]),
    ],
)
def test_every_kind_can_be_asked_for(kind: str, rows: Rows, write: Write) -> None:
    assert load(write, rows, kind=kind).kind == kind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["a", "b"], "kind": "language"}, "data.labels: a language task has no labels"),
        ({"delimiter": "tab"}, "data.delimiter: it is for CSV files"),
        ({"subset": "x"}, "data.subset: it is for hub data sets"),
        ({"columns": {"answers": "text"}}, "do not make a known task"),
    ],
)
def test_options_that_are_not_used_are_refused(options: dict[str, Any], message: str, write: Write) -> None:
    assert message in refused(write, [{"text": "t", "label": "x"}], **options)


USUAL = sorted({name for form in FORMS for names in {**form.required, **form.optional}.values() for name in names})
VALUES = ["t", "u v", 3, 0.5, True, None, "", ["a"], [0, 1], [USER, ANSWER], {"text": ["t"], "answer_start": [0]}, "A"]


@pytest.mark.parametrize("seed", range(300))
def test_whatever_the_columns_are_the_options_of_the_error_decide(seed: int, write: Write) -> None:
    draw = random.Random(seed)
    columns = {name: draw.choice(VALUES) for name in draw.sample(USUAL, draw.randrange(2, 6))}
    path = write("a.jsonl", [columns, columns])
    try:
        load_task(str(path))
    except UserError as error:
        message = str(error).removeprefix(str(path))
        unclear = ("fit more than one kind", "do not make a known task")
        for flags in flags_in(message) if any(words in message for words in unclear) else ():
            try:
                load_task(str(path), TaskOptions.model_validate(options_of(flags)))
            except UserError as other:
                assert not any(words in str(other) for words in unclear), message
