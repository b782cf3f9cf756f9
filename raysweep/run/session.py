"""The plan as Tune's searcher: batches of ready stages for whatever worker is free."""

from __future__ import annotations

import time
from collections.abc import Sequence
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
from raysweep.run.unmet import Unmet
from raysweep.stages.prepare import Decode
from raysweep.stages.stage import Stage
from raysweep.sweep.spec import foreign_modules

LOCAL_AHEAD = 2
CLUSTER_AHEAD = 200
LOOK_SECONDS = 0.5


class Session:
    """The state behind a running searcher; kept in `SESSIONS`, since Tune pickles the searcher.

    `refused` holds why hosts refuse to work, by node id, `lacking` which of them lack data, and
    `unmet` what no host can run; `stranded` is set when nothing that is left can run.
    """

    def __init__(self, run: Run, max_concurrent: int | None, *, cluster: bool) -> None:
        self.run = run
        self.settings = environment.gathered(local=not cluster)
        self.prefix = f"raysweep/{run.ledger.run}/"
        self.code = code_here(foreign_modules(run.sweep))
        self.refused: dict[str, str] = {}
        self.lacking: dict[str, str] = {}
        self.unmet = Unmet(run.sweep)
        self.stranded = False
        self._idle = False
        self._looked = 0.0
        self.held: dict[str, list[str]] = {}
        self._max_concurrent = max_concurrent
        self.slots = self._slots()
        self.ahead = max_concurrent or max(CLUSTER_AHEAD if cluster else 0, *self.slots.values())
        self.limit = self.ahead + (0 if max_concurrent else LOCAL_AHEAD)

    def _slots(self) -> dict[str, int]:
        have = room(self.refused)
        cpus, gpus = have.get("CPU", 1), have.get("GPU", 0)
        slots = slots_of(cpus, gpus, self.run.sweep, self._max_concurrent)
        return {name: 0 if name in self.unmet.told else fit for name, fit in slots.items()}

    def ticket(self, trial_id: str) -> str:
        """Return the name under which a worker says that it ended before it began a batch."""
        return f"{self.prefix}left/{trial_id}"

    def hand_out(self, trial_id: str) -> Batch | None:
        """Return the batch for a trial of Tune; None if no stage is ready now."""
        stages = self.run.take(self.slots) if len(self.held) < self.limit else []
        self._idle = not stages
        if not stages:
            return None
        self.held[trial_id] = [stage.key for stage in stages]
        resource = stages[0].resource
        return Batch(
            resource=resource,
            code=self.code,
            ticket=self.ticket(trial_id),
            refusing=f"{self.prefix}refused/",
            lacking=f"{self.prefix}lacking/",
            marker=self.run.folder.description,
            gpus=getattr(self.run.sweep.resources, resource).gpu,
            store=self.run.store.uri,
            environment=self.settings,
            provenance=self.run.provenance,
            refused=self._avoided(stages),
            stages=tuple(stage.packed() for stage in stages),
        )

    def _avoided(self, stages: Sequence[Stage]) -> tuple[str, ...]:
        """Return the nodes that a batch must not go to; those without data, if others are left."""
        avoided = {*self.refused, *self.lacking}
        asked = bundles(self.run.sweep)[stages[0].resource]
        decodes = any(isinstance(stage.work, Decode) for stage in stages)
        some_are_left = decodes and fits_any_host(asked, avoided)
        return tuple(sorted(avoided)) if some_are_left else tuple(self.refused)

    def note_refusals(self) -> None:
        """Note which hosts refuse to work: they are handed nothing more."""
        for node, reason in refusals(f"{self.prefix}refused/").items():
            if node not in self.refused:
                self.refused[node] = reason
                self.slots = self._slots()
                self.run.note(reason)
        for node, reason in refusals(f"{self.prefix}lacking/").items():
            if self.lacking.setdefault(node, reason) is reason:
                self.run.note(reason)

    def check_hosts(self) -> bool:
        """Return whether nothing that is left can run on a host that is up and does not refuse."""
        if self.stranded or time.monotonic() < self._looked + LOOK_SECONDS:
            return self.stranded
        self._looked = time.monotonic()
        classes = {self.run.planner.stages[keys[0]].resource for keys in self.held.values()}
        if lines := self.unmet.look(classes):
            self.slots = self._slots()
            for line in lines:
                self.run.note(line)
        asked = bundles(self.run.sweep)
        refused = bool(self.refused) and any(
            name not in self.unmet.told and not fits_any_host(asked[name], self.refused)
            for name in classes
        )
        waits_in_vain = bool(self.unmet.told) and self._idle and classes <= self.unmet.told.keys()
        self.stranded = refused or waits_in_vain
        return self.stranded

    @property
    def reasons(self) -> str:
        """The reasons why what is left cannot run, a line each."""
        return "\n".join(dict.fromkeys([*self.refused.values(), *self.unmet.told.values()]))


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
        """Take in the results of a batch, or that its worker has ended without any."""
        session = SESSIONS[self._token]
        keys = session.held.pop(trial_id, [])
        session.note_refusals()  # Another worker may have taken over a batch that a host refused.
        if error or result is None or "results" not in result:
            if worker.ended_early(session.ticket(trial_id)):
                session.run.returned(keys)
            else:
                session.run.lost(keys, "the worker process died (out of memory, or its node went)")
            return
        results = unpack_results(result["results"])
        session.run.finished(results)
        session.run.returned(set(keys) - {result.key for result in results})

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file: Tune's state is thrown away."""
        Path(checkpoint_path).write_text("")

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: what is done is what is stored."""
        del checkpoint_path


class Stranded(Stopper):  # type: ignore[misc]
    """Ends the experiment, with the batches that wait for a host, when no host is left."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: no single trial is ended."""
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        """Return whether no host is left for the batches handed out."""
        return SESSIONS[self._token].check_hosts()
