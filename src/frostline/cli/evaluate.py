"""`frostline evaluate`: how good a run's model, or a pretrained one, is at a task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frostline.cli.answer import Answer, Base, Json, progress_console
from frostline.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType


def command(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run's folder, a hub id or a model's folder.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="How the task's rows are read (data.columns.text=premise) and how texts are generated "
            "(generation.length_penalty=0.8).",
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="The task; by default the run's own.")] = None,
    base: Base = None,
    per_device_eval_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows of a forward pass.", show_default="the run's own, or as many as fit")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a row; longer rows are truncated.", show_default="the run's own, or 128"),
    ] = None,
    generate_rows: Annotated[
        int | None, typer.Option(min=0, help="Prompts to generate for; by default the task's own number.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="The most tokens to generate.", show_default="the run's own, or 64")
    ] = None,
    decoding: Annotated[
        str | None,
        typer.Option(metavar="greedy|llm-adapters", help="How texts are generated.", show_default="greedy"),
    ] = None,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Beams of a beam search.")] = None,
    do_sample: Annotated[
        bool | None, typer.Option("--do-sample", help="Draw each token at random.", show_default=False)
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Temperature of sampling.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the most likely tokens that have this probability together.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from this many of the most likely tokens.")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Penalty on tokens that were generated already.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Write every case to this file, as JSON lines: prompt, text, marks.")
    ] = None,
    bf16: Annotated[
        bool | None,
        typer.Option(
            "--bf16/--no-bf16", help="Compute in bfloat16.", show_default="the run's own, or where the hardware has it"
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of a head that the model lacks.", show_default="42")
    ] = None,
    as_json: Json = False,
) -> Answer:
    """Measure how good a run's model, or a pretrained one, is at a task."""
    if answers is not None and answers.is_dir():
        raise ConfigError(f"--answers: {answers} is a folder: use the path of a file")
    settings = list(settings or [])
    for setting in settings:
        if not setting.startswith(("data.", "generation.")):
            raise ConfigError(
                f"'{setting}': this command has the settings data.KEY=VALUE and generation.KEY=VALUE only: use for "
                "example data.columns.text=premise"
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
        base=base,
        options=given.data if "data" in given.model_fields_set else None,
        per_device_eval_batch_size=per_device_eval_batch_size,
        max_length=max_length,
        generate_rows=generate_rows,
        max_new_tokens=max_new_tokens,
        decoding=given.generation if "generation" in given.model_fields_set else None,
        bf16=bf16,
        seed=seed,
    )
    if answers is not None:
        write_text(answers, evaluation.json_lines())
    document = {
        "target": target,
        "task": evaluation.task,
        "rows": evaluation.rows,
        "answers": len(evaluation.predictions),
        "labels": list(evaluation.labels),
        "metrics": evaluation.metrics,
        "notices": list(evaluation.notices),
    }
    for notice in evaluation.notices:
        progress_console().print(f"note: {notice}")
    return Answer(document, lambda: _view(evaluation.metrics), as_json)


def _view(metrics: dict[str, Any]) -> list[RenderableType]:
    from rich.table import Table

    from frostline.report import mean_text

    table = Table.grid(padding=(0, 2))
    for name, value in metrics.items():
        table.add_row(name, mean_text(value))
    return [table]
