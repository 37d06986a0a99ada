"""`frostline plan`: what a strategy would train on a model, and what that is predicted to cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frostline.cli.answer import Answer, Json, StrategyOptions

if TYPE_CHECKING:
    from rich.console import RenderableType

    from frostline.cost import Workload
    from frostline.run import PlannedModel


def _list(asked: bool) -> None:
    if asked:
        from frostline.core.settings import described
        from frostline.cost import Workload

        for name, default, text in described(Workload):
            if name != "devices":
                print(f"{name}={DEFAULTS.get(name, default)}\n    {text}")
        raise typer.Exit


SETTINGS = "frostline plan --settings"
DEFAULTS = {"num_train_epochs": 3.0}
"""Where a plan assumes other work than `Workload` does: a run's default."""


def command(
    model: Annotated[str, typer.Argument(help="A hub id or a folder; a config.json alone is enough.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="The work that the cost is predicted for: per_device_train_batch_size=16 length=256 bf16=true ...",
        ),
    ] = None,
    strategy: Annotated[
        str, typer.Option(help="auto, semantic, bot50, lora, bot50+lora, ... (see docs/strategies), or a plan file.")
    ] = "auto",
    options: StrategyOptions = None,
    task: Annotated[
        str | None, typer.Option(help="The task: it decides the head, and strategies measure the model on it.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="What training may use: memory=8GB,time=0.5,disk=20GB (for auto).")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Time a small part of the model here, to predict seconds.")
    ] = False,
    devices: Annotated[int, typer.Option(min=1, help="Devices that share the model (FSDP).")] = 1,
    out: Annotated[Path | None, typer.Option(help="Write the plan to this file, .yaml or .json.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of what the strategy draws at random.")] = 42,
    as_json: Json = False,
    _: Annotated[
        bool, typer.Option("--settings", is_eager=True, callback=_list, help="List all settings and exit.")
    ] = False,
) -> Answer:
    """Show what a strategy would train on a model, and what that is predicted to cost."""
    from frostline.core.settings import lay_over
    from frostline.plan import save_plan
    from frostline.run import plan_model
    from frostline.strategies import Budget

    given: dict[str, Any] = {}
    lay_over(given, options or ())
    planned = plan_model(
        model,
        strategy,
        task=task,
        workload=_workload(settings or [], devices),
        options=given,
        budget=None if budget is None else Budget.parse(budget),
        calibrated=calibrate,
        seed=seed,
    )
    if out is not None:
        save_plan(planned.plan, out)
    return Answer(planned.document(), lambda: _view(planned, out), as_json)


def _workload(settings: list[str], devices: int) -> Workload:
    """The workload that `key=value` settings describe. Raises `ConfigError` with the key that is wrong."""
    from pydantic import ValidationError

    from frostline.core.errors import ConfigError
    from frostline.core.settings import first_error, lay_over, unknown_key
    from frostline.cost import Workload

    given: dict[str, Any] = {}
    lay_over(given, settings)
    known = set(Workload.model_fields) - {"devices"}
    for key in given:
        if key not in known:
            raise ConfigError(unknown_key(key, known, SETTINGS))
    try:
        return Workload.model_validate({**DEFAULTS, **given, "devices": devices})
    except ValidationError as error:
        raise ConfigError(first_error(error)) from None


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
    facts.add_row(
        "boundary", f"block {planned.plan.boundary} of {len(planned.plan.blocks)}: no backward pass runs below it"
    )
    facts.add_row("trained", f"{count_text(trained)} of {count_text(total)} parameters ({share_text(trained / total)})")
    facts.add_row(
        "FLOPs",
        f"{ratio_text(predicted['flops_ratio'])} of full fine-tuning per step, "
        f"{ratio_text(predicted['run_flops_ratio'])} for the whole run",
    )
    workload = Workload.model_validate(assumed)
    cache = str(cache_estimate(planned.plan, planned.anatomy, workload))
    if planned.moves:
        cache = "the states lie at the lowest boundary that is still to come"
    if not workload.activation_cache:
        cache += " (not counted in the other lines: they are with activation_cache=false)"
    facts.add_row("activation cache", cache)
    if predicted["run_seconds"] is not None:
        facts.add_row(
            "time",
            f"{seconds_text(predicted['run_seconds'])}, {ratio_text(predicted['time_ratio'])} of full fine-tuning",
        )
    facts.add_row(
        "peak memory",
        f"{bytes_text(predicted['peak_memory_bytes'])}, {ratio_text(_memory_share(planned))} of full fine-tuning",
    )
    rows = planned.evaluation.rows
    facts.add_row(
        "evaluation", f"{bytes_text(planned.evaluation_bytes)} in batches of {rows}, without texts that it generates"
    )
    if planned.choice is not None:
        for label, line in planned.choice.lines():
            facts.add_row(label, line)
    facts.add_row("assumes", ", ".join(f"{key}={_text(value)}" for key, value in assumed.items()))
    parts: list[RenderableType] = [strip(planned.plan), facts]
    parts += [Text(f"note: {notice}", style="yellow") for notice in planned.notices]
    if out is not None:
        parts.append(Text(f"written to {out}"))
    return parts


def _memory_share(planned: PlannedModel) -> float:
    """The share of what full fine-tuning needs with the settings as they were asked for."""
    return planned.prediction.memory_ratio if planned.choice is None else planned.choice.memory_share


def _text(value: Any) -> str:
    """A value as it is written in a setting."""
    if isinstance(value, dict):
        return ",".join(f"{name}={_text(one)}" for name, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value).strip('"')
