"""The connection between a study and the run that it waits for: a socket with an end in each process.

When the study dies, for whatever reason, its end closes and the run ends too. So a study that is started again never
meets a run that is still writing. A run that fails sends its error, one line, before it ends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Sequence

VARIABLE = "FROSTLINE_LIFELINE"
LONGEST_LINE = 65536


class Child:
    """A process that ends when this one does. Its standard output is dropped; its standard error is shown."""

    def __init__(self, command: Sequence[str]) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, VARIABLE: str(theirs.fileno())},
            )

    def wait(self) -> str | None:
        """Wait for its end, and return None if it succeeded, else the reason as one line.

        A `KeyboardInterrupt` ends the process first.
        """
        with self._socket:
            try:
                status = self._process.wait()
            except BaseException:
                self._end()
                raise
            if status == 0:
                return None
            if status < 0:
                return f"killed by signal {-status}" + (" (out of memory?)" if status == -9 else "")
            return self._last_words() or f"ended with exit status {status}"

    def _end(self) -> None:
        # The terminal sends Ctrl-C to both processes: give the child the time to restore the terminal.
        for patience, then in ((2, self._socket.close), (10, self._process.kill)):
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                then()
        self._process.wait()

    def _last_words(self) -> str:
        self._socket.setblocking(False)
        with contextlib.suppress(OSError):
            return self._socket.recv(LONGEST_LINE).decode(errors="replace").strip()
        return ""


def hold() -> None:
    """In a study's child: end when the study ends. Elsewhere nothing happens."""
    end = _own_end()
    if end is not None:
        threading.Thread(target=_watch, args=(end,), daemon=True).start()


def say(line: str) -> None:
    """In a study's child: tell the study why this process fails. Elsewhere nothing happens."""
    end = _own_end()
    if end is not None:
        with contextlib.suppress(OSError):
            os.write(end, line.encode()[:LONGEST_LINE])


def _own_end() -> int | None:
    return int(os.environ[VARIABLE]) if VARIABLE in os.environ else None


def _watch(end: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(end, 1):
            pass
    os._exit(1)
