"""`auto` in a run: trials within the budget, then a run that goes on from the best of them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from frostline.checkpoints import kept_dtype, quiet_libraries
from frostline.core.errors import ConfigError, PlanError
from frostline.core.sizes import duration_text, parse_duration
from frostline.plan import FixedSchedule, keep_dropout
from frostline.processes import running
from frostline.run._choosing import PLANNED, SPENT, Chosen, situation_of, with_planned
from frostline.run._config import RunConfig
from frostline.run._judge import FEWEST_ROWS, JudgedTrainer, Watch, clock_of, hold_out
from frostline.run._setup import anatomy_of, config_for
from frostline.run._tournament import Tournament
from frostline.run._trials import DECAY, FAR, JUDGED, WARM_UP, Attempt, Terms
from frostline.run._work import Data, evaluation_to_fit, step_rows_of, workload_of
from frostline.strategies import PASSES, AutoOptions, Contenders, Option, auto, contenders, read_options, yardstick

_NO_MATTER = {"model", "task", "out", "report_to", "logging_steps", "eval_steps", "save_steps", "save_total_limit"}
"""Settings on which trials do not depend; model and task count by their content."""
Make = Callable[[RunConfig, Data, Chosen], JudgedTrainer]


def options_of(config: RunConfig) -> AutoOptions | None:
    """The options of `auto` where the run's strategy is that, else None."""
    if config.strategy != "auto":
        return None
    return AutoOptions.model_validate(read_options("auto", config.strategy_options))


def why_not_tried(config: RunConfig, rows: int) -> str | None:
    """Why a run of `auto` with a time to spend makes no trials; None where it makes some, "" where none are due.

    Args:
        config: the run's config.
        rows: its training rows.

    Raises `ConfigError` for settings that trials would have to ignore.
    """
    options = options_of(config)
    if options is None or config.budget.time is None or options.trials == 0:
        return ""
    if config.max_steps is not None:
        return "max_steps is given, so there is no time to spend"
    if config.streaming:
        return "with streaming the model is read once, and cannot be tried"
    if config.frozen_bits is not None:
        return "frozen_bits leaves no activation cache for trials"
    if rows < FEWEST_ROWS:
        return f"{rows} training rows leave none to judge by"
    if config.calibrate:
        raise ConfigError(
            "calibrate: trials time the real steps of the run, so there is nothing to calibrate: leave it out, or "
            "switch trials off with --set trials=0"
        )
    for name in ("lr_scheduler_type", "warmup_steps"):
        if name in config.model_fields_set:
            raise ConfigError(
                f"{name}: trials need a learning rate that stays the same after a warm-up and falls at the end of the "
                "run: leave it out, or switch trials off with --set trials=0 (strategy_options.trials=0)"
            )
    return None


def check_trials(config: RunConfig) -> None:
    """Check that a run makes trials, as far as its config says. Raises `ConfigError` where it makes none."""
    why = why_not_tried(config, FEWEST_ROWS)
    if why is not None:
        because = f" ({why})" if why else ""
        raise ConfigError(
            f"--figure: this run makes no trials that it could show{because}: use --strategy auto with --budget "
            "time=..., or leave --figure out"
        )


def judged(config: RunConfig, data: Data) -> Data:
    """The data with rows held out, where the run makes trials; else as it is."""
    options = options_of(config)
    if options is None or why_not_tried(config, len(data.rows)) is not None:
        return data
    return hold_out(data, config.seed, options.held_out == "eval")


