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
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raysweep import environment, interruption, provenance, worker
from raysweep.cluster import (
    bundles,
    check_room,
    connect,
    fits_somewhere,
    refusals,
    room,
    shape_of,
)
from raysweep.driver import Run, slots_of
from raysweep.errors import HostError
from raysweep.graph import Result, Stage
from raysweep.provenance import code_here, refusal
from raysweep.resources import ResourceClass
from raysweep.spec import foreign_modules

LOCAL_AHEAD = 2
POLL_SECONDS = 0.5
CLUSTER_AHEAD = 200
LEAVE_SECONDS = 4.0  # records come first where Ray's processes were killed beside us


def run_inline(run: Run) -> None:
    """Run every stage in this process, one after another, until a signal comes."""
    from raysweep.stages import perform

    gpus = run.sweep.resources.gpu.gpu
    while not run.over:
        interruption.check()
        batch = run.take({"cpu": 1, "gpu": 1})
        if not batch and not run.over:
            time.sleep(POLL_SECONDS)  # candidates of a shared study are under way elsewhere
        for stage in batch:
            held = gpus if stage.resource == "gpu" else 0.0
            run.finished([perform(stage, run.store, run.provenance, held)])


def run_on_ray(run: Run, *, address: str | None, most: int | None) -> None:
    """Run every stage on Ray Tune, on a cluster at `address` or on one started here.

    Args:
        run: the run.
        address: of a running cluster; none: start Ray on this machine and stop it at the end.
        most: at most so many stages at once.

    Raises:
        PlanError: if there is no cluster at the address, or this driver may not use it.
        HostError: if every host that could do the work refuses to.
    """
    import ray

    try:
        connect(address)
        interruption.take_again()
        _tune(run, cluster=address is not None, most=most)
    finally:
        interruption.end_ray(ray.shutdown, LEAVE_SECONDS)


