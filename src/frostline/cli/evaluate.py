"""`frostline evaluate`: how good a run's model, or a pretrained one, is at a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from frostline.cli.answer import Answer, Json
from frostline.core.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType


def command(
    target: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run's folder, a hub id or a model's folder.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[data.key=value]...", help="How the task's rows are read: data.columns.text=premise ..."
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
    for setting in settings or []:
        if not setting.startswith("data."):
            raise UserError(f"'{setting}': a setting here is data.key=value, such as data.columns.text=premise")

    from frostline.run import evaluate_target, read_config

    options = read_config(None, settings, model=target, task=task or "").data if settings else None
    evaluation = evaluate_target(
        target,
        task,
        options=options,
        batch_size=batch,
        max_length=max_length,
        generate_rows=generate_rows,
        max_new_tokens=max_new_tokens,
        precision=precision,
        seed=seed,
    )
    document = {"target": target, "task": evaluation.task, "rows": evaluation.rows, "metrics": evaluation.metrics}
    return Answer(document, lambda: _view(evaluation.metrics), as_json)


def _view(metrics: dict[str, Any]) -> list[RenderableType]:
    from rich.table import Table

    from frostline.report import mean_text

    table = Table.grid(padding=(0, 2))
    for name, value in metrics.items():
        table.add_row(name, mean_text(value))
    return [table]