def try_plans(config: RunConfig, data: Data, make: Make, console: Console) -> Chosen:
    """Make the trials of a run, or go on with them, and give what they chose.

    Args:
        config: the run's config.
        data: its rows, with rows held out.
        make: makes the trainer of a config and of what was chosen for it.
        console: where progress is shown.

    Raises `PlanError` when nothing fits the budget.
    """
    options = options_of(config)
    assert options is not None
    with quiet_libraries():
        model_config = config_for(config.model, data.task)
        anatomy = anatomy_of(config.model, data.task)
    dtype = kept_dtype(config.frozen_dtype, model_config.dtype)
    evaluation = evaluation_to_fit(config, data, anatomy, model_config)
    situation = situation_of(config, anatomy, workload_of(config, data, anatomy, model_config, dtype), evaluation)
    duration = isinstance(config.budget.time, str)
    clock = clock_of(duration)
    step_rows = step_rows_of(config)
    terms = Terms(
        share=None if duration else float(config.budget.time or 1.0),
        seconds=parse_duration(str(config.budget.time), "time") if duration else None,
        lost=options.trials,
        rate=config.learning_rate if "learning_rate" in config.model_fields_set else None,
        rows=len(data.rows),
        step_rows=step_rows,
        step_tokens=step_rows * data.mean_length(config),
        epochs=config.num_train_epochs,
    )

    def attempt(one: Attempt) -> JudgedTrainer:
        settings = _held_rate(config, one.option, one.learning_rate, FAR, 1, warm_up(one.option, terms))
        out = {"out": str(one.folder), "eval_steps": None, "save_steps": None, "report_to": (), "save_total_limit": 1}
        schedule = FixedSchedule(one.option.plan)
        trainer = make(
            config, data, Chosen(schedule, settings.model_copy(update=out), None, first_steps=one.first_steps)
        )
        trainer.clock = clock
        return trainer

    tournament = Tournament(
        terms,
        lambda: yardstick(situation, options),
        lambda share: contenders(situation, options, share),
        attempt,
        clock,
        config.folder,
        lambda line: console.print(f"note: {line}"),
        {"config": config.model_dump(mode="json", exclude=_NO_MATTER), "data": data.task.fingerprint},
        config.model_dump(mode="json"),
    )
    with quiet_libraries():
        try:
            tournament.play()
        except PlanError:
            asked = config.budget.model_copy(update={"time": None} if duration else {})
            auto(replace(situation, budget=asked), options)  # says it in the user's own numbers
            raise
    return _chosen(config, tournament, terms)


def _chosen(config: RunConfig, tournament: Tournament, terms: Terms) -> Chosen:
    """What the run does with what was found."""
    found, field, option = tournament.found, tournament.field(), tournament.winner()
    chosen = found["chosen"]
    steps, done = chosen["max_steps"], chosen["from_step"]
    settings = _held_rate(
        config, option, chosen["learning_rate"], steps, min(round(DECAY * steps), steps - done), warm_up(option, terms)
    )
    plan, lines = FixedSchedule(option.plan), list(_lines(found, field, option, terms))
    document = {
        **field.first.document(),
        **option.document(),
        **{name: getattr(settings, name) for name in SPENT},
        "budget_seconds": found["budget_seconds"],
        "clock": found["clock"],
        "tried_seconds": chosen["spent_seconds"],
        "from_step": done,
        "lines": lines,
    }
    place = config.folder / f"checkpoint-{done}"
    trained = config.folder / "trials" / chosen["name"] / place.name

    def keep_the_winner() -> None:
        if trained.is_dir() and not place.is_dir():
            place.parent.mkdir(parents=True, exist_ok=True)
            trained.replace(place)
        shutil.rmtree(config.folder / "trials", ignore_errors=True)

    running().once(keep_the_winner)
    return Chosen(
        keep_dropout(plan) if config.frozen_dropout else plan,
        settings,
        document,
        tuple(lines),
        seconds=chosen["spent_seconds"],
        trials=tuple(found["trials"].values()),
        checkpoint=place if place.is_dir() else None,
    )


