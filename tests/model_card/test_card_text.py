"""What a model card says, from records alone: names of others stay what they are, and what is not known is said."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard as HubCard

from frostline.model_card import Licence, ModelCard, Use, card_text, licence_of, write_readme
from frostline.model_card._code import python_string, use_lines
from frostline.plan import Frozen, Full, Plan, document
from frostline.records import RunRecord
from frostline.report import bytes_text, ratio_text, seconds_text
from made_records import run

PLAN = Plan(strategy="bot50", blocks=(Frozen(), Frozen(), Full(), Full()))


def record(strategy: str = "bot50", model: str = "org/base", **given: Any) -> RunRecord:
    made = run(strategy, model=model, **given).record
    return made.model_copy(update={"plan": document(PLAN.model_copy(update={"strategy": strategy}))})


def card(of: RunRecord, **given: Any) -> ModelCard:
    use = Use("classification", "texts", "encoder", 128, {})
    made = ModelCard("run", "runs/one", of.model.name, "BertForSequenceClassification", PLAN, of, use, ways=("merge",))
    return replace(made, **given)


def test_the_metadata_are_the_hub_s_and_link_what_is_on_the_hub() -> None:
    of = record(task="glue", accuracy=0.75)
    of = of.model_copy(update={"data": of.data.model_copy(update={"source": "nyu-mll/glue/rte"})})
    data = HubCard(card_text(card(of))).data.to_dict()
    assert data["base_model"] == "org/base" and data["base_model_relation"] == "finetune"
    assert data["datasets"] == ["nyu-mll/glue"] and data["pipeline_tag"] == "text-classification"
    (index,) = data["model-index"]
    (result,) = index["results"]
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {"accuracy": 0.75, "loss": 1.0}
    assert result["dataset"] == {"type": "nyu-mll/glue", "name": "glue"}


def test_a_folder_is_not_linked_and_its_path_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "secret" / "mine").mkdir(parents=True)
    text = card_text(card(record(model=str(tmp_path / "secret" / "mine"))))
    assert "base_model" not in HubCard(text).data.to_dict()
    assert "secret" not in text and "**mine** (a local folder)" in text
    gone = record(model="models/mine")  # a folder then, and not there now
    gone = gone.model_copy(update={"places": {"models/mine": ("/x/models/mine",)}})
    assert "base_model" not in HubCard(card_text(card(gone))).data.to_dict()


def test_the_licence_is_the_base_s_or_said_to_be_unknown(tmp_path: Path) -> None:
    text = card_text(card(record()))
    assert HubCard(text).data.license == "unknown" and "**The licence is not known.**" in text
    for folder, head in (
        ("known", "license: mit"),
        ("own", "license: other\nlicense_name: mine\nlicense_link: LICENSE"),
        ("none", "language: en"),
        ("damaged", "license: [unclosed"),
        ("odd", "license: {a: 1}"),
        ("said", "license: unknown"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "README.md").write_text(f"---\n{head}\n---\n# x\n")
    found = {path.name: licence_of([str(path)]) for path in tmp_path.iterdir()}
    assert found["known"] == Licence("mit") and found["own"] == Licence("other", "mine", "LICENSE")
    assert {found[name] for name in ("none", "damaged", "odd", "said")} == {None}
    assert licence_of([str(tmp_path / "absent"), "org/not-in-the-cache"]) is None
    text = card_text(card(record(), licence=found["own"]))
    data = HubCard(text).data.to_dict()
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "mine", "LICENSE")
    assert "not known" not in text and "The card of the base model says: mine" in text


HOSTILE = 'x\n---\n# <script>alert("1")</script> | [a](javascript:b) `c` \x1b[31m\u202e'


def test_no_name_changes_what_is_around_it() -> None:
    of = record(HOSTILE, model=HOSTILE, task=HOSTILE)
    of = of.model_copy(
        update={"data": of.data.model_copy(update={"labels": (HOSTILE,), "kind": HOSTILE}), "notices": (HOSTILE,)}
    )
    text = card_text(card(of, folder=HOSTILE, licence=Licence("other", HOSTILE, HOSTILE)))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    read = HubCard(text)
    assert read.data.license == "other" and read.data.library_name == "frostline"
    body = re.sub(r"```.*?```", "", read.text, flags=re.DOTALL)
    body = re.sub(r"(?<!\\)`[^`\n]*`", "", body)  # code is shown as it is
    assert "<script>" not in body
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert [line for line in headings if not line.startswith("## ")] == headings[:1]
    assert not re.search(r"(?<!\\)\]\(javascript", body)
    failed = card_text(card(record(status="failed", error=HOSTILE)))
    assert "**This run failed**" in failed and "\n# \\<script" not in failed


@pytest.mark.parametrize("text", ['a"b', "a\\nb", "a\nb", "日本 é", "'", "\x1b", "\u202e", "a{b}", '"""', "\udc80"])
def test_a_path_in_the_code_is_that_path(text: str) -> None:
    written = python_string(text)
    assert eval(written) == text and written.isprintable()


