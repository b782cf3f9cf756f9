"""Runs a plan: on Ray Tune, or inline in this process.

The whole sweep is one Tune experiment, and its searcher is the plan: it hands Tune a batch of
stages as soon as their inputs are stored, and nothing ever holds a slot while it waits. Trials are
batches on warm, reused actors. Tune's own state is a cache that is thrown away; what is done is
what is stored.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raysweep import environment
from raysweep.driver import Run, slots_of
from raysweep.errors import PlanError
from raysweep.graph import Stage
from raysweep.schedule import Result
from raysweep.spec import ResourceClass, Sweep
from raysweep.store import Store

Perform = Callable[[Stage, Store, Mapping[str, Any], float], Result]
LOCAL_AHEAD = 2
POLL_SECONDS = 0.5
START_SECONDS = 20.0
CLUSTER_AHEAD = 200


def run_inline(run: Run) -> None:
    """Run every stage in this process, one after another; Ctrl-C stops between stages."""
    from raysweep.stages import perform

    gpus = run.sweep.resources.gpu.gpu
    while not run.over:
        batch = run.take({"cpu": 1, "gpu": 1})
        if not batch and not run.over:
            time.sleep(POLL_SECONDS)  # candidates of a shared study are under way elsewhere
        for stage in batch:
            held = gpus if stage.resource == "gpu" else 0.0
            run.finished([perform(stage, run.store, run.provenance, held)])


def run_on_ray(
    run: Run, *, address: str | None, most: int | None, perform: Perform | None = None
) -> None:
    """Run every stage on Ray Tune, on a cluster at `address` or on one started here.

    Args:
        run: the run.
        address: of a running cluster; none: start Ray on this machine and stop it at the end.
        most: at most so many stages at once.
        perform: what a worker does with a stage; by default `raysweep.stages.perform`.

    Raises:
        PlanError: if there is no cluster at the address, or this driver may not use it.
    """
    import ray

    _connect(address)
    try:
        _tune(run, cluster=address is not None, most=most, perform=perform)
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    import ray

    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        ray.init(address="local", include_dashboard=False, **quiet)
        return
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        mode = os.environ.get("RAY_AUTH_MODE", "unset")
        raise PlanError(
            f"no Ray cluster answers at --address {address!r} ({error}); check that it runs "
            f"(ray status), and if it uses token authentication, which new clusters do by "
            f"default, set RAY_AUTH_MODE=token here and give this host the cluster's token in "
            f"~/.ray/auth_token or RAY_AUTH_TOKEN_PATH (RAY_AUTH_MODE is {mode})"
        ) from None


def _knock(address: str) -> None:
    """Try the port for a moment: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in address:
        socket.create_connection((host, int(port)), timeout=10).close()


def _fits(sweep: Sweep, have: Mapping[str, float]) -> None:
    """Refuse what this machine can never give; a cluster may still grow."""
    for name, size in (("cpu", sweep.resources.cpu), ("gpu", sweep.resources.gpu)):
        for kind, wanted in (("CPU", size.cpu), ("GPU", size.gpu), ("memory", size.memory_bytes)):
            if wanted > have.get(kind, 0):
                raise PlanError(
                    f"resources.{name}.{kind.lower()}: a stage asks for {wanted:g}, this machine "
                    f"has {have.get(kind, 0):g}; ask for less, or launch on a cluster (--address)"
                )


