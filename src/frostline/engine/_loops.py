"""The activation cache in a training loop of the user's own: plain PyTorch, accelerate, Lightning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from frostline.anatomy import text_model
from frostline.bottom import CacheMode, CacheReport, LoopSession, Training
from frostline.core.errors import ConfigError
from frostline.engine._start import check_settings
from frostline.hooks import device_of
from frostline.surgery import as_given


class LoopCache:
    """The activation cache of a training loop, inside `activation_cache`."""

    def __init__(self, session: LoopSession) -> None:
        self._session = session

    @property
    def report(self) -> CacheReport:
        """What the cache did."""
        return self._session.report

    @property
    def notices(self) -> tuple[str, ...]:
        """What runs as it would without frostline and why, one line each."""
        return () if self.report.notice is None else (self.report.notice,)


@contextmanager
def activation_cache(
    model: nn.Module,
    rows: Iterable[Mapping[str, Any]] | None = None,
    collate: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]] | None = None,
    *,
    mode: CacheMode = "auto",
    store: bool = True,
    limit: int | str | None = None,
) -> Iterator[LoopCache]:
    """Inside this context, rows that `model` was called with before do not run its frozen bottom again.

        fl.apply(fl.make_plan(model, "bot50"), model)
        with fl.activation_cache(model) as cache:
            for batch in loader:
                model(**batch).loss.backward()

    A row is recognized by its content. A batch with rows that are not known runs the bottom, and their states are
    stored then: the first epoch fills the cache, later ones read it. Outputs and gradients are compared with and
    without the bottom at the first call that is fed, and again later. Where they differ, the bottom runs, and
    `cache.notices` says so.

    Args:
        model: as it is called, or as it was before it was prepared (accelerate, DistributedDataParallel, Lightning).
            It has a plan (`frostline.apply`), or some of its parameters are frozen.
        rows: tokenized rows that go through the bottom at once, before the first step, those of like length together.
            That computes less padding than the first epoch does. They go in the autocast in which this is called.
        collate: makes a batch of them; needed with `rows`.
        mode: `auto`, `on` (an error where the cache is not possible) or `off`.
        store: store the states of rows that are not known yet.
        limit: bytes that all caches together may use on disk, or a size such as `20GB`.

    Yields what the cache did: `report` and `notices`.

    Raises `ConfigError` where nothing is frozen, with `on` where the cache is not possible, and for `rows` without
    `collate`.
    """
    limit = check_settings(mode, limit)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"activation_cache: {type(model).__name__} is not a model: use the model that the loop calls")
    if (rows is None) != (collate is None):
        raise ConfigError("activation_cache: rows and collate go together: give both, or neither")
    if not isinstance(store, bool):
        raise ConfigError(f"activation_cache: store: '{store}' is not known: use True or False")
    if collate is not None and not callable(collate):
        raise ConfigError(f"activation_cache: collate is a function, not {type(collate).__name__}")
    applied, text = as_given(model), text_model(model)
    compiled = hasattr(model, "_orig_mod") or getattr(text, "_compiled_call_impl", None) is not None
    training = Training(
        model=text,
        plan=applied.plan,
        anatomy=applied.anatomy,
        datasets=(),
        collate=lambda rows: {},
        device=device_of(text),
        batch_size=1,
        trained=applied.lr_scales,
        refusal="the model is compiled, as one graph with its frozen bottom" if compiled else None,
    )
    session = LoopSession(training, required=mode == "on", store=store, limit=limit)
    try:
        if mode != "off":
            session.begin()
            if rows is not None and collate is not None:
                session.fill(rows, collate)
        yield LoopCache(session)
    finally:
        session.end()
