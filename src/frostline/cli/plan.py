"""`frostline plan`: what a strategy would train on a model, and what that is predicted to cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from frostline.cli.answer import Answer, Json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from frostline.run import PlannedModel

WORKLOAD = "Workload that the cost is predicted for"


def command(
    model: Annotated[str, typer.Argument(help="A hub id or a folder; a config.json alone is enough.")],
    strategy: Annotated[
        str, typer.Option(help="auto, semantic, bot50, lora, bot50+lora, ..., a plan file: see docs/strategies.")
    ] = "auto",
    task: Annotated[
        str | None, typer.Option(help="With the head that this task needs; what strategies measure the model on.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="What training may take: memory=8GB,time=0.5,disk=20GB (auto plans for it).")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="key=value", help="An option of the strategy: rows=64.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Time a small part of the model here, to predict seconds.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the plan here, as .yaml or .json.")] = None,
    seed: Annotated[int, typer.Option(help="Of what the strategy draws at random.")] = 42,
    batch: Annotated[int, typer.Option(min=1, help="Rows per batch, on one device.", rich_help_panel=WORKLOAD)] = 32,
    devices: Annotated[int, typer.Option(min=1, help="That share the model (FSDP).", rich_help_panel=WORKLOAD)] = 1,
    length: Annotated[int, typer.Option(min=1, help="Tokens per row.", rich_help_panel=WORKLOAD)] = 128,
    epochs: Annotated[float, typer.Option(min=0, help="Passes over the rows.", rich_help_panel=WORKLOAD)] = 3.0,
    rows: Annotated[int, typer.Option(min=1, help="Training rows.", rich_help_panel=WORKLOAD)] = 1000,
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="What is computed in.", rich_help_panel=WORKLOAD)
    ] = "float32",
    optimizer: Annotated[
        Literal["adamw", "sgd", "flora"], typer.Option(help="Whose state counts.", rich_help_panel=WORKLOAD)
    ] = "adamw",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Recompute activations.", rich_help_panel=WORKLOAD)
    ] = False,
    activation_cache: Annotated[
        bool, typer.Option("--activation-cache", help="The frozen bottom runs once.", rich_help_panel=WORKLOAD)
    ] = False,
    stored_share: Annotated[
        float, typer.Option(min=0, max=1, help="Rows that the store has already.", rich_help_panel=WORKLOAD)
    ] = 0.0,
    loss_positions: Annotated[
        bool, typer.Option("--loss-positions", help="Compute what the loss reads, no more.", rich_help_panel=WORKLOAD)
    ] = False,
    label_share: Annotated[
        float, typer.Option(min=0, max=1, help="Tokens that carry a label.", rich_help_panel=WORKLOAD)
    ] = 1.0,
    as_json: Json = False,
) -> Answer:
    """What a strategy would train on a model, and what that is predicted to cost."""
    from frostline.core.errors import ConfigError
    from frostline.core.settings import lay_over
    from frostline.cost import Workload
    from frostline.plan import save_plan
    from frostline.run import plan_model
    from frostline.strategies import Budget

    if epochs <= 0:
        raise ConfigError(f"--epochs is more than 0 (given: {epochs:g})")
    if label_share <= 0:
        raise ConfigError(f"--label-share is more than 0 and at most 1 (given: {label_share:g})")
    workload = Workload(
        rows=rows,
        length=length,
        batch=batch,
        devices=devices,
        epochs=epochs,
        dtype=dtype,
        optimizer=optimizer,
        checkpointing=checkpointing,
        activation_cache=activation_cache,
        stored_share=stored_share,
        loss_positions=loss_positions,
        label_share=label_share,
    )
    given: dict[str, Any] = {}
    lay_over(given, options or ())
    planned = plan_model(
        model,
        strategy,
        task=task,
        workload=workload,
        options=given,
        budget=None if budget is None else Budget.parse(budget),
        calibrated=calibrate,
        seed=seed,
    )
    if out is not None:
        save_plan(planned.plan, out)
    return Answer(planned.document(), lambda: _view(planned, out), as_json)


def _view(planned: PlannedModel, out: Path | None) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    from frostline.cost import Workload, cache_estimate
    from frostline.plan import strip
    from frostline.report import bytes_text, count_text, ratio_text, seconds_text, share_text

    document = planned.document()
    predicted, assumed = document["predicted"], document["assumes"]
    trained, total = document["trainable_parameters"], document["total_parameters"]
    facts = Table.grid(padding=(0, 2))
    facts.add_row("boundary", f"block {planned.plan.boundary} of {len(planned.plan.blocks)}: below it no backward runs")
    facts.add_row("trained", f"{count_text(trained)} of {count_text(total)} parameters ({share_text(trained / total)})")
    facts.add_row(
        "FLOPs",
        f"{ratio_text(predicted['flops_ratio'])} of full fine-tuning per step, "
        f"{ratio_text(predicted['run_flops_ratio'])} for the whole run",
    )
    workload = Workload.model_validate(assumed)
    facts.add_row("activation cache", str(cache_estimate(planned.plan, planned.anatomy, workload)))
    if predicted["run_seconds"] is not None:
        facts.add_row(
            "time",
            f"{seconds_text(predicted['run_seconds'])}, {ratio_text(predicted['time_ratio'])} of full fine-tuning",
        )
    facts.add_row(
        "peak memory",
        f"{bytes_text(predicted['peak_memory_bytes'])}, {ratio_text(_memory_share(planned))} of full fine-tuning",
    )
    if planned.choice is not None:
        for label, line in planned.choice.lines():
            facts.add_row(label, line)
    facts.add_row("assumed", ", ".join(f"{key} {value}" for key, value in assumed.items()))
    parts: list[RenderableType] = [strip(planned.plan), facts]
    parts += [Text(f"note: {notice}", style="yellow") for notice in planned.notices]
    if out is not None:
        parts.append(Text(f"written to {out}"))
    return parts


def _memory_share(planned: PlannedModel) -> float:
    """Of full fine-tuning with the settings as they were asked for."""
    return planned.prediction.memory_ratio if planned.choice is None else planned.choice.memory_share
