"""Fill the activation cache of a run by actors on a Ray cluster (Ray Data).

A planner, which runs on the cluster too, divides the rows into the chunks of one caching pass. Ray Data gives them to
actors, each of which holds the model and writes to the cache. Where an actor is lost, Ray starts another and gives it
the chunk. A chunk that is in the cache already is not computed again: so a fill that was stopped goes on.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from frostline.bottom import Contents
from frostline.checkpoints import quiet_libraries
from frostline.core.cache import default_root
from frostline.core.errors import ConfigError, FrostlineError, first_line
from frostline.core.files import private
from frostline.run._config import RunConfig
from frostline.run._fill import Filled, contents_of, shown, training_of

_KEPT = ("FROSTLINE_", "HF_", "OMP_NUM_THREADS")
"""How the environment variables begin that actors get too, but for tokens: everybody on the cluster can see them."""


@dataclass(frozen=True)
class _Job:
    """What an actor has to know: the run's config, and where relative paths of it begin."""

    config: RunConfig
    folder: str

    def go_there(self) -> None:
        with suppress(OSError):
            os.chdir(self.folder)


@dataclass(frozen=True)
class _Planned:
    """What is to be done: the chunks with their rows, as JSON, and facts for the report."""

    chunks: list[str]
    cache: str
    rows: int
    missing: int
    bytes: int


def fill_with_ray(config: RunConfig, address: str, console: Console | None = None) -> Filled:
    """Let all rows of a run pass its frozen bottom, by actors on a Ray cluster: one for each GPU, or for each CPU.

    With `threads` in the config, an actor has so many CPUs. The cluster's machines share the folder of the caches, the
    data and the model.

    Args:
        config: of the run. Its strategy has a fixed plan.
        address: of the cluster (`auto`, or as `ray start --head` prints it); `local` starts one on this machine.
        console: where progress is shown; None: nowhere.

    Raises `UserError` as `fill_cache` does, and where Ray is not installed or there is no cluster.
    """
    begun = time.perf_counter()
    if config.streaming:
        raise ConfigError("--ray: an actor holds the frozen blocks, and streaming reads them one by one: use --shard")
    ray = _connected(address)
    try:
        with shown(console) as bar:
            bar.stage("planning on the cluster")
            return _fill(ray, _Job(config, str(Path.cwd())), bar.rows, begun)
    finally:
        ray.shutdown()


def _connected(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError("--ray: Ray is not installed: use pip install 'frostline[ray]'") from None
    kept = {name: value for name, value in os.environ.items() if name.startswith(_KEPT) and "TOKEN" not in name}
    kept["FROSTLINE_CACHE"] = str(default_root().absolute())
    here = {"_node_ip_address": "127.0.0.1", "include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, runtime_env={"env_vars": kept}, log_to_driver=False, logging_level="ERROR", **here)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--ray: no cluster at '{address}' ({first_line(error)[:100]}): use auto, local, or the address that "
            "`ray start --head` prints"
        ) from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _fill(ray: Any, job: _Job, progress: Any, begun: float) -> Filled:
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    needs = {"num_cpus": job.config.threads or 1, "num_gpus": 1 if gpus else 0}
    largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
    if needs["num_cpus"] > largest:
        raise ConfigError(f"threads: no node of the cluster has {needs['num_cpus']} CPUs: use {largest} or less")
    planned = ray.get(ray.remote(**needs)(_planned).remote(job))
    if isinstance(planned, str):
        raise ConfigError(planned)
    done = passed = 0
    actors: dict[tuple[str, int], dict[str, Any]] = {}
    for one in _results(ray, job, planned.chunks, gpus or int(there.get("CPU", 1)) // needs["num_cpus"], needs):
        if one["error"]:
            raise FrostlineError(f"{one['node']}: {one['error']}")
        done, passed = done + one["rows"], passed + one["passed"]
        nothing = {"node": one["node"], "pid": one["pid"], "rows": 0, "seconds": 0.0}
        own = actors.setdefault((one["node"], one["pid"]), nothing)
        own["rows"] += one["passed"]
        own["seconds"] += one["seconds"]
        progress(min(done, planned.missing), planned.missing)
    return Filled(
        cache=planned.cache,
        shard="0/1",
        rows=planned.rows,
        passed=passed,
        all_rows=planned.rows,
        missing=0,
        bytes=planned.bytes,
        seconds=time.perf_counter() - begun,
        actors=tuple(actors.values()),
    )


def _results(ray: Any, job: _Job, chunks: list[str], most: int, needs: dict[str, int]) -> Iterable[dict[str, Any]]:
    """What actors answer for each chunk, as they are done.

    Args:
        ray: the library.
        job: what an actor has to know.
        chunks: as JSON.
        most: actors that the cluster has room for.
        needs: what each of them needs.
    """
    if not chunks:
        return ()
    items = ray.data.from_items([{"chunk": chunk} for chunk in chunks], override_num_blocks=len(chunks))
    actors = ray.data.ActorPoolStrategy(size=max(1, min(most, len(chunks))))
    found: Iterable[dict[str, Any]] = items.map_batches(
        Filler, fn_constructor_args=(job,), batch_size=1, compute=actors, **needs
    ).iter_rows()
    return found


def _planned(job: _Job) -> _Planned | str:
    """The chunks that are not in the cache; or what is wrong, in one line."""
    job.go_there()
    try:
        with private(), quiet_libraries():
            contents = contents_of(job.config)
        rows, cache = contents.rows, contents.cache
        missing = set(cache.missing(rows))
        chunks = [chunk for chunk in contents.caching_pass(rows).chunks() if not missing.isdisjoint(chain(*chunk))]
        return _Planned(
            [_text({"chunk": chunk, "rows": {key: dict(rows[key]) for key in chain(*chunk)}}) for chunk in chunks],
            str(cache.folder),
            len(rows),
            len(missing),
            sum(contents.row_bytes.values()),
        )
    except (FrostlineError, OSError) as error:
        return first_line(error)


def _text(value: Any) -> str:
    return json.dumps(value, default=lambda array: array.tolist())


class Filler:
    """An actor: it holds the model, and gets chunks with their rows."""

    def __init__(self, job: _Job) -> None:
        job.go_there()
        with private(), quiet_libraries():
            training, _ = training_of(job.config)
            self._contents = Contents(training, None, default_root())
        self._filling = ExitStack()
        self._filling.enter_context(self._contents.cache.filling())

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Write one chunk. Gives the rows of the chunk, those that passed here, and what went wrong, in one line."""
        given = json.loads(batch["chunk"][0])
        chunk = tuple(tuple(keys) for keys in given["chunk"])
        begun, passed, error = time.perf_counter(), 0, ""
        try:
            with private():
                passed = self._contents.caching_pass(given["rows"]).through(chunk, wait=True) or 0
        except (FrostlineError, OSError) as failed:
            error = first_line(failed)
        found = {"rows": len(given["rows"]), "passed": passed, "seconds": time.perf_counter() - begun, "error": error}
        return {name: [value] for name, value in {**found, "node": socket.gethostname(), "pid": os.getpid()}.items()}
