"""Every command in this process: what it prints, where, and how it ends."""

from __future__ import annotations

import csv
import html
import inspect
import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from command_line import Ended, frostline
from frostline.checkpoints import save_delta
from frostline.core.errors import FrostlineError
from frostline.plan import load_plan
from frostline.run import make_plan
from frostline.surgery import apply
from tiny_files import write_model, write_task


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    write_model(folder / "model")
    write_task(folder / "days")
    return folder


def train(place: Path, *arguments: str | Path) -> Ended:
    settings = ("per_device_train_batch_size=4", "max_length=16", "bf16=false", "learning_rate=1e-3")
    return frostline("train", *settings, "--model", place / "model", "--task", place / "days", *arguments)


@pytest.fixture(scope="module")
def trained(place: Path) -> Ended:
    return train(place, "--strategy", "bot50", "max_steps=3", "--out", place / "run", "--seed", "7", "--json")


def test_inspect(place: Path) -> None:
    ended = frostline("inspect", place / "model", "--json")
    assert (ended.status, ended.err) == (0, "")
    document = ended.document
    assert [block["index"] for block in document["blocks"]] == [0, 1, 2, 3]
    parts = [document[part]["parameters"] for part in ("embeddings", "final_norm", "head")]
    assert sum(parts) + sum(block["parameters"] for block in document["blocks"]) == document["total_parameters"]
    block = document["blocks"][0]
    assert block["attention"] + block["feed_forward"] + block["norm"] + block["other"] == block["parameters"]
    shown = frostline("inspect", place / "model").out
    assert "block 3" in shown and "embeddings" in shown and f"{document['total_parameters']:,}" in shown


def test_inspect_with_a_tasks_head(place: Path) -> None:
    document = frostline("inspect", place / "model", "--task", place / "days", "--json").document
    assert document["model_class"] == "LlamaForSequenceClassification"
    assert document["head"]["tensors"] == ["score.weight"]


def test_plan_holds_what_the_contract_promises(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.yaml"
    ended = frostline("plan", place / "model", "--strategy", "bot50", "length=64", "--out", out, "--json")
    assert (ended.status, ended.err) == (0, "")
    plan = ended.document
    assert plan["strategy"] == "bot50" and plan["boundary"] == 2
    assert [(block["index"], block["mode"]) for block in plan["blocks"]] == [
        (0, "frozen"),
        (1, "frozen"),
        (2, "full"),
        (3, "full"),
    ]
    assert plan["embeddings"]["mode"] == "frozen" and plan["head"]["mode"] == "full"
    assert 0 < plan["trainable_parameters"] < plan["total_parameters"]
    predicted = plan["predicted"]
    assert {"flops_ratio", "run_flops_ratio", "time_ratio", "peak_memory_bytes", "memory_ratio"} <= set(predicted)
    assert predicted["time_ratio"] is None and 0 < predicted["flops_ratio"] < 1 and 0 < predicted["memory_ratio"] < 1
    assumed = {"per_device_train_batch_size": 32, "length": 64, "num_train_epochs": 3.0, "bf16": False}
    assumed |= {"optim": "adamw_torch_fused"}
    assert assumed.items() <= plan["assumes"].items()
    assert load_plan(out).boundary == 2


def test_plan_for_people(place: Path) -> None:
    ended = frostline("plan", place / "model", "--strategy", "bot50", "per_device_train_batch_size=4")
    assert ended.status == 0 and not ended.err
    for shown in ("░░██", "boundary", "per_device_train_batch_size=4", "of full fine-tuning", "%"):
        assert shown in ended.out


def test_plan_assumes_what_train_does_by_default() -> None:
    from frostline.cli.plan import DEFAULTS, command
    from frostline.cost import Workload
    from frostline.run import RunConfig

    run, work = RunConfig(model="m", task="t"), Workload(**DEFAULTS)
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "optim"):
        assert getattr(work, name) == getattr(run, name), name
    assert (work.length, work.rows) == (run.max_length, Workload().rows)
    assert inspect.signature(command).parameters["seed"].default == run.seed


