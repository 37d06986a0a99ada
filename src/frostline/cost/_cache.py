"""When an activation cache pays.

The unit is one forward pass of all rows through the frozen bottom. The caching pass costs `1 - stored`, since it runs
every row that the cache lacks, and each epoch saves one. Writing and reading cost something too. This was measured on
a CPU with a decoder of 12 blocks of width 512 (methods.md, section 7): 3.4 ms a step to write and 1.4 ms to read the
states of a bottom whose forward pass needs 732 ms. So an activation cache pays from

    (1 - stored) (1 + writing) / (1 - reading)

epochs on. Left out: the share of writing and reading is smaller for a deeper and wider bottom, and larger on a faster
device; T5's first blocks, which still run; and the memory that an activation cache saves at any number of epochs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from frostline.anatomy import Anatomy
from frostline.core.sizes import size_text
from frostline.cost._bottom import bytes_on_disk
from frostline.cost._flops import bottom_flops, step_flops
from frostline.cost._flow import flow
from frostline.cost._workload import Workload
from frostline.plan import Frozen, Full, Plan

WRITING = 3.4 / 732
READING = 1.4 / 732
MEASURED_BLOCKS = 12
CHECKS = 5
"""So many steps take the checks before states are used at a higher boundary than before."""


@dataclass(frozen=True)
class Estimate:
    """What an activation cache would save in a run; `str` gives it as one line.

    Attributes:
        epochs: passes over the data.
        bytes: what has to be written.
        break_even_epochs: with more epochs than these it pays.
        saved_share: the saved share of the run's operations; negative if the caching pass costs more than is saved.
        pays: whether it pays.
        reason: why it pays or does not.
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


def cache_pays(
    *,
    epochs: float,
    store_bytes: int,
    bottom_share: float,
    stored_share: float = 0.0,
    writing: float = WRITING,
    reading: float = READING,
    checks: float = 0.0,
) -> Estimate:
    """Whether an activation cache makes a run cheaper.

    Args:
        epochs: passes over the data.
        store_bytes: size of the boundary states of all rows.
        bottom_share: the forward pass of the frozen bottom, as a share of a step's operations without a cache.
        stored_share: the share of the rows that the cache holds already.
        writing: what writing the states of all rows costs, in forward passes of all rows through the bottom.
        reading: what reading them costs more than without this cache.
        checks: what the checks before the first step cost, in the same unit.
    """
    wanted = 1 - stored_share
    if bottom_share <= 0:
        return Estimate(epochs, 0, math.inf, 0.0, False, "no block is below the boundary, so there is nothing to store")
    break_even = (wanted * (1 + writing) + checks) / (1 - reading)
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


def cache_estimate(
    plan: Plan,
    anatomy: Anatomy,
    workload: Workload,
    store_bytes: int | None = None,
    *,
    boundary: int | None = None,
    above: int = 0,
    midway: bool = False,
) -> Estimate:
    """Whether an activation cache makes training under `plan` on `workload` cheaper.

    Args:
        plan: what trains.
        anatomy: of the model.
        workload: the work.
        store_bytes: size of the states of all rows, where it is known; else it follows from `workload.length`, which
            counts padding.
        boundary: where the states are stored; None is the plan's boundary.
        above: a lower boundary whose states are stored, and read without this cache. Only the blocks between the two
            are saved.
        midway: whether training has begun already. Its checks are then counted: what is left may be short.

    Raises `PlanError` when the plan does not fit the anatomy.
    """
    if workload.texts > 1:
        return Estimate(
            workload.num_train_epochs, 0, math.inf, 0.0, False, "a row holds several texts, which are not stored"
        )
    without = workload.model_copy(update={"activation_cache": False})
    steps = workload.rows / workload.per_device_train_batch_size
    an_epoch = step_flops(plan, anatomy, without).total * steps
    below = bottom_flops(cut_at(plan, boundary), anatomy, workload)
    if store_bytes is None:
        store_bytes = bytes_on_disk(flow(cut_at(plan, boundary), anatomy), workload)
    known = partial(
        cache_pays, epochs=workload.num_train_epochs, store_bytes=store_bytes, stored_share=workload.stored_share
    )
    more = (below - bottom_flops(cut_at(plan, above), anatomy, workload)) / an_epoch if above else below / an_epoch
    checks = CHECKS / steps / more if midway and more > 0 else 0.0
    if not above:
        return known(bottom_share=more, checks=checks)
    blocks = max(1, (plan.boundary if boundary is None else boundary) - above)
    return known(bottom_share=more, checks=checks, writing=WRITING * MEASURED_BLOCKS / blocks, reading=0.0)


def cut_at(plan: Plan, boundary: int | None) -> Plan:
    """A plan with this boundary instead of its own, with the same work below it; None: the plan itself."""
    if boundary is None or boundary == plan.boundary:
        return plan
    blocks = (*(Frozen() for _ in plan.blocks[:boundary]), *(Full() for _ in plan.blocks[boundary:]))
    return plan.model_copy(update={"embeddings": Frozen(), "blocks": blocks, "head": Frozen()})


def _why_not(epochs: float, wanted: float) -> str:
    if epochs > wanted:
        return "writing and reading the states costs more than it saves"
    if epochs < wanted:
        return "the caching pass costs more than it saves, since it runs rows that training never reaches"
    if wanted == 1:
        return "it saves nothing at one epoch: each row passes the frozen bottom once with and without it"
    return "it saves nothing: the cache lacks as many rows as training reads"
