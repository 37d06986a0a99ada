"""The settings of a study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, field_validator, model_validator

from frostline.core.errors import ConfigError
from frostline.core.places import portable, portable_name
from frostline.core.settings import Options, first_error, lay_over, read_mapping


class StudyStrategy(BaseModel):
    """One strategy of a study. Every further key is a setting of its runs, in place of the study's `config`.

    `label` is the name of its row and folder; by default the strategy's name, or the name of its plan file. `seeds` are
    its own seeds, in place of the study's.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(min_length=1)
    label: str = Field("", pattern=r"^[\w.+-]*$")
    seeds: tuple[NonNegativeInt, ...] | None = Field(None, min_length=1)

    @field_validator("seeds")
    @classmethod
    def _no_twins(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        _refuse_twins(value or (0,))
        return value

    @field_validator("label")
    @classmethod
    def _names_a_folder(cls, value: str) -> str:
        if value and not portable(value):
            raise ValueError(f"'{value[:60]}' cannot be the name of a folder on every system: use another label")
        return value

    @property
    def row(self) -> str:
        """The name of its row and folder."""
        return self.label or portable_name(Path(self.name).stem)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of its runs that differ from the study's."""
        return dict(self.model_extra or {})


class StudyConfig(Options):
    """A grid of runs.

    Attributes:
        models: hub ids or folders.
        tasks: tasks, as in a run's `task`.
        strategies: names, plan files, or mappings with `name`, `label` and settings of their own.
        seeds: every model, task and strategy is run once with each seed; a strategy may have `seeds` of its own.
        config: settings that all runs share, as in a run's config.
        baseline: the label of the strategy that the others are compared with; null: none.
    """

    models: tuple[str, ...] = Field(min_length=1)
    tasks: tuple[str, ...] = Field(min_length=1)
    strategies: tuple[StudyStrategy, ...] = Field(min_length=1)
    seeds: tuple[NonNegativeInt, ...] = Field((42,), min_length=1)
    config: dict[str, Any] = Field(default_factory=dict)
    baseline: str | None = "all"

    @field_validator("strategies", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        return [{"name": entry} if isinstance(entry, str) else entry for entry in value]

    @field_validator("models", "tasks", "seeds")
    @classmethod
    def _no_twins(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        _refuse_twins(value)
        return value

    @model_validator(mode="after")
    def _rows_are_told_apart(self) -> StudyConfig:
        rows = [strategy.row for strategy in self.strategies]
        _refuse_twins([row.casefold() for row in rows], "strategies: ", "; use a different label for each")
        if self.baseline is not None and self.baseline not in rows:
            raise ValueError(
                f"baseline '{self.baseline}' is not among the strategies ({', '.join(rows)}): add it, use one of them, "
                "or use baseline: null"
            )
        return self

    def seeds_of(self, strategy: StudyStrategy) -> tuple[int, ...]:
        """The seeds that a strategy is run with."""
        return strategy.seeds or self.seeds

    @property
    def every_seed(self) -> tuple[int, ...]:
        """All seeds, first the study's own."""
        return tuple(dict.fromkeys([*self.seeds, *(seed for one in self.strategies for seed in self.seeds_of(one))]))

    @classmethod
    def read(cls, document: Any, where: str = "study") -> StudyConfig:
        """A study from a parsed document. Raises `ConfigError` with the key that is wrong."""
        if not isinstance(document, dict):
            raise ConfigError(f"{where}: a study is a mapping with the keys models, tasks and strategies")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise ConfigError(f"{where}: {first_error(error)}") from None

    def to_yaml(self) -> str:
        """The study as YAML that `read_study` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_unset=True), sort_keys=False)


def read_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """The study in a YAML file, with each `key=value` in place of its own (`seeds=[42]`, `config.max_steps=10`).

    Raises `ConfigError` with the file and the key or line that is wrong.
    """
    document = read_mapping(path, "study", "the keys models, tasks and strategies")
    lay_over(document, overrides)
    return StudyConfig.read(document, str(path))


def _refuse_twins(values: Sequence[Any], prefix: str = "", advice: str = "") -> None:
    value, count = Counter(values).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{prefix}'{value}' is given twice{advice}")
