"""When an activation cache pays.

In units of one forward pass of all rows through the frozen bottom: the caching pass costs `1 - stored`, for it takes
every row that the store lacks, and each epoch saves one. Writing and reading add to that what was measured on a
CPU with a decoder of 12 blocks of width 512 (methods.md, section 7): 3.4 ms a step to write and 1.4 ms to read
the states of a bottom that takes 732 ms. So it pays from

    (1 - stored) (1 + writing) / (1 - reading)

epochs on. Left out: that the share of writing and reading falls with the depth and the width of the bottom and
grows with the speed of the device; T5's first blocks, which run on; and the memory that a store saves at any
number of epochs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from frostline.anatomy import Anatomy
from frostline.core.sizes import size_text
from frostline.cost._bottom import bytes_on_disk
from frostline.cost._flops import bottom_flops, step_flops
from frostline.cost._flow import flow
from frostline.cost._workload import Workload
from frostline.plan import Plan

WRITING = 3.4 / 732
READING = 1.4 / 732


@dataclass(frozen=True)
class Estimate:
    """What an activation cache would do for a run; `str` tells it in one line.

    `epochs`: passes over the data. `bytes`: what it has to write. `break_even_epochs`: it pays above these.
    `saved_share`: of the operations of the run without it; negative if the caching pass costs more than it saves.
    `reason`: why it pays or does not.
    """

    epochs: float
    bytes: int
    break_even_epochs: float
    saved_share: float
    pays: bool
    reason: str

    def __str__(self) -> str:
        if math.isinf(self.break_even_epochs):
            return self.reason
        passes = "1 epoch" if self.epochs == 1 else f"{self.epochs:.3g} epochs"
        return f"{passes}, {size_text(self.bytes)} to write, break-even at {self.break_even_epochs:.3g}: {self.reason}"


def cache_pays(*, epochs: float, store_bytes: int, bottom_share: float, stored_share: float = 0.0) -> Estimate:
    """Whether an activation cache makes a run of `epochs` passes over the data cheaper.

    `store_bytes` is what the boundary states of all rows take; `stored_share` of them the store holds already.
    `bottom_share` is the share of a step's operations, without a store, that the frozen bottom's forward takes.
    """
    wanted = 1 - stored_share
    if bottom_share <= 0:
        return Estimate(epochs, 0, math.inf, 0.0, False, "no block lies below the boundary: there is nothing to store")
    break_even = wanted * (1 + WRITING) / (1 - READING)
    saved = bottom_share * (1 - wanted / epochs)
    pays = epochs > break_even
    return Estimate(
        epochs=epochs,
        bytes=round(wanted * store_bytes),
        break_even_epochs=break_even,
        saved_share=saved,
        pays=pays,
        reason=f"it saves {saved:.1%} of the run's operations" if pays else _why_not(epochs, wanted),
    )


def cache_estimate(plan: Plan, anatomy: Anatomy, workload: Workload, store_bytes: int | None = None) -> Estimate:
    """Whether an activation cache makes training under `plan` on `workload` cheaper.

    `store_bytes` is what the states of all rows take, where it is known better than by `workload.length`, which
    counts padding. Raises `UserError` when the plan does not fit the anatomy.
    """
    without = workload.model_copy(update={"activation_cache": False})
    an_epoch = step_flops(plan, anatomy, without).total * workload.rows / workload.per_device_train_batch_size
    if store_bytes is None:
        store_bytes = bytes_on_disk(flow(plan, anatomy), workload)
    return cache_pays(
        epochs=workload.num_train_epochs,
        store_bytes=store_bytes,
        bottom_share=bottom_flops(plan, anatomy, workload) / an_epoch,
        stored_share=workload.stored_share,
    )


def _why_not(epochs: float, wanted: float) -> str:
    if epochs > wanted:
        return "what it saves is less than writing and reading the states costs"
    if epochs < wanted:
        return "the caching pass costs more than it saves, since it takes rows that training never reaches"
    if wanted == 1:
        return "it saves nothing at one epoch: each row passes the frozen bottom once either way"
    return "it saves nothing: as many rows are missing from it as training reads"
