"""The README.md of a run, of a merged model and of a LoRA folder: read back as the hub reads it, and run as it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tokenizers.processors import TemplateProcessing

from frostline.checkpoints import export_lora, merge
from frostline.core.errors import TrainingError
from frostline.core.files import read_json
from frostline.model_card import README_FILE
from frostline.records import RunRecord, read_record
from frostline.run import read_config, train
from frostline.tasks import Example, TaskKind
from shapes import shape
from shapes import shapes as shapes  # a fixture
from tiny_files import write_model, write_task

LENGTH = 96
LIBRARIES = {"run": "frostline", "merged": "transformers", "lora": "peft"}
RUNNER = """
import contextlib, io, json, sys
for code in json.load(sys.stdin):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    print(json.dumps(out.getvalue()), flush=True)
"""


@dataclass
class Written:
    """A folder with a card, and what its code should print for a row."""

    folder: Path
    record: RunRecord
    row: Example
    answer: str
    form: str = "run"

    @property
    def card(self) -> ModelCard:
        return ModelCard.load(self.folder / README_FILE)

    @property
    def code(self) -> str:
        """The card's code, with this row in place of its example."""
        _, begun, rest = self.card.text.partition("## How to load it\n\n```python\n")
        code, ended, _ = rest.partition("\n```\n")
        assert begun and ended
        found = [inputs(line, self.row) for line in code.splitlines()]
        assert found != code.splitlines(), "the example is replaced"
        return "\n".join(found)


def inputs(line: str, row: Example) -> str:
    """A line of a card with the row's own text in it."""
    given: dict[str, Any] = {
        "text =": row.text,
        "pair =": row.pair,
        "prompt =": row.text,
        "words =": list(row.words),
        "question, context =": (row.text, row.pair),
        "text, choices =": (row.text, list(row.choices)),
    }
    return next((f"{start} {value!r}" for start, value in given.items() if line.startswith(start)), line)


def in_a_fresh_process(written: list[Written], folder: Path) -> list[str]:
    """What the code of each card prints, one after another in a process of its own."""
    return printed_by([one.code for one in written], folder)


def printed_by(codes: list[str], folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(codes),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line).rstrip("\n") for line in done.stdout.splitlines()]


def trained(folder: Path, kind: TaskKind | None, **given: Any) -> list[Written]:
    """A run, and for some of its answers what its card's code should print."""
    settings: dict[str, Any] = {
        "strategy": "bot50",
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "max_length": LENGTH,
        "learning_rate": 1e-3,
        "bf16": False,
        "max_new_tokens": 8,
        "threads": 1,
        "task": f"small-{kind}",
        "out": str(folder),
    }
    record = train(read_config(None, **settings | given))
    answers = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    rows = {} if kind is None else {example.id: example for example in shape(kind).eval}
    return [Written(folder, record, rows.get(one["id"]) or Example("", one["prompt"]), one["text"]) for one in answers]


def as_printed(kind: TaskKind, one: Written) -> str:
    if kind is TaskKind.TAGGING:  # words without a right tag are not in the answer
        return "\n".join(
            f"{word} {tag}"
            for word, tag in zip(
                [word for word, right in zip(one.row.words, one.row.tags, strict=True) if right != -100],
                one.answer.split(),
                strict=True,
            )
        )
    if kind is TaskKind.MULTI_LABEL:
        return str([label for label in one.answer.split(", ") if label])
    return one.answer


def check(kind: TaskKind, one: Written, printed: str) -> None:
    right = as_printed(kind, one)
    if kind is TaskKind.REGRESSION:
        assert float(printed) == pytest.approx(float(right), rel=1e-4, abs=1e-5)
    elif kind is TaskKind.TAGGING:
        assert set(right.splitlines()) <= set(printed.splitlines())
    else:
        assert printed == right


def check_metadata(one: Written) -> None:
    """The metadata are what the hub reads, and are the record's."""
    card, record = one.card, one.record
    data = card.data.to_dict()
    assert data["library_name"] == LIBRARIES[one.form]
    known = "MiniLM" in record.model.name  # whose own card names one
    assert data["license"] == ("apache-2.0" if known else "unknown")
    assert ("licence is not known" in card.text) != known
    assert "base_model" not in data, "a folder is no model of the hub"
    assert record.metrics is not None
    results = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    assert results == pytest.approx(record.metrics.after)
    assert data["metrics"] == [record.data.metric]
    assert ModelCard(card.content).data.to_dict() == data


