"""How a training uses the activation cache, in any training loop.

A session decides whether to use the cache, fills it, compares a few check rows, takes the bottom out of memory,
supplies the states at each forward pass, and restores the bottom at the end. It knows no trainer: `Training` tells it
what trains, and on which rows. From `begin` to `end`, a forward pass whose rows are all in the cache reads their
states; any other pass runs the bottom as usual. Code that looks at the model always sees the whole model.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from torch import nn

from frostline.bottom._below import modules_below
from frostline.bottom._bottom import Amount, Declined, NotNeeded, Training, not_possible, unusable, wanted_boundary
from frostline.bottom._cache import check_room
from frostline.bottom._check import mismatch, padding_difference
from frostline.bottom._contents import Contents
from frostline.bottom._cut import CannotCut, Cut, last_blocks
from frostline.bottom._identity import names_below
from frostline.bottom._in_use import InUse
from frostline.bottom._report import CacheReport
from frostline.bottom._rows import AlteredRow, Features
from frostline.bottom._streaming import Streaming
from frostline.core.cache import default_root
from frostline.core.errors import CannotWrite, ConfigError
from frostline.hooks import state_kept
from frostline.processes import ALONE, Processes

CacheMode = Literal["auto", "on", "off"]
_log = logging.getLogger(__name__)


def check_mode(mode: str) -> None:
    """Raises `ConfigError` for a mode that is not known."""
    if mode not in get_args(CacheMode):
        raise ConfigError(f"activation_cache: '{mode}' is not known: use auto, on or off")


class _CheckFailed(Declined):
    """A check has shown that training from the cache would not be the same training."""


class CacheSession:
    """Uses the activation cache in a training: the frozen bottom runs once for each row, then its states are read.

    `decide` says whether the cache will be used. `begin` makes the caching pass, compares training on a few check rows
    with and without the cache, and takes the bottom out of memory. `end` restores it. `report` says what happened.

    Args:
        training: gives the `Training`; it is called when the session decides.
        mode: `auto` (use the cache where training stays the same and time is saved), `on` (use it wherever training
            stays the same) or `off`.
        limit: bytes that all caches together may use on disk; None: only the disk limits them.
        streaming: the bottom where it is read block by block; None where it is in memory.
        processes: those that train together: what one of them cannot use, none uses.
        root: the folder in which all caches lie; None: the default one.

    Raises `ConfigError` for an unknown mode, and for `off` where the bottom is read block by block.
    """

    def __init__(
        self,
        training: Callable[[], Training],
        mode: CacheMode = "auto",
        *,
        limit: int | None = None,
        streaming: Streaming | None = None,
        processes: Processes = ALONE,
        root: Path | None = None,
    ) -> None:
        check_mode(mode)
        if streaming is not None and mode == "off":
            raise ConfigError(
                "activation_cache: off, but the bottom of this model is read block by block, which needs the cache: "
                "use activation_cache=on"
            )
        self._training, self.mode, self._limit, self._streaming = training, mode, limit, streaming
        self._processes = processes
        self._root = root or default_root()
        self.report = CacheReport(reason="activation_cache: " + ("off" if mode == "off" else "decided in train()"))
        self.stage: Callable[[str], None] = lambda what: None
        self.progress: Callable[[int, int], None] = lambda done, rows: None
        self._decided = self._hopeless = self._follows = False
        self._contents: Contents | None = None
        self._in_use: InUse | None = None
        self._at: int | None = None

    def __reduce__(self) -> Any:
        """A copy of the model (a running average, a pickle) runs its own bottom. It gets a session that is off."""
        return _without_cache, ()

    @property
    def active(self) -> bool:
        """Whether forward passes read from the cache."""
        return self._in_use is not None

    def decide(self) -> CacheReport:
        """Decide whether the cache will be used, before any row goes through the bottom.

        Raises `ConfigError` when the cache was asked for (`on`) and cannot be used, or there is no room for it.
        """
        if self.mode != "off" and not self._decided and not self.active:
            self._decided, self.report = True, CacheReport()
            training = self._asked()
            with self._trying(training):
                self._prepare(training)
        return self.report

    def begin(self) -> None:
        """Begin to use the cache, if `decide` says so. Raises `ConfigError` as `decide` does."""
        self.decide()
        if self._contents is None or self.active:
            return
        with self._trying(self._contents.training):
            self._pass_and_check(self._contents)
            self._use(self._contents)
        _log.info("activation cache: %s", self.report.reason)

    def to_fill(self) -> Contents:
        """What a training to come would read from the cache.

        Raises `ConfigError` where it would not read it, and where there is no room for all rows.
        """
        training = self._asked()
        try:
            with state_kept(training.collate, *training.datasets, device=training.device):
                self._prepare(training)
                contents = cast(Contents, self._contents)
                self._check_padding(contents)
        except (Declined, CannotCut, AlteredRow) as error:
            raise ConfigError(
                f"the cache is of no use: {error}: frostline train runs without filling it first"
            ) from None
        return contents

    def end(self) -> None:
        """Stop using the cache and bring the bottom back to memory (unless it is read block by block)."""
        self._decided = False
        if self._streaming is not None:
            return
        self._drop()

    def _drop(self) -> None:
        if self._in_use is not None:
            self._in_use.end()
        self._in_use = self._contents = None

    def follow(self) -> None:
        """Go on under the plan that the model has now: with the same states as long as they are right.

        Where the boundary rose for good and enough training is left, the states at the new boundary are computed from
        those in use.
        """
        if self.mode == "off" or self._hopeless or self._streaming is not None:
            return
        self._follows = True
        try:
            self._follow()
        finally:
            self._follows = False

    def _follow(self) -> None:
        contents = self._contents
        self._at = None
        if contents is None or not self.active:
            self._decided = False
            self.begin()
            return
        training = self._asked()
        if not contents.is_right_for(training):
            self.end()
            self.begin()
            return
        contents.training = training
        if wanted_boundary(training) > contents.cut.boundary:
            self._raise(contents, training)

    def expect(self, rows: Sequence[Features], batch: Mapping[str, Any]) -> None:
        """Announce that `batch` was collated from `rows`, so that their states are read before the model is called."""
        if self._in_use is not None:
            self._in_use.expect(rows, batch)

    def holding(self, rows: Sequence[Features], batch: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Inside this context, every pass gets the boundary states of `rows`, whatever ids the pass is given.

        It is for code that examines the model with a batch of cached rows and changes its ids or masks.
        """
        return nullcontext() if self._in_use is None else self._in_use.holding(rows, batch)

    def changed(self) -> str | None:
        """Say in one line what has changed below the boundary since the cache is used; None where nothing has."""
        return None if self._in_use is None else self._in_use.changed()

    def recheck(self) -> str | None:
        """Compare training with the cache and without it again, on the check rows.

        Returns in one line how they differ, or None. A bottom that is read block by block cannot be compared.
        """
        return None if self._in_use is None or self._streaming is not None else self._in_use.recheck()

    def give_up(self, reason: str) -> None:
        """Go back to the bottom itself for the rest of the training. `reason` is reported."""
        self.end()
        self._decided, self.report = True, replace(self.report, given_up=reason)

    @property
    def boundary(self) -> int:
        """Where the states in use are; 0 where none are."""
        return 0 if self._contents is None or not self.active else self._contents.cut.boundary

    @property
    def replaced(self) -> set[nn.Parameter]:
        """The parameters that the states in use stand for; none where no states are in use."""
        contents = self._contents
        if contents is None or not self.active:
            return set()
        training, cut = contents.training, contents.cut
        below = set(names_below(training.anatomy, cut))
        inside = {p for _, module in modules_below(training.model, cut) for p in module.parameters()}
        return inside | {p for name, p in training.model.named_parameters() if name in below}

    def resume(self, boundary: int) -> None:
        """A training goes on under a later plan: begin with the states at the same boundary as before (`boundary`)."""
        self._at = boundary

    # What `decide` and `begin` do.

    def _asked(self) -> Training:
        training = self._training()
        if self._at is None:
            return training
        return replace(training, lowest=self._at if training.lowest is None else min(self._at, training.lowest))

    @contextmanager
    def _trying(self, training: Training) -> Iterator[None]:
        """Inside this context, an error that rules the cache out becomes a report, or an error where it is required.

        Generators, the collator and the data sets are left as they were: training draws the same as without a cache.
        """
        begun = time.perf_counter()
        try:
            with state_kept(training.collate, *training.datasets, device=training.device), self._processes.together():
                yield
        except (Declined, CannotCut, AlteredRow) as error:
            self._drop()
            self._hopeless = isinstance(error, _CheckFailed | CannotCut | AlteredRow)
            declined = not isinstance(error, NotNeeded)
            self.report = replace(self.report, used=False, reason=str(error), declined=declined)
            if self._streaming is not None:
                raise ConfigError(f"streaming needs the activation cache, but {error}: use streaming=false") from None
            # A training that is on its way is not ended for the cache.
            begins = training.lowest is None and self._at is None and not self._follows
            if self.mode == "on" and begins and not isinstance(error, _CheckFailed):
                raise not_possible(error) from None
        except (CannotWrite, OSError) as error:
            self._drop()
            why = self._processes.first_found(unusable(self._root, error))
            if self.mode != "auto" or self._streaming is not None or why is None:
                if why is None or isinstance(error, CannotWrite):
                    raise
                raise not_possible(why) from None
            self._decided = True
            self.report = replace(self.report, used=False, reason=why, declined=True)
        finally:
            self.report = replace(self.report, seconds=self.report.seconds + time.perf_counter() - begun)

    def _prepare(self, training: Training) -> None:
        """Find what there is to cache, and whether it saves time and fits the disk."""
        self.stage("reading the rows")
        contents = self._contents = Contents(training, self._streaming, self._root)
        if self._streaming is not None and self._processes.count > 1:
            contents.levels = f"{self._processes.rank} of {self._processes.count}"
        chosen_here = self.mode == "auto" and self._streaming is None and not self._at
        if chosen_here and (amount := contents.at_best()) is not None:  # before any row is read
            self._ask_whether_it_pays(contents, amount, chosen_here)
        missing = contents.cache.missing(contents.rows)
        self._ask_whether_it_pays(contents, contents.amount(len(missing)), chosen_here)
        levels = 1 if self._streaming is None else 2
        try:
            check_room(self._root, levels * sum(contents.row_bytes[key] for key in missing), self._limit)
        except ConfigError as error:
            if chosen_here:
                raise Declined(str(error)) from None
            raise
        self._report_use(contents, f"{len(missing):,} of them have to pass the frozen bottom first", len(missing))

    def _ask_whether_it_pays(self, contents: Contents, amount: Amount, chosen_here: bool) -> None:
        if (asked := contents.training.estimate) is not None:
            self.report = replace(self.report, estimate=str(estimate := asked(amount)))
            if chosen_here and not estimate.pays:
                raise NotNeeded(estimate.reason)

    def _pass_and_check(self, contents: Contents) -> None:
        """Check, make the caching pass, and check again."""
        check_rows = contents.check_rows()
        self._check_padding(contents)
        self.stage("caching pass")
        contents.cache.check(check_rows)
        passed = len(contents.cache.missing(contents.rows))  # in this process or in another
        contents.fill(contents.rows, lambda done, rows: self.progress(done, rows))
        self.stage("checks after the caching pass")
        if self._streaming is None and (found := mismatch(contents, check_rows)) is not None:
            raise _CheckFailed(found)
        self._report_use(contents, f"{passed:,} of them passed the frozen bottom now", passed)

    def _check_padding(self, contents: Contents) -> None:
        self.stage("checks before the caching pass")
        with self._bottom_or_first_block(contents.cut) as blocks:
            if (why := padding_difference(contents, blocks, contents.check_rows())) is not None:
                raise _CheckFailed(why)

    def _raise(self, before: Contents, training: Training) -> None:
        """Use the states at a higher boundary, where that saves time. Those in use feed the pass that computes them."""
        begun = time.perf_counter()
        try:
            with state_kept(training.collate, *training.datasets, device=training.device), self._processes.together():
                contents = Contents(training, None, self._root, before.rows)
                missing = contents.cache.missing(contents.rows)
                amount = contents.amount(len(missing), before.cut.boundary)
                pays = training.estimate is None or training.estimate(amount).pays
                if self._processes.any(not (pays and self._has_room(contents, missing))):
                    return
                self._pass_and_check(contents)
        except (Declined, CannotCut, AlteredRow, CannotWrite, OSError) as error:
            _log.info("activation cache: stays at block %d: %s", before.cut.boundary, error)
        else:
            self.end()
            self._decided, self._contents = True, contents
            self._use(contents)
        finally:
            self.report = replace(self.report, seconds=self.report.seconds + time.perf_counter() - begun)

    def _has_room(self, contents: Contents, missing: list[str]) -> bool:
        try:
            check_room(self._root, sum(contents.row_bytes[key] for key in missing), self._limit)
        except ConfigError:
            return False
        return True

    def _report_use(self, contents: Contents, what: str, missing: int) -> None:
        sizes, known = contents.row_bytes, self.report
        why, found, size = f"on: {len(sizes):,} rows, {what}", len(sizes) - missing, sum(sizes.values())
        self.report = replace(known, used=True, reason=why, declined=False, rows=missing, found=found, bytes=size)

    @contextmanager
    def _bottom_or_first_block(self, cut: Cut) -> Iterator[Mapping[str, str]]:
        """Inside this context, the bottom is in memory, or its first block where it is read block by block.

        Gives stream -> the last block in memory.
        """
        if self._streaming is None:
            yield last_blocks(cut)
        else:
            with self._streaming.first_block() as block:
                yield {cut.streams[0]: block}

    def _use(self, contents: Contents) -> None:
        """Take the bottom out of memory, and read its states from now on."""
        self._in_use = InUse(contents, self._root, self._computed)
        self.report = replace(self.report, freed_bytes=self._in_use.freed)

    def _computed(self) -> None:
        self.report = replace(self.report, computed=self.report.computed + 1)


def _without_cache() -> CacheSession:
    return CacheSession(cast(Any, None), "off")  # a session that is off never asks for its training
