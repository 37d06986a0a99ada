"""The record of one run: what was asked, what was done, what it cost and how good the model became.

It is one JSON file, `run.json`, in the run's folder. It is written when the run starts (status `running`) and again
when it ends. It is never half-written.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from frostline.core.errors import CheckpointError
from frostline.core.files import read_json, write_text
from frostline.core.places import Places, found_places

RECORD_FILE = "run.json"

Metrics = dict[str, float]
_NUMBERS = ("flops_ratio", "memory_ratio", "time_ratio", "peak_memory_bytes")
"""How the names of the predicted figures end that are shown."""


class _Data(BaseModel):
    # JSON knows no NaN: one is written as the string "NaN", which reads back as the number.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class ModelFacts(_Data):
    """Which model was trained.

    `fingerprint` is over every tensor of the base (name, shape, dtype, bytes). `kind` is `encoder`, `decoder` or
    `encoder-decoder`.
    """

    name: str
    model_class: str
    model_type: str
    dtype: str
    blocks: int
    fingerprint: str
    kind: str = ""


class DataFacts(_Data):
    """Which data.

    `labels` are those of a task that has labels; other tasks have none. `fingerprint` is over the content and order of
    the examples of both splits. `rows` says what the rows are: `texts`, `pairs` of
    them, `chats`, or `questions` of which some have no answer.
    """

    task: str
    kind: str
    source: str
    train_rows: int
    eval_rows: int
    truncated_rows: int
    mean_length: float
    metric: str
    majority_share: float | None
    fingerprint: str
    labels: tuple[str, ...] = ()
    rows: str = "texts"


class Measured(_Data):
    """What the run cost: times in seconds, on the machine named in `versions`; memory in bytes.

    A run that was resumed counts the time of its last process alone, from `resumed_at_step` on.

    Attributes:
        train_seconds: the caching pass and all steps together.
        seconds_per_step: the median over the steps after the first.
        caching_seconds: the part of `train_seconds` that the decision on the activation cache and the caching pass
            needed (0 with `activation_cache: off`).
        peak_memory_bytes: the peak while the steps ran (FSDP2: without the checks before them, for which each process
            has the whole model). On a CPU: of private anonymous memory, above that before the
            model was loaded; on CUDA: of the allocator.
        steps: optimizer steps.
        engine: how processes trained together: `DDP`, where each had the whole model, or `FSDP2`, where they shared it.
        processes: how many trained together. Memory is that of the largest, times are those of the first.
        tokens_per_second: tokens of training batches of all processes, padding included.
        cpu_seconds_per_step: the median processor time of all threads (none on an accelerator). On a machine that
            others use too it says more than `seconds_per_step`.
        resumed_at_step: the step from which a resumed run went on; 0 for others.
        caching_peak_memory_bytes: the peak of the caching pass.
        run_peak_memory_bytes: the peak of the whole run, above the memory before it: of reading the data, loading, the
            caching pass, steps, evaluation, generation and saving.
        selection_seconds: the time until the strategy had chosen its plan: signals, trials (the winner's too, from
            which the run goes on), steps of a warm-up. It is not part of `train_seconds`.
        seconds: where the time went, by phase: `reading` the rows, `tokenizing` them, `trials`, `loading` the model
            and deciding on the activation cache, `caching`, `training`, `saving`, `evaluation`.
    """

    train_seconds: float
    seconds_per_step: float | None
    caching_seconds: float
    peak_memory_bytes: int
    steps: int
    engine: Literal["one process", "DDP", "FSDP2"] = "one process"
    processes: int = 1
    tokens_per_second: float | None = None
    cpu_seconds_per_step: float | None = None
    resumed_at_step: int = 0
    caching_peak_memory_bytes: int | None = None
    run_peak_memory_bytes: int | None = None
    selection_seconds: float = 0.0
    seconds: dict[str, float] = {}

    @property
    def was_resumed(self) -> bool:
        """Whether another process trained before, whose time is not known; a process goes on from its own trials."""
        return self.resumed_at_step > 0 and "trials" not in self.seconds


class RunMetrics(_Data):
    """Quality before the first step and after the last, by metric.

    `history` is the trainer's log. In each entry `seconds` is how much of `train_seconds` had gone by.
    """

    before: Metrics
    after: Metrics
    history: tuple[dict[str, float], ...] = ()


class RunRecord(_Data):
    """Everything about one run. The keys are stable; `version` grows when they change.

    Attributes:
        config: the run's settings.
        command: the command line that makes this run.
        chosen: what a planner chose within the run's budget, and its alternatives.
        trials: the trials that `auto` made to choose.
        signals: what the strategy measured of each block, as `frostline probe --json` prints it.
        plan: the last plan.
        changes: the changes of the plan while training: the step before which each was made, and what differs.
        strip: what trained when, where the plan changed: a line for each part of the model, a column for some steps.
        predicted: the cost of all plans together.
        split: for a training that was split between a server and clients: what each of them sent and needed.
        routers: for each block whose feed-forward is a mixture of experts: the `shares` of all tokens that the experts
            got in training, and the mean `balance_loss` (without its weight; 1 when all experts get as many tokens),
            since the run was last resumed.
        notices: what else a reader has to know, as lines.
        places: for each path in `config`, where it was: absolute, and relative to the run's folder.
    """

    version: Literal[1] = 1
    status: Literal["running", "finished", "failed"]
    started: str
    finished: str | None = None
    error: str | None = None
    config: dict[str, Any]
    command: str = ""
    chosen: dict[str, Any] | None = None
    trials: tuple[dict[str, Any], ...] = ()
    signals: dict[str, Any] | None = None
    plan: dict[str, Any]
    changes: tuple[dict[str, Any], ...] = ()
    strip: tuple[str, ...] = ()
    model: ModelFacts
    data: DataFacts
    seed: int
    versions: dict[str, str]
    trainable_parameters: int = Field(ge=0)
    total_parameters: int = Field(gt=0)
    predicted: dict[str, Any]
    measured: Measured | None = None
    split: dict[str, Any] | None = None
    routers: dict[str, dict[str, Any]] | None = None
    metrics: RunMetrics | None = None
    notices: tuple[str, ...] = ()
    places: dict[str, Places] = {}

    @field_validator("predicted")
    @classmethod
    def _holds_numbers(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, number in value.items():
            plain = isinstance(number, int | float) and not isinstance(number, bool)
            if key.endswith(_NUMBERS) and not (plain or number is None):
                raise ValueError(f"{key} must be a number or null")
        return value

    def found(self, path: str, folder: Path) -> str:
        """Where a path of the run's config is now, seen from anywhere; `folder` is where the run is now."""
        return next(iter(found_places(self.places.get(path, ()), folder)), path)


def write_record(record: RunRecord, folder: Path) -> None:
    """Write `run.json` in `folder`, atomically."""
    write_text(folder / RECORD_FILE, record.model_dump_json(indent=2) + "\n")


def read_record(folder: Path) -> RunRecord:
    """The record in `folder`. Raises `CheckpointError` where there is none, or the file is not a record."""
    path = folder / RECORD_FILE if folder.is_dir() else folder
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no {RECORD_FILE}, so it is not a run: use the folder of a run (its `out`)"
        )
    try:
        return RunRecord.model_validate(read_json(path, "run record"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(piece) for piece in first["loc"])
        raise CheckpointError(f"{path}: not a run record of version 1: {place}: {first['msg']}") from None


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()