def test_a_run_is_beside_the_baseline_where_one_is_known() -> None:
    own, full = record(accuracy=0.7, seconds=5.0, memory=400), record("all", accuracy=0.8, seconds=20.0, memory=1000)
    alone = card_text(card(own))
    assert "No run of full fine-tuning is known" in alone and "operations of a step 0.60" in alone
    text = card_text(card(own, beside=full))
    assert own.measured is not None and full.measured is not None
    times = (seconds_text(5.0), seconds_text(20.0), ratio_text(0.25))
    assert f"| training | {' | '.join(times)} |" in text
    memory = (bytes_text(400), bytes_text(1000), ratio_text(0.4))
    assert f"| peak memory | {' | '.join(memory)} |" in text
    assert "| **accuracy** | 0.400 | 0.700 | 0.800 |" in text and "`all`, same seed" in text
    assert "No run of full" not in text
    resumed = own.model_copy(update={"measured": own.measured.model_copy(update={"resumed_at_step": 7})})
    text = card_text(card(resumed, beside=full))
    assert "resumed at step 7" in text and f"| training | – | {seconds_text(20.0)} | – |" in text
    tried = {"resumed_at_step": 7, "seconds": {"trials": 2.0}, "selection_seconds": 2.0}
    text = card_text(card(own.model_copy(update={"measured": own.measured.model_copy(update=tried)}), beside=full))
    assert "resumed" not in text and f"| training | {' | '.join(times)} |" in text


def test_a_decision_against_the_cache_is_no_caching_pass() -> None:
    full, own = record("all"), record()
    assert full.measured and own.measured
    full = full.model_copy(update={"measured": full.measured.model_copy(update={"caching_seconds": 0.0005})})
    own = own.model_copy(update={"measured": own.measured.model_copy(update={"caching_seconds": 0.8})})
    assert "| caching pass | 0.8 s | – | – |" in card_text(card(own, beside=full))
    assert "caching pass" not in card_text(card(full))


def test_a_run_that_is_not_finished_has_no_code() -> None:
    text = card_text(card(record(status="running")))
    assert "**This run has not finished.**" in text and "--resume" in text and "```python" not in text
    assert "metrics" not in HubCard(text).data.to_dict()


def test_figures_that_are_no_numbers_stay_out_of_the_metadata() -> None:
    text = card_text(card(record(accuracy=math.nan)))
    (index,) = HubCard(text).data.to_dict()["model-index"]
    assert [metric["type"] for metric in index["results"][0]["metrics"]] == ["loss"]
    assert "| **accuracy** | 0.400 | nan |" in text
    yaml.safe_load(text.split("---")[1])


def test_a_schedule_s_strip_is_shown() -> None:
    strip = ("head ██", "3    ██", "0    ░█")
    text = card_text(card(record().model_copy(update={"strip": strip})))
    assert "What trained when, from left to right over 100 steps" in text and "\n".join(strip) in text


def test_a_class_that_is_no_name_is_not_put_into_code() -> None:
    made = replace(card(record()), form="merged", model_class="x; import os")
    assert "```python" not in card_text(made)


def test_every_kind_of_task_has_code_that_python_reads() -> None:
    kinds = ("classification", "multi-label", "regression", "tagging", "extraction", "multiple-choice", "generation")
    for task in (*kinds, "language"):
        for rows in ("texts", "pairs", "chats", "questions"):
            for model in ("encoder", "decoder", "encoder-decoder"):
                lines = use_lines(Use(task, rows, model, 64, {"max_new_tokens": 8, "num_beams": 4}))
                compile("\n".join(lines), task, "exec")
                assert lines
    assert use_lines(Use("another", "texts", "encoder", 64, {})) == []
    assert use_lines(Use("classification", "texts", "", 64, {})) == [], "a record of before does not say the kind"


def test_a_card_is_written_again_until_someone_changes_it(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    assert write_readme(tmp_path, "one\n") and write_readme(tmp_path, "two\n")
    assert path.read_text().startswith("two\n")
    path.write_text(path.read_text().replace("two", "mine"))
    changed = path.read_bytes()
    assert not write_readme(tmp_path, "three\n") and path.read_bytes() == changed
    for own in (b"mine\n", b"", b"\xff\xfe", b"two\r\n"):
        path.write_bytes(own)
        assert not write_readme(tmp_path, "three\n") and path.read_bytes() == own
    path.unlink()
    (tmp_path / "elsewhere").write_text("mine")
    path.symlink_to(tmp_path / "elsewhere")
    assert not write_readme(tmp_path, "three\n") and path.is_symlink()