def test_settings_are_listed(place: Path) -> None:
    """The way that the message for an unknown setting names."""
    for command, name in (("plan", "stored_share"), ("train", "per_device_train_batch_size")):
        ended = frostline(command, "--settings")
        assert ended.status == 0 and f"{name}=" in ended.out


def test_set_means_the_same_in_plan_and_train(place: Path, tmp_path: Path) -> None:
    options = ("--strategy", "lora", "--set", "r=3", "--json")
    planned = frostline("plan", place / "model", *options)
    assert planned.status == 0, planned.err
    trained = train(place, *options, "max_steps=1", "--out", tmp_path / "run")
    assert trained.status == 0, trained.err
    assert planned.document["blocks"] == trained.document["plan"]["blocks"]
    assert planned.document["blocks"][0]["r"] == 3


def test_train_records_and_answers_with_the_record(place: Path, trained: Ended) -> None:
    assert trained.status == 0, trained.err
    assert trained.document["folder"] == str(place / "run")
    written = json.loads((place / "run" / "run.json").read_text())
    assert {key: trained.document[key] for key in written} == written
    assert (written["status"], written["seed"], written["measured"]["steps"]) == ("finished", 7, 3)


def test_train_shows_quality_and_cost(place: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {place / 'model'}\ntask: {place / 'days'}\nstrategy: head\n"
        "max_steps: 5\nper_device_train_batch_size: 4\n"
    )
    ended = frostline("train", config, "max_steps=2", "max_length=16", "--out", tmp_path / "run")
    assert ended.status == 0, ended.err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["max_steps"] == 2
    for shown in ("accuracy", "before", "majority class", "peak memory", "predicted", str(tmp_path / "run")):
        assert shown in ended.out.replace("\n", ""), shown


def test_evaluate_a_run_and_a_model(place: Path, trained: Ended) -> None:
    own = frostline("evaluate", place / "run", "--max-length", "16", "--no-bf16", "--json")
    assert own.status == 0, own.err
    after = trained.document["metrics"]["after"]
    assert own.document["metrics"] == pytest.approx(after, abs=1e-5)
    model = frostline("evaluate", place / "model", "--task", place / "days", "--seed", "7", "--max-length", "16")
    assert model.status == 0 and "accuracy" in model.out
    before = trained.document["metrics"]["before"]
    assert f"{before['loss']:.3f}" in model.out


def test_generate(place: Path) -> None:
    asked = ("--prompt", "the warm day", "--prompt", "a cold", "--max-new-tokens", "3")
    ended = frostline("generate", place / "model", *asked, "--json")
    assert ended.status == 0, ended.err
    generated = ended.document["generated"]
    assert [pair["prompt"] for pair in generated] == ["the warm day", "a cold"]
    assert all(pair["text"] for pair in generated)
    assert frostline("generate", place / "model", *asked, "--json").document == ended.document
    assert generated[0]["text"] in frostline("generate", place / "model", *asked).out
    assert frostline("generate", place / "model", *asked, "--temperature", "0.7").status == 0


def test_generate_refuses_a_classifier(place: Path, trained: Ended) -> None:
    ended = frostline("generate", place / "run", "--prompt", "x")
    assert ended.status == 2 and "writes no text" in ended.error


def test_merge(place: Path, trained: Ended, tmp_path: Path) -> None:
    ended = frostline("merge", place / "run", "--out", tmp_path / "merged", "--json")
    document = {"run": str(place / "run"), "out": str(tmp_path / "merged"), "dtype": "float32", "lost_share": None}
    assert (ended.status, ended.document) == (0, document)
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    rounded = frostline("merge", place / "run", "--out", tmp_path / "rounded", "--dtype", "bfloat16")
    assert "in bfloat16\n" in rounded.out and "% of the entries that training changed are rounded" in rounded.out
    again = frostline("merge", place / "run", "--out", tmp_path / "merged")
    assert again.status == 2 and "not empty" in again.error


