"""What training may use of memory, time and disk: an amount, or a share of what full fine-tuning needs."""

from __future__ import annotations

from pydantic import ValidationError, field_validator

from frostline.core.errors import ConfigError
from frostline.core.settings import Options, first_error
from frostline.core.sizes import parse_duration, parse_size


class Budget(Options):
    """What training may use; None is no limit.

    Attributes:
        memory: peak memory of a device, as a size (`8GB`) or as a share of what full fine-tuning needs (`0.5`).
        time: time of the whole run, as a duration (`90s`, `20min`, `2h`; without trials it needs a calibrated machine)
            or as a share of what full fine-tuning needs.
        disk: size of the activation cache.
    """

    memory: str | float | None = None
    time: str | float | None = None
    disk: str | None = None

    @field_validator("memory", "time", mode="before")
    @classmethod
    def _share_or_text(cls, value: object) -> object:
        try:
            return float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else value
        except ValueError:
            return value

    @field_validator("memory")
    @classmethod
    def _memory(cls, value: str | float | None) -> str | float | None:
        if isinstance(value, str):
            parse_size(value, "memory")
        return _share(value)

    @field_validator("time")
    @classmethod
    def _time(cls, value: str | float | None) -> str | float | None:
        if isinstance(value, str):
            parse_duration(value, "time")
        return _share(value)

    @field_validator("disk")
    @classmethod
    def _disk(cls, value: str | None) -> str | None:
        if value is not None:
            parse_size(value, "disk")
            if value[-1:].isdigit() and not value.isdigit():
                raise ValueError(
                    f"'{value}' has no unit: use a size such as 20GB (there is no share of it, since full "
                    "fine-tuning has no activation cache)"
                )
        return value

    @property
    def limits(self) -> bool:
        """Whether anything is limited."""
        return not self.memory is self.time is self.disk is None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """A budget such as ``memory=8GB,time=0.4,disk=20GB``. Raises `ConfigError` with the part that is wrong."""
        parts: dict[str, str] = {}
        for part in filter(None, text.split(",")):
            key, equals, value = part.strip().partition("=")
            if not equals or key in parts:
                raise ConfigError(
                    f"--budget: '{part}' is not key=value, or its key comes twice: use memory=8GB,time=0.5,disk=20GB"
                )
            parts[key] = value
        try:
            return cls.model_validate(parts)
        except ValidationError as error:
            raise ConfigError(f"--budget: {first_error(error)}") from None


def _share(value: str | float | None) -> str | float | None:
    if isinstance(value, float) and not 0 < value <= 1:
        raise ValueError(
            f"{value:g} is no share of full fine-tuning: use a number above 0 and at most 1, or add a unit"
        )
    return value
