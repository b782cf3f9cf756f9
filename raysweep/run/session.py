"""The plan as Tune's searcher: batches of ready stages for whatever worker is free."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray.tune import Stopper
from ray.tune.search import Searcher

from raysweep import environment
from raysweep.provenance import code_here
from raysweep.run import interruption, worker
from raysweep.run.batch import Batch, unpack_results
from raysweep.run.cluster import bundles, fits_any_host, refusals, room
from raysweep.run.run import Run, slots_of
from raysweep.sweep.spec import foreign_modules

LOCAL_AHEAD = 2
CLUSTER_AHEAD = 200
LOOK_SECONDS = 0.5


class Session:
    """The state behind a running searcher; kept in `SESSIONS`, since Tune pickles the searcher.

    `refused` holds why hosts refuse to work, by node id; `stranded` is set when no other is left.
    `broken` is what went wrong in the driver itself, while it took in a result.
    """

    def __init__(self, run: Run, max_concurrent: int | None, *, cluster: bool) -> None:
        self.run = run
        self.settings = environment.gathered(local=not cluster)
        self.prefix = f"raysweep/{run.ledger.run}/"
        self.code = code_here(foreign_modules(run.sweep))
        self.refused: dict[str, str] = {}
        self.stranded = False
        self.broken: Exception | None = None
        self._looked = 0.0
        self.held: dict[str, list[str]] = {}
        self._max_concurrent = max_concurrent
        self.slots = self._slots()
        self.ahead = max_concurrent or max(CLUSTER_AHEAD if cluster else 0, *self.slots.values())
        self.limit = self.ahead + (0 if max_concurrent else LOCAL_AHEAD)

    def _slots(self) -> dict[str, int]:
        have = room(self.refused)
        cpus, gpus = have.get("CPU", 1), have.get("GPU", 0)
        return slots_of(cpus, gpus, self.run.sweep, self._max_concurrent)

    def ticket(self, trial_id: str) -> str:
        """Return the name under which a worker says that it ended before it began a batch."""
        return f"{self.prefix}left/{trial_id}"

    def hand_out(self, trial_id: str) -> Batch | None:
        """Return the batch for a trial of Tune; None if no stage is ready now."""
        stages = self.run.take(self.slots) if len(self.held) < self.limit else []
        if not stages:
            return None
        self.held[trial_id] = [stage.key for stage in stages]
        resource = stages[0].resource
        return Batch(
            resource=resource,
            code=self.code,
            ticket=self.ticket(trial_id),
            refusing=f"{self.prefix}refused/",
            gpus=getattr(self.run.sweep.resources, resource).gpu,
            store=self.run.store.uri,
            environment=self.settings,
            provenance=self.run.provenance,
            refused=tuple(self.refused),
            stages=tuple(stage.packed() for stage in stages),
        )

    def note_refusals(self) -> None:
        """Note which hosts refuse to work: they are handed nothing more."""
        for node, reason in refusals(f"{self.prefix}refused/").items():
            if node not in self.refused:
                self.refused[node] = reason
                self.slots = self._slots()
                self.run.note(reason)

    def check_hosts(self) -> bool:
        """Return whether no host is left for the batches handed out, since some refuse to work."""
        if self.refused and not self.stranded and time.monotonic() > self._looked + LOOK_SECONDS:
            self._looked = time.monotonic()
            asked = bundles(self.run.sweep)
            classes = {self.run.planner.stages[keys[0]].resource for keys in self.held.values()}
            self.stranded = not all(fits_any_host(asked[name], self.refused) for name in classes)
        return self.stranded


SESSIONS: dict[str, Session] = {}  # by token


class PlanSearcher(Searcher):  # type: ignore[misc]
    """Hands Tune batches of ready stages; None while nothing is ready."""

    def __init__(self, token: str) -> None:
        super().__init__(metric="stages", mode="max")
        self._token = token

    def suggest(self, trial_id: str) -> dict[str, str] | str | None:
        """Return the next batch, packed; None if no stage is ready now."""
        session = SESSIONS[self._token]
        interruption.check()
        if session.run.over:
            return str(Searcher.FINISHED)
        batch = session.hand_out(trial_id)
        return None if batch is None else batch.pack()

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take in the end of a batch; an error in that ends the experiment.

        Tune would blame the batch for it, and then wait for its stages without end.
        """
        try:
            self._take_in(trial_id, None if error or result is None else result.get("results"))
        except Exception as fault:  # noqa: BLE001  it is raised again when Tune has ended
            SESSIONS[self._token].broken = fault

    def _take_in(self, trial_id: str, packed: str | None) -> None:
        """Take in the results of a batch, or that its worker has ended without any."""
        session = SESSIONS[self._token]
        keys = session.held.pop(trial_id, [])
        session.note_refusals()  # Another worker may have taken over a batch that a host refused.
        if packed is None:
            if worker.ended_early(session.ticket(trial_id)):
                session.run.returned(keys)
            else:
                session.run.lost(keys, "the worker process died (out of memory, or its node went)")
            return
        results = unpack_results(packed)
        session.run.finished(results)
        session.run.returned(set(keys) - {result.key for result in results})

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file: Tune's state is thrown away."""
        Path(checkpoint_path).write_text("")

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
        session = SESSIONS[self._token]
        return session.broken is not None or session.check_hosts()
