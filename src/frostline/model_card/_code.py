"""Python that loads a model and uses it once, by the kind of its task.

The first line of each use is the input, which a reader replaces by their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Use:
    """How the model of a run is used.

    Attributes:
        task: the kind of its task.
        rows: what its rows are, as in the record.
        model: the kind of the model: `encoder`, `decoder` or `encoder-decoder`.
        max_length: the most tokens of an input in training.
        decoding: keywords of transformers' `generate`.
    """

    task: str
    rows: str
    model: str
    max_length: int
    decoding: Mapping[str, Any]


def python_string(text: str) -> str:
    """A string of Python in double quotes, in which every character that is not printable is escaped."""
    return '"' + "".join(one if one.isprintable() and one not in '"\\' else _escaped(one) for one in text) + '"'


def _escaped(one: str) -> str:
    return '\\"' if one == '"' else one.encode("unicode_escape").decode()


def use_lines(use: Use) -> list[str]:
    """The lines that use `model` and `tokenizer`; empty for a kind of task that is not known."""
    made = _USES.get(use.task)
    return [] if made is None or not use.model else made(use)


def needs_torch(lines: list[str]) -> bool:
    """Whether some line names torch."""
    return any("torch." in line for line in lines)


def _cut(use: Use) -> str:
    more = "" if use.model == "encoder" else ", return_token_type_ids=False"
    return f'truncation=True, max_length={use.max_length}, return_tensors="pt"{more}'


def _texts(use: Use) -> list[str]:
    pair = use.rows == "pairs"
    given = ['text = "Some text."', *(['pair = "Another text."'] if pair else [])]
    if use.model == "decoder":
        text = 'f"{text}\\n{pair}"' if pair else "text"
        return [*given, 'tokenizer.truncation_side = "left"', f"inputs = tokenizer({text}, {_cut(use)})"]
    return [*given, f"inputs = tokenizer(text, {'pair, ' if pair else ''}{_cut(use)})"]


def _one(use: Use, answer: str) -> list[str]:
    return [*_texts(use), "with torch.no_grad():", "    logits = model(**inputs).logits[0]", f"print({answer})"]


def _tags(use: Use) -> list[str]:
    return [
        'words = ["Some", "words"]',
        f'inputs = tokenizer(" ".join(words), return_offsets_mapping=True, {_cut(use)})',
        'places = inputs.pop("offset_mapping")[0].tolist()',
        "with torch.no_grad():",
        "    tags = model(**inputs).logits[0].argmax(-1)",
        "start = 0",
        "for word in words:",
        "    token = next((i for i, (first, end) in enumerate(places) if first <= start < end), None)",
        '    print(word, "O" if token is None else model.config.id2label[int(tags[token])])',
        "    start += len(word) + 1",
    ]


def _answer(use: Use) -> list[str]:
    unless = '"" if scores[none, none] > scores[first, last] else ' if use.rows == "questions" else ""
    return [
        'question, context = "Who is it?", "It is a text that holds the answer."',
        'inputs = tokenizer(question, context, truncation="only_second", '
        f'max_length={use.max_length}, return_offsets_mapping=True, return_tensors="pt")',
        'places = inputs.pop("offset_mapping")[0].tolist()',
        "inside = torch.tensor([part == 1 for part in inputs.sequence_ids()])",
        "with torch.no_grad():",
        "    output = model(**inputs)",
        "scores = output.start_logits[0][:, None] + output.end_logits[0]",
        "spans = torch.ones_like(scores).triu().tril(29).bool() & inside & inside[:, None]  # at most 30 tokens",
        'first, last = divmod(int(scores.masked_fill(~spans, float("-inf")).argmax()), len(inside))',
        *(["none = inputs.input_ids[0].tolist().index(tokenizer.cls_token_id)"] if use.rows == "questions" else []),
        f"print({unless}context[places[first][0] : places[last][1]])",
    ]


def _choice(use: Use) -> list[str]:
    given = ['text, choices = "Some text.", ["one ending", "another ending"]']
    if use.model == "encoder":
        return [
            *given,
            f"inputs = tokenizer([text] * len(choices), choices, padding=True, {_cut(use)})",
            "with torch.no_grad():",
            "    logits = model(**{name: values[None] for name, values in inputs.items()}).logits[0]",
            "print(choices[int(logits.argmax())])",
        ]
    prompt = "tokenizer(f'{text}\\n', return_tensors=\"pt\").input_ids"
    ids = ["ids", "own"] if use.model == "encoder-decoder" else ["torch.cat([ids, own], 1)", "labels"]
    labels = [] if use.model == "encoder-decoder" else ["    labels = torch.cat([torch.full_like(ids, -100), own], 1)"]
    return [
        *given,
        "losses = []",
        "for choice in choices:  # the text that the model expects most",
        f"    ids = {prompt}",
        '    own = tokenizer(choice + tokenizer.eos_token, add_special_tokens=False, return_tensors="pt").input_ids',
        *labels,
        "    with torch.no_grad():",
        f"        losses.append(float(model(input_ids={ids[0]}, labels={ids[1]}).loss))",
        "print(choices[losses.index(min(losses))])",
    ]


def _write(use: Use) -> list[str]:
    options = {"do_sample": False, **use.decoding}
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    if use.rows == "chats":
        lines = [
            'messages = [{"role": "user", "content": "Hello."}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    else:
        lines = [
            'prompt = "Some text."',
            'tokenizer.truncation_side = "left"',
            f"inputs = tokenizer(prompt, {_cut(use)})",
        ]
    new = "written[0]" if use.model == "encoder-decoder" else 'written[0, inputs["input_ids"].shape[1] :]'
    return [
        *lines,
        f"written = model.generate(**inputs, eos_token_id=tokenizer.eos_token_id, {given})",
        f"print(tokenizer.decode({new}, skip_special_tokens=True).strip())",
    ]


_USES: Mapping[str, Callable[[Use], list[str]]] = {
    "classification": lambda use: _one(use, "model.config.id2label[int(logits.argmax())]"),
    "multi-label": lambda use: _one(use, "[label for i, label in model.config.id2label.items() if logits[i] > 0]"),
    "regression": lambda use: _one(use, "float(logits[0])"),
    "tagging": _tags,
    "extraction": _answer,
    "multiple-choice": _choice,
    "generation": _write,
    "language": _write,
}
