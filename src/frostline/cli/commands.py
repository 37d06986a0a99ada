"""The list of commands. A command's module is imported when the command is called, or the list is shown."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from frostline.cli.answer import Answer
from frostline.core.errors import unknown_name

NAMES = (
    "demo",
    "inspect",
    "probe",
    "plan",
    "train",
    "evaluate",
    "generate",
    "merge",
    "export",
    "study",
    "report",
    "cache",
)


class Commands(TyperGroup):
    """The command `name` is the function `command` of the module `frostline.cli.<name>`.

    A module with several commands has them in `COMMANDS`, by name, and describes them in `HELP`. These modules import
    nothing slow at their top, so that `--help` is quick.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return list(NAMES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in NAMES:
            raise unknown_name("command", cmd_name, NAMES)
        module = import_module(f"frostline.cli.{cmd_name}")
        if not hasattr(module, "COMMANDS"):
            app = typer.Typer(add_completion=False)
            app.command(cmd_name)(_without_stdout(module.command))
        else:
            app = typer.Typer(add_completion=False, cls=Subcommands, help=module.HELP, name=cmd_name)
            for name, command in module.COMMANDS.items():
                app.command(name)(_without_stdout(command))
        return typer.main.get_command(app)


class Subcommands(TyperGroup):
    """The commands of one module."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:
            raise unknown_name(f"{ctx.info_name} command", cmd_name, self.commands)
        return super().get_command(ctx, cmd_name)


root = typer.Typer(cls=Commands, add_completion=False)


def _print_version(asked: bool) -> None:
    if asked:
        print(version("frostline"))
        raise typer.Exit()


Version = Annotated[bool, typer.Option("--version", callback=_print_version, help="Print the version and exit.")]


@root.callback()
def frostline(show_version: Version = False) -> None:
    """Decide which layers of a language model to fine-tune, train them, and see what was saved."""


def _without_stdout(command: Callable[..., Answer]) -> Callable[..., Answer]:
    """`command`, with everything that libraries print in it sent to standard error."""

    @functools.wraps(command)
    def quiet(*args: Any, **options: Any) -> Answer:
        with redirect_stdout(sys.stderr):
            return command(*args, **options)

    return quiet
