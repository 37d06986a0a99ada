"""README and docs are true: their Python runs, their commands parse, their plans are valid, their links lead somewhere,
and the outputs in README have the shape of what the commands print (not its figures)."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer
from transformers import TrainingArguments

import made_records
from architectures import tiny
from frostline.cli.commands import root
from frostline.cli.main import main
from frostline.plan import from_text
from frostline.records import write_record
from frostline.run import demo, make_plan, read_config
from frostline.strategies import parse_name

ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
PAGES = [page for page in DOCS if page.name != "LOG.md"]
"""What is held to the present; the log keeps the commands of its day."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    return [block for marked, block in found if marked == language]


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of every `frostline` command line."""
    for block in blocks(page, ""):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*frostline (.*)", line):
                yield shlex.split(found[1], comments=True)


def outputs() -> dict[str, tuple[list[str], str]]:
    """Command -> its arguments and its output, of README's blocks that show an output."""
    found = re.findall(
        r"^<!-- output of: frostline ([^\n]*) -->\n```\n\$ (.*?)^```$", text_of(ROOT / "README.md"), re.M | re.S
    )
    shown = {}
    for command, block in found:
        typed, _, output = block.replace("\\\n", " ").partition("\n")
        assert shlex.split(typed) == ["frostline", *shlex.split(command)], (
            "the command that is shown is the one that ran"
        )
        shown[command.split()[0]] = (shlex.split(command), output)
    return shown


def labels(output: str) -> list[str]:
    """What stands first in each line: the name of a row, without figures."""
    lines = [re.split(r"  +|\d", line)[0].strip() for line in output.splitlines()]
    return [line for line in lines if line]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where README's relative paths hold, after `make demo`."""
    (tmp_path / "src").symlink_to(ROOT / "src")
    demo.write(tmp_path / "runs" / "demo" / "swapped-words")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def frostline(*arguments: str) -> str:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(arguments)
    assert status == 0, err.getvalue()
    return out.getvalue()


@pytest.mark.filterwarnings("ignore:.*pin_memory")
def test_readme_s_python_runs(place: Path) -> None:
    scope: dict[str, Any] = {}
    for source in blocks(ROOT / "README.md", "python"):
        if "pipeline(" not in source:  # needs a merged run
            exec(compile(source, "README.md", "exec", dont_inherit=True), scope)
    assert scope["trainer"].schedule is scope["schedule"]
    assert [parameter for parameter in scope["peft_model"].parameters() if parameter.requires_grad] == []
    assert (place / "learned" / "delta.safetensors").is_file()


@pytest.mark.filterwarnings("ignore:.*pin_memory")
def test_train_prints_what_readme_shows_and_merge_gives_what_its_python_reads(place: Path) -> None:
    arguments, shown = outputs()["train"]
    short = ("max_steps=4", "data.max_train_rows=64", "data.max_eval_rows=16")  # two epochs, so that the cache pays
    assert labels(frostline(*arguments, *short)) == labels(shown)
    merge = next(line for line in commands(ROOT / "README.md") if line[0] == "merge")
    frostline(*merge)
    (source,) = [source for source in blocks(ROOT / "README.md", "python") if "pipeline(" in source]
    scope: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()):
        exec(compile(source, "README.md", "exec", dont_inherit=True), scope)
    (answer,) = scope["classify"]("Lily pushed the bike shiny in the garden")
    assert set(answer) == {"label", "score"}


def test_plan_prints_what_readme_shows(place: Path) -> None:
    arguments, shown = outputs()["plan"]
    assert {"boundary", "chosen", "runner-up"} <= set(labels(shown)) <= set(labels(frostline(*arguments)))


def test_the_demo_s_table_is_the_one_that_readme_shows(tmp_path: Path) -> None:
    shown = [line.split() for line in outputs()["demo"][1].splitlines()]
    header = next(number for number, words in enumerate(shown) if words[:1] == ["strategy"])
    names = [strategy["name"] for strategy in demo.STUDY["strategies"]]
    for name in names:
        write_record(made_records.run(name, model="storyteller", task="swapped-words").record, tmp_path / name)
    printed = [line.split() for line in frostline("report", str(tmp_path)).splitlines()]
    assert shown[header] in printed
    assert [words[0] for words in shown[header + 1 : header + 1 + len(names)]] == names


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_parse(page: Path) -> None:
    group = typer.main.get_command(root)
    for arguments in commands(page):
        context = group.make_context("frostline", list(arguments))
        command: Any = group
        rest = arguments
        while hasattr(command, "get_command"):
            command, rest = command.get_command(context, rest[0]), rest[1:]
        given = command.make_context(command.name, list(rest)).params
        if given.get("strategy") and not given["strategy"].endswith(".yaml"):
            parse_name(given["strategy"])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_of_train_are_there(page: Path) -> None:
    for name, *rest in commands(page):
        settings = [word for word in rest if re.match(r"[a-z_.]+=", word) and rest[rest.index(word) - 1] != "--budget"]
        if name == "train" and settings and "--set" not in rest:
            read_config(None, settings, model="MODEL", task="rte")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_plans_are_valid(page: Path) -> None:
    for document in blocks(page, "yaml"):
        from_text(document)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text_of(page)):
        linked = page if not target else (page.parent / target).resolve()
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), anchor


def test_the_index_names_every_document() -> None:
    index = text_of(ROOT / "docs" / "README.md")
    for page in (*ROOT.glob("docs/*.md"), *ROOT.glob("docs/*/README.md")):
        name = str(page.relative_to(ROOT / "docs"))
        assert name == "README.md" or f"]({name})" in index, name


def test_sections_that_methods_md_is_cited_for_are_there() -> None:
    there = set(re.findall(r"^## (\d+)\. ", text_of(ROOT / "docs" / "methods.md"), re.MULTILINE))
    places = [*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("docs/**/*.md")]
    cited = {n for path in places for n in re.findall(r"methods\.md[\]),]*\s*(?:,?\s*section)?\s+(\d+)", text_of(path))}
    assert cited and cited <= there


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "docs"], ids=name_of)
def test_the_docs_python_runs(page: Path, tmp_path: Path) -> None:
    for source in blocks(page, "python"):
        model = tiny("llama")
        rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}]
        args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
        scope: dict[str, Any] = {"model": model, "rows": rows, "args": args, "plan": make_plan(model, "bot50")}
        exec(compile(source, page.name, "exec", dont_inherit=True), scope)
