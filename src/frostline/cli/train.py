"""`frostline train`: one run, recorded."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli.answer import Answer, Json, StrategyOptions, progress_console
from frostline.core.errors import ConfigError, UserError
from frostline.core.launched import rank, several

if TYPE_CHECKING:
    from rich.console import RenderableType

    from frostline.records import DataFacts, Metrics, RunRecord
    from frostline.run import RunConfig


def _list(asked: bool) -> None:
    if asked:
        from frostline.core.settings import described
        from frostline.run import RunConfig

        for name, default, text in described(RunConfig):
            print(f"{name}={default}\n    {text}")
        raise typer.Exit


def command(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG.yaml] [KEY=VALUE]...",
            help="A run's config, and settings that replace its own: learning_rate=1e-4 max_steps=200 "
            "per_device_train_batch_size=16 data.max_train_rows=500 ...",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="A hub id or a folder.")] = None,
    task: Annotated[
        str | None, typer.Option(help="rte, cb, qnli, webnlg, ..., a file, a folder or a hub data set.")
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="auto, semantic, bot50, lora, bot50+lora, ..., or a plan file.", show_default="auto"),
    ] = None,
    options: StrategyOptions = None,
    budget: Annotated[
        str | None, typer.Option(help="What training may use: memory=8GB,time=0.5,disk=20GB (for auto).")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="The run's folder.", show_default="runs/<model>-<task>-<strategy>-<seed>")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all that is drawn at random.", show_default="42")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the folder's last checkpoint.")] = False,
    figure: Annotated[
        Path | None, typer.Option(help="Draw the trials of auto in this file: .png, .pdf or .svg.")
    ] = None,
    as_json: Json = False,
    _: Annotated[
        bool, typer.Option("--settings", is_eager=True, callback=_list, help="List all settings and exit.")
    ] = False,
) -> Answer:
    """Train what a strategy says, and record quality and cost."""
    path, overrides = split_settings(settings or [])

    from frostline.core.figures import check_format
    from frostline.processes import ending
    from frostline.report import save_trials
    from frostline.run import check_trials, how_to_go_on, read_config, train
    from frostline.strategies import Budget

    def config_of_run() -> RunConfig:
        config = read_config(
            path,
            [*overrides, *_strategy_options(options or [])],
            model=model,
            task=task,
            strategy=strategy,
            budget=None if budget is None else Budget.parse(budget).model_dump(exclude_none=True),
            out=out,
            seed=seed,
        )
        if figure is not None:
            check_format(figure)
            check_trials(config)
        return config

    with ending():
        config = _read(config_of_run)
        try:
            record = train(config, resume=resume, console=progress_console())
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted: {config.folder}: use {how_to_go_on(config.folder)}") from None
    if figure is not None and record.trials and rank() == 0:
        save_trials(record, figure)
    document = {"folder": str(config.folder), **record.model_dump(mode="json")}
    return Answer(document, lambda: _view(record, config.folder), as_json, silent=rank() > 0)


def _read(config: Callable[[], RunConfig]) -> RunConfig:
    try:
        return config()
    except UserError as error:
        if not several():
            raise
        from frostline.processes import refuse

        refuse(error)


def _strategy_options(options: Sequence[str]) -> list[str]:
    for option in options:
        if not _is_setting(option):
            raise ConfigError(f"--set: '{option}' is not key=value: use for example --set rows=64")
    return [f"strategy_options.{option}" for option in options]


def split_settings(settings: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The config file, if one comes first, and the `key=value` settings. Raises `ConfigError` for anything else."""
    first = [Path(setting) for setting in settings[:1] if not _is_setting(setting)]
    overrides = list(settings[len(first) :])
    for setting in overrides:
        if not _is_setting(setting):
            raise ConfigError(
                f"'{setting}' is not key=value: use key=value settings (one config file may come before them)"
            )
    return (first[0] if first else None), overrides


def _is_setting(text: str) -> bool:
    return re.match(r"[A-Za-z_][\w.]*=", text) is not None


def _view(record: RunRecord, folder: Path) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    from frostline.plan import Plan, strip
    from frostline.report import bytes_text, count_text, ratio_text, seconds_text, share_text

    predicted, measured = record.predicted, record.measured
    cost = Table("cost", "measured", "predicted", "share of full fine-tuning (predicted)", box=None, pad_edge=False)
    if measured is not None:
        steps = f"{seconds_text(measured.seconds_per_step)} per step, {measured.steps} steps"
        if measured.resumed_at_step:
            steps += f", from step {measured.resumed_at_step} on"
        cost.add_row("training time", f"{seconds_text(measured.train_seconds)} ({steps})", "", "")
        if measured.caching_peak_memory_bytes is not None:
            peak = bytes_text(measured.caching_peak_memory_bytes)
            cost.add_row("caching pass", f"{seconds_text(measured.caching_seconds)} of it, peak memory {peak}", "", "")
        if measured.seconds:
            longest = sorted(measured.seconds, key=lambda phase: -measured.seconds[phase])[:3]
            phases = ", ".join(f"{phase} {seconds_text(measured.seconds[phase])}" for phase in longest)
            cost.add_row("whole run", f"{seconds_text(sum(measured.seconds.values()))} ({phases})", "", "")
        cost.add_row(
            "peak memory",
            bytes_text(measured.peak_memory_bytes),
            bytes_text(predicted.get("peak_memory_bytes")),
            ratio_text(predicted.get("memory_ratio")),
        )
    cost.add_row("FLOPs per step", "", "", ratio_text(predicted.get("flops_ratio")))
    share = share_text(record.trainable_parameters / record.total_parameters)
    trained = f"{count_text(record.trainable_parameters)} of {count_text(record.total_parameters)} parameters"
    parts: list[RenderableType] = [strip(Plan.read(record.plan)), Text(f"trained {trained} ({share})"), Text()]
    if record.strip:
        parts = [*map(Text, record.strip), Text("what trained when, and at the end:"), *parts]
    if record.metrics is not None:
        parts += [_quality(record.metrics.before, record.metrics.after, record.data), Text()]
    lines = [*(record.chosen or {}).get("lines", ()), *(line for line in record.notices if line.startswith("time: "))]
    if lines:
        chosen = Table.grid(padding=(0, 2))
        for label, _, line in (line.partition(": ") for line in lines):
            chosen.add_row(label, Text(line))
        parts += [chosen, Text()]
    return [*parts, cost, Text(), Text(f"recorded in {folder}; its README.md says how to load the model")]


def _quality(before: Metrics, after: Metrics, data: DataFacts) -> RenderableType:
    from rich.table import Table

    from frostline.report import count_text, mean_text

    table = Table("quality", "before", "after", box=None, pad_edge=False)
    for name, value in after.items():
        table.add_row(name, mean_text(before.get(name)), mean_text(value))
    if data.majority_share is not None:
        table.add_row("majority class alone", mean_text(data.majority_share), "")
    table.add_row("rows evaluated", "", count_text(data.eval_rows))
    return table