@contextmanager
def _tune_settings(pending: int) -> Iterator[None]:
    """Keep Tune from writing five files a trial, and let it hold as many trials as we give it."""
    settings = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_MAX_PENDING_TRIALS_PG": str(pending),
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "TUNE_WARN_THRESHOLD_S": "3600",
        "TUNE_RESULT_BUFFER_LENGTH": "0",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in settings:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _tune(run: Run, *, cluster: bool, most: int | None) -> None:
    import ray
    from ray import tune

    if not cluster:
        check_room(run.sweep, room())
    token = f"{id(run)}"
    feed = _RUNS[token] = _Feed(run, most, cluster=cluster)
    for name in ("ray.tune", "ray.tune.execution", "ray.train", "ray.tune.tuner"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # A worker may have any raysweep, or none: what it is asked first must not be looked up there.
    ray.cloudpickle.register_pickle_by_value(provenance)
    try:
        with _tune_settings(feed.ahead + LOCAL_AHEAD), tempfile.TemporaryDirectory() as folder:
            tune.Tuner(
                tune.with_resources(_worker(), shape_of(run.sweep)),
                tune_config=tune.TuneConfig(
                    search_alg=_searcher(token), num_samples=-1, reuse_actors=True,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name="sweep", storage_path=folder, verbose=0, stop=_stopper(token),
                    failure_config=tune.FailureConfig(max_failures=0),
                    # The folder is on this host: a worker that saved anything there would fail.
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            ).fit()  # fmt: skip
    finally:
        ray.cloudpickle.unregister_pickle_by_value(provenance)
        del _RUNS[token]
    if not run.over:
        run.schedule.stopping = True
    if feed.stranded:
        raise HostError("\n".join(feed.refused.values()))


class _Feed:
    """What a running searcher works with; kept here, since Tune pickles the searcher.

    `refused` holds why hosts refuse to work, by node id; `stranded` is set when no other is left.
    """

    def __init__(self, run: Run, most: int | None, *, cluster: bool) -> None:
        self.run = run
        self.settings = environment.gathered(local=not cluster)
        self.prefix = f"raysweep/{run.ledger.run}/"
        self.code = code_here(foreign_modules(run.sweep))
        self.refused: dict[str, str] = {}
        self.stranded = False
        self._looked = 0.0
        self.held: dict[str, list[str]] = {}
        self._most = most
        self.slots = self._slots()
        self.ahead = most or max(CLUSTER_AHEAD if cluster else 0, *self.slots.values())
        self.limit = self.ahead + (0 if most else LOCAL_AHEAD)

    def _slots(self) -> dict[str, int]:
        have = room(self.refused)
        return slots_of(have.get("CPU", 1), have.get("GPU", 0), self.run.sweep, self._most)

    def size(self, key: str) -> ResourceClass:
        """Return what a stage asks of the cluster; classes that ask the same share workers."""
        resource = self.run.planner.stages[key].resource
        found: ResourceClass = getattr(self.run.sweep.resources, resource)
        return found

    def ticket(self, trial_id: str) -> str:
        """Return where a worker says that it ended before it began a batch."""
        return f"{self.prefix}left/{trial_id}"

    def heed(self) -> None:
        """Note which hosts refuse to work: they are handed nothing more."""
        for node, reason in refusals(f"{self.prefix}refused/").items():
            if node not in self.refused:
                self.refused[node] = reason
                self.slots = self._slots()
                self.run.note(reason)

    def look_around(self) -> bool:
        """Return whether what is handed out has no host to go to, since some refuse to work."""
        if self.refused and not self.stranded and time.monotonic() > self._looked + POLL_SECONDS:
            self._looked = time.monotonic()
            asked = bundles(self.run.sweep)
            classes = {self.run.planner.stages[keys[0]].resource for keys in self.held.values()}
            self.stranded = not all(fits_somewhere(asked[name], self.refused) for name in classes)
        return self.stranded

    def handed(self, trial_id: str, batch: list[Stage]) -> dict[str, Any]:
        """Return what a worker is told of a batch; it is held until its trial has ended."""
        self.held[trial_id] = [stage.key for stage in batch]
        resource, size = batch[0].resource, self.size(batch[0].key)
        alike = sum(self.size(keys[0]) == size for keys in self.held.values())
        return {
            "class": resource,
            "ticket": self.ticket(trial_id),
            "workers": f"{self.prefix}{size.model_dump_json()}/",
            "beside": min(self.slots[resource], alike),
            "gpus": size.gpu,
            "store": self.run.store.uri,
            "environment": asdict(self.settings),
            "run": self.run.provenance,
            "code": asdict(self.code),
            "refusing": f"{self.prefix}refused/",
            "refused": list(self.refused),
            "stages": [asdict(stage) for stage in batch],
        }


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
            interruption.check()
            if feed.run.over:
                return Searcher.FINISHED
            batch = feed.run.take(feed.slots) if len(feed.held) < feed.limit else []
            if not batch:
                return None
            return feed.handed(trial_id, batch)

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            feed = _feed(token)
            keys = feed.held.pop(trial_id, [])
            feed.heed()  # Another worker may have taken over a batch that a host refused.
            if error or result is None or "results" not in result:
                if worker.left(feed.ticket(trial_id)):
                    feed.run.returned(keys)
                else:
                    feed.run.lost(keys, "the worker process died (out of memory, or its node went)")
                return
            feed.run.finished(results := [Result(**r) for r in json.loads(result["results"])])
            feed.run.returned(set(keys) - {result.key for result in results})

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            del trial_id, result

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).write_text("")

        def restore(self, checkpoint_path: str) -> None:
            del checkpoint_path

    return PlanSearcher()


def _stopper(token: str) -> Any:
    from ray.tune import Stopper

    class Stranded(Stopper):  # type: ignore[misc]
        """Ends everything, and what waits for a place too, when no host is left."""

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            del trial_id, result
            return False

        def stop_all(self) -> bool:
            return _feed(token).look_around()

    return Stranded()


def _worker() -> Any:
    import ray
    from ray import tune
    from ray.experimental import internal_kv

    class StageWorker(tune.Trainable):  # type: ignore[misc]
        """A warm process that runs one batch of stages for each trial it is given.

        It travels by value and imports raysweep only after its host's code was found the same.
        """

        def setup(self, config: dict[str, Any]) -> None:
            if reason := refusal(config["code"]):
                node = ray.get_runtime_context().get_node_id()
                put = internal_kv._internal_kv_put
                put(f"{config['refusing']}{node}", reason.encode(), overwrite=True)
                put(config["ticket"], b"1", overwrite=True)
                put(f"{config['workers']}{node}", b"refuses", overwrite=True)  # nobody waits for it
                os._exit(1)

            from raysweep import device, environment, worker

            environment.apply(environment.Environment(**config["environment"]))
            if not config["gpus"]:
                device.hide_gpus()  # Ray shows every GPU to a process that asked for none.
            self.batch = config
            self.crew = worker.Crew(config["workers"])
            self.leaks = device.Leaks()

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            from raysweep import device, worker

            if device.broken() or self.leaks.found(device.held_bytes()):
                self.crew.leave()
                worker.leave(new_config["ticket"])
            self.batch = new_config
            return True

        def step(self) -> dict[str, Any]:
            from raysweep import worker

            results = [asdict(result) for result in worker.perform(self.batch)]
            self.crew.wait(self.batch["beside"])
            return {"done": True, "stages": len(results), "results": json.dumps(results)}

        def cleanup(self) -> None:
            self.crew.leave()

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            del checkpoint_dir

        def load_checkpoint(self, checkpoint: Any) -> None:
            del checkpoint

    return StageWorker
