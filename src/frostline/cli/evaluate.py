"""`frostline evaluate`: how good a run's model, or a pretrained one, is at a task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from frostline.cli.answer import Answer, Json
from frostline.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType


def command(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run's folder, a hub id or a model's folder.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="How the task's rows are read, data.columns.text=premise, and how texts are generated, "
            "generation.length_penalty=0.8.",
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="The task; for a run, its own by default.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows per forward pass.", show_default="32")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens; longer rows are cut.", show_default="the run's own, or 128")
    ] = None,
    generate_rows: Annotated[
        int | None, typer.Option(min=0, help="Prompts to generate for; the task's own number by default.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens to generate at most.", show_default="the run's own, or 64")
    ] = None,
    decoding: Annotated[
        str | None,
        typer.Option(
            metavar="greedy|llm-adapters", help="The preset by which texts are generated.", show_default="greedy"
        ),
    ] = None,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Texts kept in a beam search.")] = None,
    do_sample: Annotated[bool | None, typer.Option("--do-sample", help="Draw each token.", show_default=False)] = None,
    temperature: Annotated[float | None, typer.Option(help="Of sampling.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Of sampling: the likeliest tokens of this much mass.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Of sampling: this many of the likeliest tokens.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="On tokens that are there already.")] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Write every case here: prompt, text, marks; JSON lines.")
    ] = None,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"] | None,
        typer.Option(
            help="auto: bfloat16 where the hardware has it.", show_default="the run's own, or auto", case_sensitive=True
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of a head that the model lacks.", show_default="42")] = None,
    as_json: Json = False,
) -> Answer:
    """How good a run's model, or a pretrained one, is at a task."""
    if answers is not None and answers.is_dir():
        raise ConfigError(f"answers: {answers} is a folder, a file is wanted")
    settings = list(settings or [])
    for setting in settings:
        if not setting.startswith(("data.", "generation.")):
            raise ConfigError(
                f"'{setting}': a setting here is data.key=value or generation.key=value, such as "
                "data.columns.text=premise"
            )
    flags = {
        "preset": decoding,
        "num_beams": num_beams,
        "do_sample": do_sample,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
    }
    settings += [f"generation.{name}={json.dumps(value)}" for name, value in flags.items() if value is not None]

    from frostline.core.files import write_text
    from frostline.run import evaluate_target, read_config

    given = read_config(None, settings, model=target, task=task or "")
    evaluation = evaluate_target(
        target,
        task,
        options=given.data if "data" in given.model_fields_set else None,
        batch_size=batch,
        max_length=max_length,
        generate_rows=generate_rows,
        max_new_tokens=max_new_tokens,
        decoding=given.generation if "generation" in given.model_fields_set else None,
        precision=precision,
        seed=seed,
    )
    if answers is not None:
        write_text(answers, evaluation.json_lines())
    document = {
        "target": target,
        "task": evaluation.task,
        "rows": evaluation.rows,
        "answers": len(evaluation.predictions),
        "metrics": evaluation.metrics,
    }
    return Answer(document, lambda: _view(evaluation.metrics), as_json)


def _view(metrics: dict[str, Any]) -> list[RenderableType]:
    from rich.table import Table

    from frostline.report import mean_text

    table = Table.grid(padding=(0, 2))
    for name, value in metrics.items():
        table.add_row(name, mean_text(value))
    return [table]
