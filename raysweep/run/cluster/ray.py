"""Runs a plan on Ray Tune.

The whole sweep is one Tune experiment, and its searcher is the plan: it hands Tune a batch of
stages as soon as their inputs are stored, and nothing ever holds a slot while it waits. Trials are
batches on warm, reused actors. Tune's own state is a cache that is thrown away; what is done is
what is stored.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.experimental import internal_kv

from raysweep import provenance
from raysweep.errors import HeadLost, HostError
from raysweep.provenance import refusal
from raysweep.run import interruption
from raysweep.run.cluster import nodes
from raysweep.run.cluster.head import Head, run_until_lost, waiting_longer
from raysweep.run.cluster.idle import KeepingIdle
from raysweep.run.cluster.nodes import check_room, connect, room, shape_of
from raysweep.run.cluster.session import (
    LOCAL_AHEAD,
    SESSIONS,
    PlanSearcher,
    Session,
    Stranded,
    prefix_of,
)
from raysweep.run.run import Run
from raysweep.sweep.spec import foreign_modules

FORGET_SECONDS = 2.0
LEAVE_SECONDS = 4.0  # records come first where Ray's processes were killed beside us


def run_on_ray(run: Run, *, address: str | None, max_concurrent: int | None) -> None:
    """Run every stage on Ray Tune, on a cluster at `address` or on one started here.

    Args:
        run: the run.
        address: of a running cluster; none: start Ray on this machine and stop it at the end.
        max_concurrent: the most stages that run at once.

    Raises:
        PlanError: if there is no cluster at the address, or this driver may not use it.
        HostError: if every host that could do the work refuses to, or the head is lost.
    """
    lost = False
    printed = ray._private.worker.print_to_stdstream
    ray._private.worker.print_to_stdstream = _unprinted
    try:
        with waiting_longer() as patience:
            place = connect(address, foreign_modules(run.sweep))
            interruption.take_again()
            node = ray.get_runtime_context().get_node_id()
            head = Head(place, node, patience, local=address is None)
            _tune(run, head, local=address is None, max_concurrent=max_concurrent)
    except HeadLost:
        lost = True
        atexit.unregister(ray.shutdown)  # it may wait for the head without end
        raise
    finally:
        if address is not None and not lost:
            _forget(run)
        interruption.end_ray(ray.shutdown, LEAVE_SECONDS, leave=lost)
        ray._private.worker.print_to_stdstream = printed


def _forget(run: Run) -> None:
    """Remove what was told of the run in the cluster's key-value store, if its head answers."""

    def remove() -> None:
        with contextlib.suppress(Exception):
            internal_kv._internal_kv_del(prefix_of(run), del_by_prefix=True)

    removing = threading.Thread(target=remove, daemon=True)  # a lost head is asked for a minute
    removing.start()
    removing.join(FORGET_SECONDS)


def _unprinted(*given: object, **more: object) -> None:
    """Print nothing of what Ray says of its processes: causes of deaths are told in the records."""


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


@contextmanager
def _by_value() -> Iterator[None]:
    """Send what a worker needs before its code was checked as it is, not by name.

    A worker may have any raysweep, or none: what it is asked first must not be looked up there.
    """
    modules = (provenance, nodes, sys.modules[__name__])
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            ray.cloudpickle.unregister_pickle_by_value(module)


def _tune(run: Run, head: Head, *, local: bool, max_concurrent: int | None) -> None:
    if local:
        check_room(run.sweep, room())
    token = f"{id(run)}"
    session = SESSIONS[token] = Session(run, max_concurrent, cluster=not local)
    run.running = session.running

    def end() -> None:
        session.ended, run.running = True, tuple

    try:
        with head.watched():
            run_until_lost(lambda: _fit(token, session, run), head, end)
    finally:
        del SESSIONS[token]
        if not run.over:
            run.schedule.stopping = True
    if session.broken is not None:
        raise session.broken
    if session.hosts.stranded:
        raise HostError(session.hosts.reasons)


def _fit(token: str, session: Session, run: Run) -> None:
    """Carry the run out as one experiment of Tune."""
    for name in ("ray.tune", "ray.tune.execution", "ray.train", "ray.tune.tuner"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    trainable = tune.with_resources(StageWorker, shape_of(run.sweep))
    trainable.__qualname__ = StageWorker.__qualname__  # the name of a process at work
    with (
        _by_value(),
        _tune_settings(session.ahead + LOCAL_AHEAD),
        tempfile.TemporaryDirectory() as folder,
    ):
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=PlanSearcher(token), scheduler=KeepingIdle(), num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="sweep", storage_path=folder, verbose=0, stop=Stranded(token),
                failure_config=tune.FailureConfig(max_failures=0),
                # The folder is on this host: a worker that saved anything there would fail.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()  # fmt: skip
    session.take_in()
    session.hosts.listen()


class StageWorker(tune.Trainable):  # type: ignore[misc]
    """A warm process that runs one batch of stages for each trial it is given.

    It travels by value and imports raysweep only after its host's code was found the same.
    """

    def setup(self, config: dict[str, str]) -> None:
        """Check this host's code, then make the process ready for its first batch."""
        if reason := refusal(json.loads(config["code"])):
            node = ray.get_runtime_context().get_node_id()
            put = internal_kv._internal_kv_put
            put(f"{config['refusing']}{node}", reason.encode(), overwrite=True)
            put(config["ticket"], b"1", overwrite=True)
            os._exit(1)

        from raysweep import environment
        from raysweep.run.cluster import probe, worker
        from raysweep.run.cluster.batch import Batch
        from raysweep.training import device

        self.batch = Batch.unpack(config)
        environment.apply(self.batch.environment)
        if not self.batch.gpus:
            device.hide_gpus()  # Ray shows every GPU to a process that asked for none.
        worker.refuse_gpus(self.batch)
        probe.look_for_storage(self.batch)
        probe.look_for_files(self.batch)
        self.watch = worker.prepare()
        self.leaks = device.Leaks()

    def reset_config(self, new_config: dict[str, str]) -> bool:
        """Take the next batch; a process that is of no more use ends in place of it."""
        from raysweep.run.cluster import probe, worker
        from raysweep.run.cluster.batch import Batch
        from raysweep.training import device

        self.batch = Batch.unpack(new_config)
        if device.broken() or self.leaks.exceeded(device.held_bytes()):
            worker.leave(self.batch.ticket)
        probe.look_for_files(self.batch)
        return True

    def step(self) -> dict[str, int | str]:
        """Run the batch; return its packed results and their number."""
        from raysweep.run.cluster import worker
        from raysweep.run.cluster.batch import pack_results

        results = list(worker.perform(self.batch, self.watch))
        return {"done": True, "stages": len(results), "results": pack_results(results)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing: what is done is what is stored."""
        del checkpoint_dir

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing: what is done is what is stored."""
        del checkpoint
