"""The tasks with answers to extract: rows, prompts, leaks, and what the hub's rows become."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from frostline.core.errors import UserError
from frostline.tasks import TaskKind, TaskOptions, encode, load_task
from frostline.tasks import _hub_questions as hub
from frostline.tasks._question_catalog import QUESTION_TASKS

Write = Callable[..., Path]
# train, eval, questions
SIZES = {
    "math-mix": (2877, 322, 805),
    "svamp": (720, 80, 200),
    "aqua": (183, 20, 51),
    "addsub": (284, 32, 79),
    "multiarith": (430, 48, 109),
    "singleeq": (365, 40, 102),
    "gsm8k": (6726, 747, 1319),
    "boolq": (9421, 3270, 0),
    "piqa": (0, 1838, 0),
    "siqa": (0, 1954, 0),
    "winogrande": (0, 1267, 0),
    "arc-e": (2249, 2376, 0),
    "arc-c": (1119, 1172, 0),
    "obqa": (4957, 500, 0),
}


@pytest.fixture
def shared_data(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FROSTLINE_DATA", str(data_dir))
    return data_dir


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


@pytest.mark.parametrize("name", QUESTION_TASKS)
def test_each_task_from_the_local_copies(name: str, shared_data: Path) -> None:
    task = load_task(name)
    assert (task.name, task.kind, task.metric) == (name, TaskKind.GENERATION, "accuracy")
    assert (len(task.train), len(task.eval), len(task.questions)) == SIZES[name]
    asked = {_letters(example.text) for example in (*task.eval, *task.questions)}
    assert not [example.id for example in task.train if _letters(example.text) in asked], "a leak"
    ids = [example.id for example in (*task.train, *task.eval, *task.questions)]
    assert len(set(ids)) == len(ids)
    groups = {example.group for example in (*task.train, *task.eval, *task.questions)}
    assert groups == ({"svamp", "aqua", "addsub", "multiarith", "singleeq", "gsm8k"} if name == "math-mix" else {name})


def test_the_prompt_target_and_answer_are_the_rows(shared_data: Path) -> None:
    task = load_task("math-mix")
    row = _rows(shared_data / "math/split80_20/train.jsonl")[0]
    example = next(example for example in (*task.train, *task.eval) if example.id.endswith(":0"))
    assert example.text == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{row['instruction']}\n\n### Response:\n"
    )
    assert (example.target, example.references) == (row["output"], (row["answer"],))
    asked = _rows(shared_data / "math/split80_20/test.jsonl")
    assert [example.references for example in task.questions] == [(row["answer"],) for row in asked]
    row = _rows(shared_data / "commonsense/test/piqa.jsonl")[3]
    example = load_task("piqa").eval[3]
    assert (example.target, example.references) == (f"the correct answer is {row['answer']}", (row["answer"],))


def test_notices_say_what_is_left_out_of_the_mix(shared_data: Path) -> None:
    task = load_task("math-mix", TaskOptions(max_train_rows=1000))
    assert task.notices == (
        "3 training rows left out because the output is empty",
        "41 training rows left out because the test rows have the same question",
        "the loss is measured on 322 held-out training rows: the test rows have no output",
        "17 training rows left out because the held-out rows have the same question",
        "1000 of 2877 training rows drawn by seed 42",
    )
    assert [example.id for example in task.train] == [
        example.id for example in load_task("math-mix", TaskOptions(max_train_rows=1000, max_eval_rows=3)).train
    ]
    assert len(load_task("math-mix", TaskOptions(max_train_rows=500)).train) == 500
    assert load_task("math-mix", TaskOptions(eval_share=0.01)).eval[0].id.startswith("eval:")


def test_rows_of_one_set_keep_the_ids_that_they_have_in_the_mix(shared_data: Path) -> None:
    mix = {example.id: example for example in load_task("math-mix").questions}
    for example in load_task("aqua").questions:
        assert mix[example.id] == example


def test_a_task_without_training_rows_says_so_when_it_is_trained(shared_data: Path, tokenizer: Any) -> None:
    task = load_task("winogrande", TaskOptions(max_eval_rows=2))
    assert len(encode(task, "eval", tokenizer, 400, "decoder")) == 2
    with pytest.raises(
        UserError, match=r"nothing to train on: no rows in .*winogrande\.jsonl: add them there, or unset"
    ):
        encode(task, "train", tokenizer, 400, "decoder")


def test_what_cannot_be_read_or_is_fixed_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FROSTLINE_DATA", raising=False)
    with pytest.raises(
        UserError, match="this task needs a local copy: set FROSTLINE_DATA to a folder with math/split80_20"
    ):
        load_task("svamp")
    with pytest.raises(UserError, match=r"'openai/gsm8k/main' cannot be loaded .*: go online, or set FROSTLINE_DATA"):
        load_task("gsm8k")
    monkeypatch.setenv("FROSTLINE_DATA", str(tmp_path))
    with pytest.raises(UserError, match=f"no math/test/gsm8k.jsonl in {tmp_path}, the folder in FROSTLINE_DATA"):
        load_task("gsm8k")
    with pytest.raises(UserError, match=r"data\.eval: it is fixed"):
        load_task("gsm8k", TaskOptions(eval="train"))
    with pytest.raises(UserError, match=r"data\.eval_share: it is fixed"):
        load_task("piqa", TaskOptions(eval_share=0.2))


def _mix(folder: Path, train: list[dict[str, str]], test: list[dict[str, str]]) -> None:
    place = folder / "math/split80_20"
    place.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_leaks_are_found_whatever_the_spaces_and_punctuation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROSTLINE_DATA", str(tmp_path))

    def row(question: str, output: str = "o") -> dict[str, str]:
        return {"instruction": question, "output": output, "answer": "1", "set": "SVAMP"}

    asked = {"instruction": "Tom has 3 eggs . How many ?", "answer": "3", "set": "SVAMP"}
    train = [row(f"question {i}") for i in range(8)]
    _mix(tmp_path, [row("tom has 3 eggs. How many?"), row("empty", " "), *train], [asked])
    task = load_task("svamp", TaskOptions(eval_share=0.25))
    assert sorted(e.id.split(":")[1] for e in (*task.train, *task.eval)) == [str(i) for i in range(2, 10)]
    assert len(task.eval) == 2
    assert load_task("svamp", TaskOptions(generate_rows=0)).metric == "loss"
    _mix(tmp_path, [row("a") | {"set": "SVAMPS"}], [asked])
    with pytest.raises(UserError, match=r"train.jsonl:1: unknown set 'svamps': did you mean 'svamp'\?"):
        load_task("svamp")
    _mix(tmp_path, train, [asked | {"set": "AQuA"}])
    with pytest.raises(UserError, match=r"test\.jsonl: it has no rows of the set svamp"):
        load_task("svamp")


# The hub's rows by hand, which have to become the local copy's.

LICHENS = {
    "question": "Lichens are symbiotic organisms made of green algae and fungi. "
    "What do the green algae supply to the fungi in this symbiotic relationship?",
    "choices": {"text": ["carbon dioxide", "food", "protection", "water"], "label": ["A", "B", "C", "D"]},
    "answerKey": "B",
}
SUN = {
    "question_stem": "The sun is responsible for",
    "choices": {
        "text": [
            "puppies learning new tricks",
            "children growing up and getting old",
            "flowers wilting in a vase",
            "plants sprouting, blooming and wilting",
        ],
        "label": ["A", "B", "C", "D"],
    },
    "answerKey": "D",
}
WENG = {
    "question": "Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes of babysitting. "
    "How much did she earn?",
    "answer": "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\n"
    "Working 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10",
}
SYDNEY = {
    "context": "Sydney walked past a homeless woman asking for change but did not have any money they could give to "
    "her. Sydney felt bad afterwards.",
    "question": "How would you describe Sydney?",
    "answerA": "sympathetic",
    "answerB": "like a person who was unable to help",
    "answerC": "incredulous",
    "label": "1",
}
SARAH = {
    "sentence": "Sarah was a much better surgeon than Maria so _ always got the easier cases.",
    "option1": "Sarah",
    "option2": "Maria",
    "answer": "2",
}
DRAGO = {
    "goal": "To fight Ivan Drago in Rocky for sega master system.",
    "sol1": "Drago isn't in this game because it was released before Rocky IV.",
    "sol2": "You have to defeat Apollo Creed and Clubber Lang first.",
    "label": 1,
}
PERSIAN = {"question": "do iran and afghanistan speak the same language", "passage": "...", "answer": True}


@pytest.mark.parametrize(
    ("convert", "row", "file", "line"),
    [
        (hub.gsm8k, WENG, "math/train/gsm8k_train", 1),
        (hub.boolq, PERSIAN, "commonsense/train/boolq", 0),
        (hub.piqa, DRAGO, "commonsense/test/piqa", 2),
        (hub.siqa, SYDNEY, "commonsense/test/social_i_qa", 1),
        (hub.winogrande, SARAH, "commonsense/test/winogrande", 0),
        (hub.arc, LICHENS, "commonsense/train/ARC-Easy", 1),
        (hub.openbookqa, SUN, "commonsense/train/openbookqa", 0),
    ],
)
def test_the_hubs_rows_become_the_local_ones(
    convert: hub.Make, row: dict[str, Any], file: str, line: int, data_dir: Path
) -> None:
    local = _rows(data_dir / f"{file}.jsonl")[line]
    assert convert(row) == {name: local[name] for name in ("instruction", "output", "answer")}


def test_a_task_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FROSTLINE_DATA", raising=False)
    calls: list[Any] = []

    def load_dataset(path: str, name: str | None = None, **options: Any) -> Any:
        calls.append((path, name))
        rows = {"train": [SARAH, SARAH | {"option1": "Ann"}], "validation": [SARAH]}
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows[split]) for split in rows})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_task("winogrande")
    assert calls == [("allenai/winogrande", None)]
    assert ([e.id for e in task.train], [e.id for e in task.eval]) == (["train:1"], ["eval:0"])
    assert task.eval[0].references == ("option2",)
    assert task.source == "allenai/winogrande"
