"""What torch's allocator holds while something runs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch


def live_bytes_at_peak(step: Callable[[], None]) -> int:
    """The most that torch's allocator holds while `step` runs, above what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))
