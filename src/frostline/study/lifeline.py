"""The tie between a study and the run it waits for: a socket of which each holds an end.

When the study dies, however it dies, its end closes and the run ends too, so that a study started again never
meets a run that is still writing. And a run that fails sends its one-line error up before it ends.
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
    """A process that ends when this one does. Its standard output is dropped, its standard error passes."""

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
        """Wait for its end. None when all went well, else why not, in one line.

        A `KeyboardInterrupt` meanwhile ends the process first.
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
        # The terminal sends Ctrl-C to both: give it the time to leave the terminal as it was.
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