@contextmanager
def _tune_settings(pending: int) -> Iterator[None]:
    """Keep Tune from writing five files a trial, and let it hold as many trials as we give it."""
    settings = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_MAX_PENDING_TRIALS_PG": str(pending),
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "TUNE_WARN_THRESHOLD_S": "3600",
        "TUNE_RESULT_BUFFER_LENGTH": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _tune(run: Run, *, cluster: bool, most: int | None, perform: Perform | None) -> None:
    import ray
    from ray import tune

    have = ray.cluster_resources()
    if not cluster:
        _fits(run.sweep, have)
    slots = slots_of(have.get("CPU", 1), have.get("GPU", 0), run.sweep, most)
    ahead = most or (max(CLUSTER_AHEAD, max(slots.values())) if cluster else max(slots.values()))
    token = f"{id(run)}"
    settings = environment.gathered(local=not cluster)
    _RUNS[token] = _Feed(run, slots, ahead + (0 if most else LOCAL_AHEAD), settings)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    for name in ("ray.tune.execution", "ray.train", "ray.tune.tuner"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with _tune_settings(ahead + LOCAL_AHEAD), tempfile.TemporaryDirectory() as folder:
            tune.Tuner(
                tune.with_resources(_worker(perform), _shape_of(run.sweep)),
                tune_config=tune.TuneConfig(
                    search_alg=_searcher(token), num_samples=-1, reuse_actors=True,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name="sweep", storage_path=folder, verbose=0,
                    failure_config=tune.FailureConfig(max_failures=0),
                ),
            ).fit()  # fmt: skip
    finally:
        del _RUNS[token]
    if not run.over:
        run.schedule.stopping = True


class _Feed:
    """What a running searcher works with; kept here, since Tune pickles the searcher."""

    def __init__(
        self, run: Run, slots: dict[str, int], ahead: int, settings: environment.Environment
    ) -> None:
        self.run = run
        self.settings = settings
        self.slots = slots
        self.ahead = ahead
        self.held: dict[str, list[str]] = {}

    def size(self, key: str) -> ResourceClass:
        """Return what a stage asks of the cluster; classes that ask the same share workers."""
        resource = self.run.planner.stages[key].resource
        found: ResourceClass = getattr(self.run.sweep.resources, resource)
        return found


_RUNS: dict[str, _Feed] = {}


def _feed(token: str) -> _Feed:
    """Return a running sweep; pickled by name, so that Tune never pickles the sweep."""
    return _RUNS[token]


def _searcher(token: str) -> Any:
    from ray.tune.search import Searcher

    class PlanSearcher(Searcher):  # type: ignore[misc]
        """Hands out batches of ready stages; None while nothing is ready."""

        def __init__(self) -> None:
            super().__init__(metric="stages", mode="max")

        def suggest(self, trial_id: str) -> Any:
            feed = _feed(token)
            if feed.run.over:
                return Searcher.FINISHED
            batch = feed.run.take(feed.slots) if len(feed.held) < feed.ahead else []
            if not batch:
                return None
            feed.held[trial_id] = [stage.key for stage in batch]
            resource = batch[0].resource
            size = feed.size(batch[0].key)
            return {
                "class": resource,
                "workers": f"raysweep/{feed.run.ledger.run}/{size.model_dump_json()}/",
                "beside": min(
                    feed.slots[resource],
                    sum(feed.size(keys[0]) == size for keys in feed.held.values()),
                ),
                "gpus": size.gpu,
                "store": feed.run.store.uri,
                "environment": asdict(feed.settings),
                "provenance": feed.run.provenance,
                "stages": [asdict(stage) for stage in batch],
            }

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            feed = _feed(token)
            keys = feed.held.pop(trial_id, [])
            if error or result is None or "results" not in result:
                feed.run.lost(keys, "the worker process died (out of memory, or its node went)")
            else:
                feed.run.finished(Result(**entry) for entry in json.loads(result["results"]))

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            del trial_id, result

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).write_text("")

        def restore(self, checkpoint_path: str) -> None:
            del checkpoint_path

    return PlanSearcher()


def _worker(perform: Perform | None) -> Any:
    from ray import tune

    class StageWorker(tune.Trainable):  # type: ignore[misc]
        """A warm process that runs one batch of stages for each trial it is given."""

        def setup(self, config: dict[str, Any]) -> None:
            environment.apply(environment.Environment(**config["environment"]))
            self.batch = config
            self.crew = _Crew(config["workers"])

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            import torch

            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
                if torch.cuda.memory_allocated() > 64 << 20:
                    os._exit(1)  # A leak would starve the next stage: start afresh.
            self.batch = new_config
            return True

        def step(self) -> dict[str, Any]:
            results = [asdict(result) for result in _perform(self.batch, perform)]
            self.crew.wait(self.batch["beside"])
            return {"done": True, "stages": len(results), "results": json.dumps(results)}

        def cleanup(self) -> None:
            self.crew.leave()

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            del checkpoint_dir

        def load_checkpoint(self, checkpoint: Any) -> None:
            del checkpoint

    return StageWorker


class _Crew:
    """The workers of one kind that are up.

    Tune gives a waiting batch to whatever worker is free and then drops the one that is starting
    for it: where stages are shorter than a start, a second worker would never come up. So a worker
    that has finished lets the others start before it says so.
    """

    def __init__(self, prefix: str) -> None:
        from ray.experimental import internal_kv

        self._kv, self._prefix = internal_kv, prefix
        self._mine = f"{prefix}{socket.gethostname()}-{os.getpid()}"
        self._patient = True
        self._kv._internal_kv_put(self._mine, b"up", overwrite=True)

    def wait(self, count: int) -> None:
        """Wait until so many are up; in vain but once, where the cluster has no room for them."""
        limit = time.monotonic() + START_SECONDS
        while self._patient and len(self._kv._internal_kv_list(self._prefix)) < count:
            if time.monotonic() > limit:
                self._patient = False
            time.sleep(0.05)

    def leave(self) -> None:
        """Say that this one is up no longer."""
        self._kv._internal_kv_del(self._mine)


_STORES: dict[str, Store] = {}


def _perform(batch: dict[str, Any], perform: Perform | None) -> Iterator[Result]:
    if perform is None:
        from raysweep import stages

        perform = stages.perform
    store = _STORES.setdefault(batch["store"], Store(batch["store"]))
    for entry in batch["stages"]:
        yield perform(Stage(**entry), store, batch["provenance"], batch["gpus"])


def _shape_of(sweep: Sweep) -> Any:
    """Return a function from a batch's config to what its class asks of Ray."""
    from ray import tune

    shapes = {}
    for name, size in (("cpu", sweep.resources.cpu), ("gpu", sweep.resources.gpu)):
        bundle: dict[str, float] = {"CPU": size.cpu}
        if size.gpu:
            bundle["GPU"] = size.gpu
        if size.memory:
            bundle["memory"] = size.memory_bytes
        shapes[name] = tune.PlacementGroupFactory([bundle])
    return lambda config: shapes[config["class"]]