def test_export(place: Path, trained: Ended, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(place / "model")
    apply(make_plan(model, "bot50+lora", options={"lora": {"targets": "default"}}), model)
    save_delta(model, tmp_path / "run")
    ended = frostline("export", tmp_path / "run", "--out", tmp_path / "lora", "--json")
    document = {"run": str(tmp_path / "run"), "out": str(tmp_path / "lora"), "r": 8, "alpha": 32}
    modules = [f"model.layers.{block}.self_attn.{name}_proj" for block in (2, 3) for name in "qv"]
    assert (ended.status, ended.document) == (0, {**document, "modules": modules}), ended.err
    assert {path.name for path in (tmp_path / "lora").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    again = frostline("export", tmp_path / "run", "--out", tmp_path / "lora")
    assert again.status == 2 and "not empty" in again.error
    shown = frostline("export", tmp_path / "run", "--out", tmp_path / "lora2").out
    assert "rank 8, alpha 32, 4 matrices" in " ".join(shown.split())
    refused = frostline("export", place / "run", "--out", tmp_path / "no")
    assert refused.status == 2 and "block 2 has full" in refused.error and "frostline merge" in refused.error


def test_report(place: Path, trained: Ended) -> None:
    ended = frostline("report", place, "--format", "json")
    row = ended.document["groups"][0]["rows"][0]
    assert (row["strategy"], row["seeds"], row["folders"]) == ("bot50", [7], [str(place / "run")])
    assert row["metrics"]["accuracy"]["mean"] == trained.document["metrics"]["after"]["accuracy"]
    rows = [
        line for line in frostline("report", place, "--format", "markdown").out.splitlines() if line.startswith("|")
    ]
    assert rows[-1].startswith("| bot50 |") and all(row.count("|") == rows[0].count("|") for row in rows), (
        "no line breaks"
    )
    assert "macro_f1" in frostline("report", place, "--metric", "macro_f1").out
    for option, unknown in (("--metric", "acuracy"), ("--baseline", "bot5")):
        ended = frostline("report", place, option, unknown)
        assert ended.status == 2 and f"unknown {option[2:]} '{unknown}': did you mean" in ended.error


def test_report_writes_a_page_and_prints_its_path(place: Path, trained: Ended) -> None:
    ended = frostline("report", place / "run", "--format", "html")
    assert (ended.status, ended.out) == (0, f"{place / 'run' / 'report.html'}\n")
    page = (place / "run" / "report.html").read_text()
    accuracy = trained.document["metrics"]["after"]["accuracy"]
    assert page.startswith("<!doctype html>") and f"accuracy {accuracy:.3f}" in page
    assert html.escape(trained.document["command"]) in page
    ended = frostline("report", place, "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(ended.out))
    assert (row["strategy"], float(row["accuracy"])) == ("bot50", accuracy)
    ended = frostline("report", place, "--format", "html", "--metric", "macro_f1")
    assert ended.status == 2 and "--metric: html has every metric already" in ended.error
    ended = frostline("report", place, "--format", "pdf")
    assert ended.status == 2 and "html" in ended.error


def test_demo_ends_with_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"max_eval_rows": 8}
    short = {"max_steps": 2, "per_device_train_batch_size": 4, "max_length": 32, "threads": 1, "data": few}
    strategies = ["head", {"name": "head", "label": "again", "max_steps": 3}]
    monkeypatch.setattr("frostline.run.demo.STUDY", {"strategies": strategies, "config": short, "baseline": "head"})
    ended = frostline("demo", "--out", tmp_path)
    assert ended.status == 0 and ended.out.splitlines()[-1] == str(tmp_path / "report.html")
    assert "Use " in ended.out and (tmp_path / "report.html").is_file()


@pytest.mark.slow
def test_demo_is_a_study_whose_table_report_shows_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"max_steps": 2, "per_device_train_batch_size": 4, "max_length": 32, "threads": 1}
    monkeypatch.setattr("frostline.run.demo.STUDY", {"strategies": ["bot50"], "config": short, "baseline": "bot50"})
    ended = frostline("demo", "--out", tmp_path, "--seed", "3", "--json")
    assert ended.status == 0, ended.err
    group = ended.document["groups"][0]
    assert (group["task"], group["baseline"], group["majority_share"]) == ("swapped-words", "bot50", 0.5)
    (row,) = group["rows"]
    assert (row["strategy"], row["seeds"], row["time_ratio"]["mean"]) == ("bot50", [3], 1)
    assert json.loads((Path(row["folders"][0]) / "run.json").read_text())["status"] == "finished"
    assert frostline("report", tmp_path, "--format", "json").document == ended.document


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "./absent"], "model './absent': no such folder"),
        (["plan", "MODEL", "--strategy", "loar"], "unknown strategy 'loar': did you mean 'lora'?"),
        (["plan", "MODEL", "--strategy", "bot"], "needs a percentage"),
        (["plan", "MODEL", "--strategy", "all", "--task", "rta"], "unknown task 'rta': did you mean 'rte'?"),
        (
            ["plan", "MODEL", "--strategy", "all", "per_device_train_batch_size=0"],
            "per_device_train_batch_size: it should be greater than 0",
        ),
        (["plan", "MODEL", "--strategy", "all", "bach=8"], "unknown key 'bach'"),
        (["plan", "MODEL", "optim=adam"], "optim: unknown optimizer"),
        (
            ["plan", "MODEL", "per_device_train_batch=8"],
            "did you mean 'per_device_train_batch_size'? see: frostline plan",
        ),
        (["train", "max_step=8"], "did you mean 'max_steps'? see: frostline train --settings"),
        (["plan", "MODEL"], "strategy 'auto' measures the model on rows of a task: give --task"),
        (["plan", "MODEL", "--budget", "memory=8XB"], "memory '8XB': a size is a number and a unit"),
        (["plan", "MODEL", "--budget", "time=2"], "2 is no share of full fine-tuning"),
        (["plan", "MODEL", "--budget", "speed=2"], "unknown key 'speed': known: disk, memory, time"),
        (
            ["plan", "MODEL", "--budget", "time=0.4", "--strategy", "bot50"],
            "no settings of 'bot50' fit time=0.4: use",
        ),
        (["plan", "MODEL", "--strategy", "semantic", "--set", "row=3", "--task", "TASK"], "did you mean 'rows'?"),
        (["plan", "MODEL", "--strategy", "bot50", "--set", "percent=3"], "percent: the name 'bot50' already sets it"),
        (["train", "--model", "MODEL", "--task", "TASK", "--budget", "memory=1kB", "--out", "OUT"], "no plan fits"),
        (["train", "--model", "MODEL", "--task", "rta", "--out", "OUT"], "did you mean 'rte'?"),
        (["train", "--model", "./absent", "--task", "TASK", "--out", "OUT"], "no such folder"),
        (["train", "--model", "MODEL", "--task", "TASK", "--strategy", "loar", "--out", "OUT"], "'lora'"),
        (["train", "--model", "MODEL", "--task", "TASK", "data.columns.text=txt", "--out", "OUT"], "txt"),
        (["train", "--model", "MODEL"], "task"),
        (["train", "learning_rat=1", "--model", "MODEL", "--task", "TASK"], "learning_rat"),
        (["train", "max_steps=many", "--model", "MODEL", "--task", "TASK"], "steps"),
        (["train", "one.yaml", "two.yaml"], "'two.yaml' is not key=value"),
        (["train", "absent.yaml"], "config file not found: absent.yaml"),
        (["evaluate", "MODEL"], "--task"),
        (["evaluate", "MODEL", "batch=3", "--task", "TASK"], "'batch=3': this command has the settings data.KEY=VALUE"),
        (["evaluate", "MODEL", "data.columns.text=txt", "--task", "TASK"], "txt"),
        (["evaluate", "./absent", "--task", "TASK"], "no such folder"),
        (["generate", "MODEL"], "use --prompt TEXT, or --messages FILE for a chat"),
        (["generate", "MODEL", "--messages", "absent.json"], "file of messages not found: absent.json"),
        (["generate", "MODEL", "--prompt", "x", "--base", "y"], "is no run, so it has no base: leave --base out"),
        (["evaluate", "MODEL", "--task", "TASK", "--base", "y"], "is no run, so it has no base: leave --base out"),
        (["merge", "MODEL", "--out", "OUT"], "holds no delta"),
        (
            ["merge", "MODEL", "--out", "OUT", "--dtype", "fp8"],
            "error: Invalid value for '--dtype': 'fp8' is not one of",
        ),
        (["export", "MODEL", "--out", "OUT"], "holds no delta"),
        (["study", "absent.yaml", "--out", "OUT"], "study file not found"),
        (["report", "MODEL"], "no run below"),
        (["trian"], "unknown command 'trian': did you mean 'train'?"),
        (["train", "--foo"], "--foo"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(place: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    real = {"MODEL": str(place / "model"), "TASK": str(place / "days"), "OUT": str(tmp_path / "out")}
    ended = frostline(*(real.get(argument, argument) for argument in arguments))
    assert ended.error.startswith("error: ") and message in ended.error
    assert ended.status == 2
    assert not (tmp_path / "out").exists()


def test_nan_loss_is_one_line_and_status_1(place: Path, tmp_path: Path) -> None:
    ended = train(place, "learning_rate=1e30", "max_steps=5", "--out", tmp_path / "run", "--json")
    assert ended.status == 1 and not ended.out
    assert [line for line in ended.err.splitlines() if line.startswith("error: ")] == [ended.err.splitlines()[-1]]
    assert "use a lower learning_rate" in ended.err.splitlines()[-1]


def test_an_interrupt_is_one_line_that_says_how_to_go_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("frostline.run.train", interrupted)
    ended = train(place, "--out", tmp_path / "run")
    assert ended.status == 1
    assert ended.error.startswith("interrupted: ") and str(tmp_path) in ended.error
    assert ended.error.endswith("use the same command again: nothing was saved yet")


def test_a_fault_of_frostline_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        print("printed by a library")
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("frostline.run.inspect_model", broken)
    ended = frostline("inspect", place / "model", "--json")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.splitlines() == [
        "printed by a library",
        "error: ZeroDivisionError: two lines (this is a fault of frostline; FROSTLINE_TRACEBACK=1 shows where)",
    ]
    monkeypatch.setenv("FROSTLINE_TRACEBACK", "1")
    assert "Traceback" in frostline("inspect", place / "model").err


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which needs a GPU to be raised."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "error: out of memory: use a smaller per_device_train_batch_size"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), "error: out of memory: use"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "error: out of memory: use"),
        (OSError(28, "No space left on device"), "error: [Errno 28] No space left on device"),
        (FrostlineError("said once"), "error: said once"),
    ],
)
def test_what_is_no_fault_of_frostline_is_not_called_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("frostline.run.inspect_model", broken)
    ended = frostline("inspect", place / "model")
    assert ended.status == 1
    assert ended.error.startswith(expected) and "fault" not in ended.error


def test_a_place_that_cannot_be_written_is_wrong_input(place: Path) -> None:
    ended = frostline("plan", place / "model", "--strategy", "all", "--out", place / "days" / "dev.jsonl" / "plan.yaml")
    assert ended.status == 2 and "dev.jsonl" in ended.error


def test_numbers_that_json_lacks_are_null() -> None:
    from frostline.cli.answer import Answer

    out = io.StringIO()
    with redirect_stdout(out):
        Answer({"perplexity": float("inf"), "all": [float("nan"), 1.5]}, list, as_json=True).show()
    assert json.loads(out.getvalue()) == {"perplexity": None, "all": [None, 1.5]}