def pairs(folder: Path) -> Path:
    folder.mkdir()
    for split, count in (("train", 16), ("dev", 6)):
        rows = [
            {"premise": f"The {a} sat.", "hypothesis": f"A {b} sat.", "label": ("no", "yes")[a == b]}
            for i in range(count)
            for a, b in [(("cat", "dog")[i % 2], ("cat", "dog")[i // 2 % 2])]
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_code_of_the_cards_gives_the_answers_of_the_run(tmp_path: Path, models_dir: Path, shapes: None) -> None:
    encoder, decoder = str(models_dir / "all-MiniLM-L6-v2"), str(models_dir / "stories260K")
    task = pairs(tmp_path / "pairs")
    given = [json.loads(line) for line in (task / "dev.jsonl").read_text().splitlines()]
    of_pairs = trained(tmp_path / "of pairs", None, model=encoder, task=str(task))
    for one, row in zip(of_pairs, given, strict=True):
        one.row = Example("", row["premise"], row["hypothesis"])
    answers = trained(tmp_path / "answers", TaskKind.EXTRACTION, model=encoder)
    texts = trained(tmp_path / "texts", TaskKind.GENERATION, model=decoder, strategy="bot50+lora")
    merge(tmp_path / "of pairs", tmp_path / "merged")
    export_lora(tmp_path / "texts", tmp_path / "lora")
    merge(tmp_path / "texts", tmp_path / "whole")
    others = [
        Written(tmp_path / name, one.record, one.row, one.answer, form)
        for name, one, form in (
            ("merged", of_pairs[0], "merged"),
            ("lora", texts[0], "lora"),
            ("whole", texts[1], "merged"),
        )
    ]
    asked = [*of_pairs[:3], *answers[:3], *texts[:2], *others]
    for one, printed in zip(asked, in_a_fresh_process(asked, tmp_path), strict=True):
        assert printed == one.answer, one.folder
        check_metadata(one)
    run = of_pairs[0].card.text
    assert "frostline merge '" in run and "frostline export" not in run
    assert "frostline export " in texts[0].card.text and "frostline generate " in texts[0].card.text
    assert "--max-lora-rank 8" in others[1].card.text


HEADS = (TaskKind.MULTI_LABEL, TaskKind.REGRESSION, TaskKind.TAGGING, TaskKind.EXTRACTION, TaskKind.CHOICE)
ENCODER, DECODER = "all-MiniLM-L6-v2", "stories260K"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["lisa", "hlpt(2,2)", "bot50+lora", "freezeout", "auto", "quantized", "splitlora"])
def test_every_kind_of_run_loads_as_its_card_says(
    tmp_path: Path, models_dir: Path, shapes: None, strategy: str
) -> None:
    options: dict[str, Any] = {"strategy": strategy}
    if strategy == "quantized":
        options = {"strategy": "bot50+lora", "frozen_bits": 8}
    if strategy == "splitlora":
        options |= {"optim": "sgd", "max_grad_norm": 0.0}
    runs = trained(tmp_path / "run", TaskKind.GENERATION, model=str(models_dir / DECODER), **options)
    printed = in_a_fresh_process(runs[:2], tmp_path)
    if strategy != "quantized":  # the run answers in 8 bits, and what is loaded has the base's own weights
        assert printed == [one.answer for one in runs[:2]]
    check_metadata(runs[0])
    text = runs[0].card.text
    assert ("The plan changed while it trained" in text) == bool(runs[0].record.strip)
    assert ("frostline merge" in text) == (strategy != "hlpt(2,2)")
    if strategy == "hlpt(2,2)":
        assert "cannot be merged" in text
    else:
        merge(tmp_path / "run", tmp_path / "merged")


@pytest.mark.slow
@pytest.mark.parametrize("model", [ENCODER, DECODER, "t5", "bart"])
def test_every_kind_of_task_loads_as_its_card_says(tmp_path: Path, models_dir: Path, shapes: None, model: str) -> None:
    folder = models_dir / model if model in (ENCODER, DECODER) else seq2seq(tmp_path / model, models_dir)
    kinds = {
        ENCODER: [*HEADS],
        DECODER: [TaskKind.REGRESSION, TaskKind.MULTI_LABEL, TaskKind.TAGGING, TaskKind.CHOICE],
        "t5": [TaskKind.GENERATION, TaskKind.CHOICE, TaskKind.REGRESSION],
        "bart": [TaskKind.GENERATION, TaskKind.MULTI_LABEL],
    }[model]
    asked: list[tuple[TaskKind, Written]] = []
    for kind in kinds:
        runs = trained(tmp_path / str(kind), kind, model=str(folder))
        # The code of pairs is for rows that all have one; a part of the texts of this task has none.
        asked += [(kind, one) for one in runs if one.row.pair is None or kind is TaskKind.EXTRACTION][:3]
        merge(tmp_path / str(kind), tmp_path / f"merged {kind}")
        last = asked[-1][1]
        asked.append((kind, Written(tmp_path / f"merged {kind}", last.record, last.row, last.answer, "merged")))
    for (kind, one), printed in zip(asked, in_a_fresh_process([one for _, one in asked], tmp_path), strict=True):
        check(kind, one, printed)
        check_metadata(one)


CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.slow
def test_chats_and_plain_texts_are_written_as_frostline_generate_writes_them(tmp_path: Path, models_dir: Path) -> None:
    import transformers

    from frostline.run import generate_target
    from frostline.tasks import Message

    base = tmp_path / "base"
    transformers.AutoModelForCausalLM.from_pretrained(models_dir / DECODER).save_pretrained(base)
    tokenizer = transformers.AutoTokenizer.from_pretrained(models_dir / DECODER)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(base)
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Once upon a time."}]
    files = {"chats": {"messages": turns}, "texts": {"text": "Once upon a time there was a cat."}}
    written = []
    for name, row in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(12)))
        folder = tmp_path / name
        assert trained(folder, None, model=str(base), task=str(tmp_path / f"{name}.jsonl")) == []
        record = read_record(folder)
        assert record.data.rows == name
        chat = Example("", messages=(Message("user", "Hello."),))
        (text,) = generate_target(str(folder), [chat if name == "chats" else "Once upon"], max_new_tokens=8)
        written.append(Written(folder, record, Example("", "Once upon"), text.strip()))
    codes = [one.card.text.partition("```python\n")[2].partition("\n```")[0] for one in written]
    codes[1] = codes[1].replace('"Some text."', '"Once upon"')
    assert printed_by(codes, tmp_path) == [one.answer for one in written]


def seq2seq(folder: Path, models_dir: Path) -> Path:
    import transformers

    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sizes: dict[str, Any] = {"vocab_size": 512, "d_model": 32, **ends}
    if folder.name == "t5":
        config: Any = transformers.T5Config(
            d_ff=48, d_kv=16, num_layers=3, num_heads=2, dropout_rate=0.0, decoder_start_token_id=0, **sizes
        )
        transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    else:
        two = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("ffn_dim", 48), ("layers", 2))}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 128}
        config = transformers.BartConfig(decoder_start_token_id=2, forced_eos_token_id=None, **sizes, **two, **heads)
        transformers.BartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(models_dir / DECODER)
    tokenizer.pad_token = "<unk>"
    # As the tokenizers of encoder-decoders do, it ends every text.
    ended = TemplateProcessing(single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 2)])
    tokenizer.backend_tokenizer.post_processor = ended
    tokenizer.save_pretrained(folder)
    return folder


def test_a_user_s_readme_stays_and_the_run_says_so(tmp_path: Path) -> None:
    model, task = str(write_model(tmp_path / "tiny")), str(write_task(tmp_path / "days"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / README_FILE).write_text("mine")
    record = train(
        read_config(
            None, model=model, task=task, out=str(tmp_path / "run"), strategy="bot50", max_steps=2, max_length=16
        )
    )
    assert (tmp_path / "run" / README_FILE).read_text() == "mine"
    assert any("README.md is your own" in notice for notice in record.notices)
    assert read_json(tmp_path / "run" / "run.json", "record")["status"] == "finished"


def test_a_run_that_fails_says_so_in_its_card(tmp_path: Path) -> None:
    model, task = str(write_model(tmp_path / "tiny")), str(write_task(tmp_path / "days"))
    given = {"model": model, "task": task, "out": str(tmp_path / "run"), "strategy": "all", "max_length": 16}
    with pytest.raises(TrainingError):
        train(read_config(None, **given, learning_rate=1e30, max_steps=9))
    card = ModelCard.load(tmp_path / "run" / README_FILE)
    assert "**This run failed**: the loss is" in card.text and "```python" not in card.text
    assert "metrics" not in card.data.to_dict()
