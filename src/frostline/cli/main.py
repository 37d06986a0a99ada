"""The command `frostline`: find the command, run it, print its answer, and turn an error into one line.

Exit status: 0 done, 2 the user's input is wrong, 1 anything else.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence

import typer

import frostline.core.quiet  # noqa: F401
from frostline.cli.answer import Answer
from frostline.cli.commands import NAMES, root
from frostline.core.errors import FrostlineError, UserError, is_out_of_memory
from frostline.core.launched import rank, several
from frostline.core.memory import keep_few_kernels
from frostline.core.shown import one_line

TRACEBACK = "FROSTLINE_TRACEBACK"
LIFELINE = "FROSTLINE_LIFELINE"
WRONG_PATH = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
WRONG_NAMES = (errno.ENAMETOOLONG, errno.ELOOP)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default that of the process) and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    _end_as_if_interrupted_by(signal.SIGTERM)
    keep_few_kernels()
    try:
        if LIFELINE in os.environ:
            from frostline.study import lifeline

            lifeline.hold()
        return _run(arguments)
    except typer.Exit as done:
        return done.exit_code
    except typer.TyperException as error:
        message = error.format_message().replace("Value error, ", "").rstrip(".")
        return _fail(f"{message} (see: frostline {_command(arguments)}--help)", error.exit_code)
    except UserError as error:
        return _fail(str(error), 2)
    except FrostlineError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt as error:
        return _fail(str(error) or "interrupted", 1, kind="")
    except BrokenPipeError:
        # The reader of the pipe has ended. Nothing may be left that the interpreter would write when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        wrong = isinstance(error, WRONG_PATH) or error.errno in WRONG_NAMES
        return _fail(str(error), 2 if wrong else 1)
    except Exception as error:
        if is_out_of_memory(error):
            advice = "use a smaller per_device_train_batch_size, activation_checkpointing=true, or train fewer blocks"
            return _fail(f"out of memory: {advice}", 1)
        about = f"{type(error).__name__}: {error}".rstrip(": ")
        advice = f"this is a fault of frostline; {TRACEBACK}=1 shows where"
        return _fail(f"{about} ({advice})", 1)


def _end_as_if_interrupted_by(signal_number: int) -> None:
    # Schedulers send it. The record then says so, as after Ctrl-C. Only the main thread may set a handler.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal_number, signal.default_int_handler)


def _run(arguments: Sequence[str]) -> int:
    command = typer.main.get_command(root)
    with command.make_context("frostline", list(arguments)) as context:
        answer: Answer = command.invoke(context)
    answer.show()
    return answer.status


def _command(arguments: Sequence[str]) -> str:
    return f"{arguments[0]} " if arguments[0] in NAMES else ""


def _fail(message: str, status: int, kind: str = "error: ") -> int:
    if os.environ.get(TRACEBACK):
        traceback.print_exc()
    if several():
        from frostline.processes import is_of_all

        if not is_of_all(sys.exception()):
            message = f"process {rank()}: {message}"
        elif rank() > 0:
            return status  # the first process says it
    line = one_line(f"{kind}{message}")
    lifeline = sys.modules.get("frostline.study.lifeline")  # not there where its import was interrupted
    if LIFELINE in os.environ and lifeline is not None:
        lifeline.say(line.removeprefix(kind))  # the study shows it
    else:
        print(line, file=sys.stderr)
    return status