def _lines(found: dict[str, Any], field: Contenders, option: Option, terms: Terms) -> Iterator[str]:
    """What was chosen, what was tried, and what would change the choice."""
    chosen, budget = found["chosen"], found["budget_seconds"]
    steps, trials = chosen["max_steps"], list(found["trials"].values())
    passes = steps * terms.step_rows / terms.rows
    rate = chosen["learning_rate"]
    yield f"chosen: {option.what}, learning rate {rate:g}, {steps} steps ({passes:.2g} passes over the rows)"
    spent = chosen["spent_seconds"]
    yield (
        f"tried: {len(trials)} trials in {duration_text(spent)}, {spent / budget:.2f} of the budget of "
        f"{duration_text(budget)}; the winner's {duration_text(_won(trials)['seconds'])} of them are not lost"
    )
    lost = [one for one in trials if one["result"] != "won" and one["curve"]]
    if lost:
        second = min(lost, key=lambda one: one["curve"][-1][2])
        yield (
            f"runner-up: {second['what']}, learning rate {second['learning_rate']:g}: held-out loss "
            f"{second['curve'][-1][2]:.3f} after {duration_text(second['curve'][-1][1])} of steps, the chosen one "
            f"{_won(trials)['curve'][-1][2]:.3f} after {duration_text(_won(trials)['curve'][-1][1])}"
        )
    over = chosen["affordable_steps"] - steps
    if over > 0:
        left = over * chosen["step_seconds"]
        yield (
            f"time left over: {duration_text(left)} ({left / budget:.2f} of the budget): more than {PASSES} passes "
            "over the rows make a model worse"
        )
    yield from (f"{label}: {line}" for label, line in field.first.lines() if label.startswith("with "))


def _won(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return next(one for one in trials if one["result"] == "won")


def warm_up(option: Option, terms: Terms) -> int:
    """Steps in which the learning rate rises: a tenth of all, at most 10."""
    steps = option.workload.num_train_epochs * terms.rows / terms.step_rows
    return min(WARM_UP, max(1, round(steps / 10)))


def _held_rate(config: RunConfig, option: Option, rate: float, steps: int, falling: int, warm: int) -> RunConfig:
    """The config with a plan's settings, at a learning rate that is held after a warm-up and falls at the end."""
    return with_planned(
        config,
        {
            **{name: getattr(option.workload, name) for name in PLANNED},
            "learning_rate": rate,
            "max_steps": steps,
            "warmup_steps": warm,
            "lr_scheduler_type": "warmup_stable_decay",
            "training": {**config.training, "lr_scheduler_kwargs": {"num_decay_steps": falling}},
        },
    )


def watch(trainer: JudgedTrainer, config: RunConfig) -> Watch:
    """What judges a run that came of trials, while its rate is held. It decides which checkpoints stay.

    Args:
        trainer: what trains.
        config: with what was chosen.
    """
    steps = config.max_steps or 0
    held = steps - config.training["lr_scheduler_kwargs"]["num_decay_steps"]
    keep, trainer.args.save_total_limit = trainer.args.save_total_limit, None
    found = Watch(trainer, [round(held * part / JUDGED) for part in range(1, JUDGED + 1)], keep)
    trainer.add_callback(found)
    return found


def fall_from(chosen: Chosen, step: int) -> Chosen:
    """What was chosen, with a learning rate that falls from a step on, in which the run was best."""
    assert chosen.choice is not None
    steps, folder = math.ceil(step / (1 - DECAY)), chosen.config.folder
    training = {**chosen.config.training, "lr_scheduler_kwargs": {"num_decay_steps": steps - step}}
    update = {"max_steps": steps, "training": training}

    def drop_later() -> None:
        for place in folder.glob("checkpoint-*"):
            if int(place.name.rpartition("-")[2]) > step:
                shutil.rmtree(place)

    running().once(drop_later)
    config, choice = chosen.config.model_copy(update=update), {**chosen.choice, **update}
    return replace(chosen, config=config, choice=choice, checkpoint=folder / f"checkpoint-{step}", lines=())


def spent_line(chosen: Chosen, seconds: float) -> str | None:
    """What of a budget was spent, where the run came of trials in the same process; seconds: those after the trials."""
    choice = chosen.choice or {}
    if "tried_seconds" not in choice or chosen.checkpoint is None:
        return None
    spent, budget = choice["tried_seconds"] + seconds, choice["budget_seconds"]
    return (
        f"time: {duration_text(spent)} of {choice['clock']} for trials, caching, training and judging, "
        f"{spent / budget:.2f} of the budget of {duration_text(budget)}"
    )
