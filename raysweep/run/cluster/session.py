"""The plan as Tune's searcher: batches of ready stages for whatever worker is free."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ray.tune import Stopper
from ray.tune.search import Searcher

from raysweep import environment
from raysweep.provenance import code_here
from raysweep.run.cluster import worker
from raysweep.run.cluster.batch import Batch, unpack_results
from raysweep.run.cluster.death import Death, death_of
from raysweep.run.cluster.head import Ended
from raysweep.run.cluster.hosts import Hosts
from raysweep.run.cluster.idle import error_of
from raysweep.run.cluster.nodes import bundles, hosts
from raysweep.run.cluster.watch import running_stages
from raysweep.run.queue import QueueTimes
from raysweep.run.run import Run
from raysweep.stages.stage import Resource, Result, Stage
from raysweep.store.heartbeat import RunningStage
from raysweep.sweep.spec import foreign_modules

LOCAL_AHEAD = 2
CLUSTER_AHEAD = 200
GIB = 1 << 30
WORTH = 4  # stages that are left for each worker that is started at once


def prefix_of(run: Run) -> str:
    """Return the beginning of all names under which a run is told of in Ray's key-value store."""
    return f"raysweep/{run.ledger.run}/"


@dataclass(frozen=True, kw_only=True)
class Handed:
    """A batch that was handed out: its class, the keys of its stages, the nodes it must not go to.

    One without stages starts a worker.
    """

    resource: Resource
    keys: tuple[str, ...]
    avoided: tuple[str, ...]


