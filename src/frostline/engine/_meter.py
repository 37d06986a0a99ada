"""Measure a run while it runs: time of each step, peak memory."""

from __future__ import annotations

import gc
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainerCallback

from frostline.core.memory import give_back_free_memory


class MemoryMeter:
    """The peak of this process's memory above that at the start, in bytes.

    On CUDA it is the peak of the allocator. On a CPU it is the private anonymous memory, which a thread reads every
    `interval` seconds. Mapped files (weights, activation caches) do not count. Memory that the allocator keeps after
    use does, so a fair comparison needs a new process for each run.
    """

    def __init__(self, interval: float = 0.02) -> None:
        self._interval = interval
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._start = self._begin = 0
        self._peak = self._highest = 0  # the peak since the last restart; the largest before it

    def __enter__(self) -> MemoryMeter:
        self._highest = 0
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.reset_peak_memory_stats()
            self._start = self._begin = torch.cuda.memory_allocated()
            return self
        give_back_free_memory()
        self._start = self._begin = self._peak = private_memory()
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def restart(self) -> None:
        """Measure the peak from now on, above the memory of now."""
        self.restart_peak()
        self._start = torch.cuda.memory_allocated() if torch.cuda.is_available() else self._peak

    def restart_peak(self) -> None:
        """Measure the peak from now on (after loading or an evaluation); the start stays the same."""
        self._highest = self._top()
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.reset_peak_memory_stats()
            return
        give_back_free_memory()
        with self._lock:
            self._peak = private_memory()

    @property
    def peak_bytes(self) -> int:
        """The peak so far, above the memory at the start."""
        return max(0, self._now() - self._start)

    @property
    def whole_peak_bytes(self) -> int:
        """The peak since this context was entered, whatever was restarted, above the memory at that time."""
        return max(0, self._top() - self._begin)

    def _now(self) -> int:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        self._look()
        return self._peak

    def _top(self) -> int:
        return max(self._highest, self._now())

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._look()

    def _look(self) -> None:
        with self._lock:
            self._peak = max(self._peak, private_memory())


def private_memory() -> int:
    """The resident anonymous memory of this process in bytes; its unique set size where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_full_info().uss)


class PeakOfSteps(TrainerCallback):
    """Lets a meter of memory begin with the first step: before it, a model is whole that processes share in training.

    Args:
        memory: the meter.
    """

    def __init__(self, memory: MemoryMeter) -> None:
        self._memory = memory

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._memory.restart_peak()


class StepMeter(TrainerCallback):
    """Wall and processor time of every optimizer step in seconds, without evaluation and saving.

    Every entry of the trainer's log gets the `seconds` since training began, evaluation and saving included. In a
    resumed training they go on from those of the checkpoint.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self._begun = (0.0, 0.0)
        self._origin: float | None = None

    def begin(self, seconds: float = 0.0) -> None:
        """Training begins, after `seconds` that count as training too (the caching pass)."""
        self._origin = time.perf_counter() - seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._origin is None:
            self._origin = time.perf_counter()
        self._origin -= _logged_seconds(state)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._origin is not None:
            state.log_history[-1]["seconds"] = time.perf_counter() - self._origin

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._begun = (time.perf_counter(), time.process_time())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall, cpu = self._begun
        self.seconds.append(time.perf_counter() - wall)
        self.cpu_seconds.append(time.process_time() - cpu)

    @property
    def median(self) -> float | None:
        """The median wall time of all steps except the first, which is slower."""
        return _median(self.seconds)

    @property
    def cpu_median(self) -> float | None:
        """The same for the processor time of all threads together; None on an accelerator."""
        return None if torch.accelerator.is_available() else _median(self.cpu_seconds)


def _logged_seconds(state: Any) -> float:
    """The seconds until a checkpoint was written, about: those of the last entry before it, and its mean step."""
    for entry in reversed(state.log_history):
        seconds, step = entry.get("seconds"), entry.get("step")
        if isinstance(seconds, float) and isinstance(step, int | float) and step:
            return seconds * float(state.global_step / step)
    return 0.0


def _median(seconds: list[float]) -> float | None:
    return statistics.median(seconds[1:] or seconds) if seconds else None
