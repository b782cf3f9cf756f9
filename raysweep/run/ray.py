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
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from raysweep import provenance
from raysweep.errors import HostError
from raysweep.provenance import refusal
from raysweep.run import interruption
from raysweep.run.cluster import check_room, connect, room, shape_of
from raysweep.run.feed import FEEDS, LOCAL_AHEAD, Feed, searcher, stopper
from raysweep.run.run import Run

LEAVE_SECONDS = 4.0  # records come first where Ray's processes were killed beside us


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
    feed = FEEDS[token] = Feed(run, most, cluster=cluster)
    for name in ("ray.tune", "ray.tune.execution", "ray.train", "ray.tune.tuner"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # A worker may have any raysweep, or none: what it is asked first must not be looked up there.
    ray.cloudpickle.register_pickle_by_value(provenance)
    try:
        with _tune_settings(feed.ahead + LOCAL_AHEAD), tempfile.TemporaryDirectory() as folder:
            tune.Tuner(
                tune.with_resources(_worker(), shape_of(run.sweep)),
                tune_config=tune.TuneConfig(
                    search_alg=searcher(token), num_samples=-1, reuse_actors=True,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name="sweep", storage_path=folder, verbose=0, stop=stopper(token),
                    failure_config=tune.FailureConfig(max_failures=0),
                    # The folder is on this host: a worker that saved anything there would fail.
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            ).fit()  # fmt: skip
    finally:
        ray.cloudpickle.unregister_pickle_by_value(provenance)
        del FEEDS[token]
    if not run.over:
        run.schedule.stopping = True
    if feed.stranded:
        raise HostError("\n".join(feed.refused.values()))


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

            from raysweep import environment
            from raysweep.run import worker
            from raysweep.training import device

            environment.apply(environment.Environment(**config["environment"]))
            if not config["gpus"]:
                device.hide_gpus()  # Ray shows every GPU to a process that asked for none.
            self.batch = config
            self.crew = worker.Crew(config["workers"])
            self.leaks = device.Leaks()

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            from raysweep.run import worker
            from raysweep.training import device

            if device.broken() or self.leaks.exceeded(device.held_bytes()):
                self.crew.leave()
                worker.leave(new_config["ticket"])
            self.batch = new_config
            return True

        def step(self) -> dict[str, Any]:
            from raysweep.run import worker

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