class Session:
    """The state behind a running searcher; kept in `SESSIONS`, since Tune pickles the searcher.

    `broken` is what first went wrong in the driver itself, while it took in a result; `ended`, set
    by another thread, ends Tune wherever it asks for something.
    """

    def __init__(self, run: Run, max_concurrent: int | None, *, cluster: bool) -> None:
        self.run = run
        self.settings = environment.gathered(local=not cluster)
        self.prefix = prefix_of(run)
        self.code = code_here(foreign_modules(run.sweep))
        self.hosts = Hosts(run, self.prefix, max_concurrent)
        self.broken: Exception | None = None
        self.ended = False
        self._idle = False
        self.queue = QueueTimes(run)
        self._larger: dict[str, float] = {}  # stage → the memory that it is tried again with
        self.held: dict[str, Handed] = {}  # by trial
        self._arrived: deque[tuple[str, list[str], list[Result] | None]] = deque()
        least = CLUSTER_AHEAD if cluster else 0
        self.ahead = max_concurrent or max(least, *self.hosts.slots.values())
        self.limit = self.ahead + (0 if max_concurrent else LOCAL_AHEAD)
        self._starts = self._first_workers()
        self._prepared: list[Stage] = []
        self._fresh = False

    def ticket(self, trial_id: str) -> str:
        """Return the name under which a worker says that it ended before it began a batch."""
        return f"{self.prefix}left/{trial_id}"

    def _first_workers(self) -> list[Resource]:
        """Return the class of each worker that is started at once, before there is a batch for it.

        The start of a worker takes seconds, and mostly a single stage is ready at first.
        """
        schedule = self.run.schedule
        left = Counter(self.run.planner.stages[k].resource for k in schedule.wanted - schedule.done)
        each = ([name] * min(self.hosts.slots[name], left[name] // WORTH) for name in left)
        return [one for turn in zip_longest(*each) for one in turn if one][: self.ahead - 1]

    def hand_out(self, trial_id: str) -> Batch | None:
        """Return the batch for a trial of Tune; None if no stage is ready now."""
        known, stages = self.hosts, []
        if len(self.held) < self.limit:
            stages, self._prepared = self._prepared or self.run.take(known.slots), []
        while stages and stages[0].resource == "gpu" and known.no_gpu_left():
            keys = [stage.key for stage in stages]
            self.run.finished(
                Result(key=key, status="failed", error=known.reasons, lasting=False) for key in keys
            )
            stages = self.run.take(known.slots)
        self._idle = not stages
        if stages:
            return self._batch(trial_id, stages[0].resource, stages)
        if self._starts and 0 < len(self.held) < self.limit:
            return self._batch(trial_id, self._starts.pop(0), ())
        return None

    def _batch(self, trial_id: str, resource: Resource, stages: Sequence[Stage]) -> Batch:
        known, keys = self.hosts, tuple(stage.key for stage in stages)
        handed = Handed(resource=resource, keys=keys, avoided=known.avoided(resource, stages))
        self.held[trial_id] = handed
        limits = {stage.key: limit for stage in stages if (limit := self.run.limits.of(stage))}
        memory = self._larger.get(keys[0]) if keys else None
        return Batch(
            resource=resource,
            code=self.code,
            ticket=self.ticket(trial_id),
            refusing=known.refusing,
            lacking=known.lacks,
            marker=self.run.folder.description,
            prefix=self.prefix,
            trial=trial_id,
            limits=limits,
            larger={"memory": memory} if memory else {},
            gpus=getattr(self.run.sweep.resources, resource).gpu,
            store=self.run.store.uri,
            environment=self.settings,
            provenance=self.run.provenance,
            refused=handed.avoided,
            stages=tuple(stage.packed() for stage in stages),
        )

    def running(self) -> Sequence[RunningStage]:
        """Return the stages that workers perform now; another thread may ask."""
        held = list(self.held.values())
        return running_stages(self.prefix, [key for handed in held for key in handed.keys])

    def check_hosts(self) -> bool:
        """Return whether no host is left for what was handed out, and nothing else can run."""
        waiting = {(handed.resource, handed.avoided) for handed in self.held.values()}
        return self.hosts.look(waiting, idle=self._idle)

    def arrived(self, trial_id: str, packed: str | None) -> None:
        """Note that a batch has ended: with its packed results, or without any."""
        handed = self.held.pop(trial_id, None)
        keys = list(handed.keys) if handed else []
        results = None if packed is None else self.queue.timed(unpack_results(packed))
        self._starts = [] if keys else self._starts  # from now on there are batches
        self._arrived.append((trial_id, keys, results))
        self._fresh = True

    def results_wait(self) -> bool:
        """Return whether all workers have a batch; else take in what has arrived, for more.

        A batch that is prepared goes out before, so that no worker waits for the driver.
        """
        if not self._arrived:
            return False
        if len(self.held) >= min(self.ahead, sum(self.hosts.slots.values())):
            return True
        if not self._prepared:
            self.take_in()
        return False

    def catch_up(self) -> None:
        """Do what a free worker need not wait for, once Tune had a turn to give it a batch."""
        if self._arrived and self._fresh:
            self._fresh = False
            return
        self.take_in()
        # A search is not asked ahead of time: it is to know the results that come until then.
        full = len(self.held) >= self.limit == self.ahead
        if full and not self._prepared and self.run.source is None and self.run.schedule.ready:
            self._prepared = self.run.take(self.hosts.slots)

    def take_in(self) -> None:
        """Take in what has arrived; an error in that ends the experiment.

        Tune would blame the batch for it, and then wait for its stages without end.
        """
        while self._arrived:
            try:
                self._take(*self._arrived.popleft())
            except Exception as fault:  # noqa: BLE001  it is raised again when Tune has ended
                self.broken = self.broken or fault

    def _take(self, trial_id: str, keys: list[str], results: list[Result] | None) -> None:
        """Take in the results of a batch, or that its worker has ended without any."""
        if results is None:
            self.hosts.listen()
            self.take_death(trial_id, keys)
            return
        self.run.finished(results)
        self.run.returned(set(keys) - {result.key for result in results})

    def take_death(self, trial_id: str, keys: list[str]) -> None:
        """Take in that the worker of a batch has died: what is known of it decides what follows."""
        error = error_of(trial_id)
        if worker.ended_early(self.ticket(trial_id)):
            self.run.returned(keys)
            return
        death = death_of(self.prefix, trial_id, self.ticket(trial_id), keys, error)
        if death.unfit:
            self.hosts.failed_start(death.unfit, death.reason)
            self.run.returned(keys)
            return
        key = death.key if death.key in keys else keys[0] if len(keys) == 1 else ""
        if not key or key in self.run.store.manifests([key])[0]:
            self.run.lost(keys, death.reason, counts=death.counts)
            return
        rest = [one for one in keys if one != key]
        if rest:
            self.run.lost(rest, death.reason, counts=False)
        if death.of_memory:
            death = self._with_more_memory(key, death)
        if death.lasting:
            failed = Result(key=key, status="failed", error=death.reason, trace=death.log)
            self.run.finished([failed])
        else:
            log = environment.masked(death.log).encode()
            self.run.store.try_write(self.run.folder.log(key), log)
            self.run.lost([key], death.reason, counts=death.counts)

    def _with_more_memory(self, key: str, death: Death) -> Death:
        """Let a stage whose host ran out of memory ask for more, once; return what follows."""
        resource = self.run.planner.stages[key].resource
        asked = bundles(self.run.sweep)[resource].get("memory", 0)
        most = max(
            (host.get("memory", 0) for host in hosts(self.hosts.refused[resource])), default=0
        )
        more = min(max(2 * asked, most / 2), most)
        field = f"resources.{resource}.memory"
        if key in self._larger or more <= asked:
            told = self._larger.get(key, asked) / GIB
            return replace(
                death, lasting=True,
                reason=f"OutOfMemory: {death.reason}; it had asked for {told:.2g} GiB, and no host "
                f"has more to give. Raise {field} and launch where hosts have more, or give the "
                f"stage less to hold",
            )  # fmt: skip
        self._larger[key] = more
        return replace(
            death, reason=f"{death.reason}; tried again alone with {more / GIB:.2g} GiB ({field})"
        )


SESSIONS: dict[str, Session] = {}  # by token


def _session(token: str) -> Session:
    """Return a session.

    Raises:
        Ended: if it is to hear nothing more.
    """
    session = SESSIONS.get(token)
    if session is None or session.ended:
        raise Ended
    return session


class PlanSearcher(Searcher):  # type: ignore[misc]
    """Hands Tune batches of ready stages; None while nothing is ready."""

    def __init__(self, token: str) -> None:
        super().__init__(metric="stages", mode="max")
        self._token = token

    def suggest(self, trial_id: str) -> dict[str, str] | str | None:
        """Return the next batch, packed; None if no stage is ready now.

        A worker that is free gets the batch that is there before its results are taken in.
        """
        session = _session(self._token)
        if session.results_wait():
            return None
        if session.run.over:
            return str(Searcher.FINISHED)
        batch = session.hand_out(trial_id)
        return None if batch is None else batch.pack()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Note that a batch has ended, with results or without."""
        packed = None if error or result is None else result.get("results")
        _session(self._token).arrived(trial_id, packed)

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file: Tune's state is thrown away."""
        Path(checkpoint_path).write_bytes(b"")

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: what is done is what is stored."""
        del checkpoint_path


class Stranded(Stopper):  # type: ignore[misc]
    """Ends the experiment, with the batches handed out, when no host is left for them.

    It ends it, too, when the driver could not take in a result.
    """

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: no single trial is ended."""
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        """Return whether no batch handed out can come to an end that is taken in."""
        session = _session(self._token)
        session.catch_up()
        return session.broken is not None or session.check_hosts()
