"""The plan as Tune's searcher: batches of ready stages for whatever worker is free."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raysweep import environment
from raysweep.provenance import code_here
from raysweep.run import interruption, worker
from raysweep.run.cluster import bundles, fits_somewhere, refusals, room
from raysweep.run.run import Run, slots_of
from raysweep.stages.stage import Result
from raysweep.sweep.resources import ResourceClass
from raysweep.sweep.spec import foreign_modules

LOCAL_AHEAD = 2
CLUSTER_AHEAD = 200
LOOK_SECONDS = 0.5


class Feed:
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

    def hand_out(self, trial_id: str) -> dict[str, Any] | None:
        """Return what a worker is told with its next batch; None if there is none now."""
        batch = self.run.take(self.slots) if len(self.held) < self.limit else []
        if not batch:
            return None
        self.held[trial_id] = [stage.key for stage in batch]
        resource = batch[0].resource
        size = self.size(batch[0].key)
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
            "stages": [asdict(stage.packed()) for stage in batch],
        }

    def heed(self) -> None:
        """Note which hosts refuse to work: they are handed nothing more."""
        for node, reason in refusals(f"{self.prefix}refused/").items():
            if node not in self.refused:
                self.refused[node] = reason
                self.slots = self._slots()
                self.run.note(reason)

    def look_around(self) -> bool:
        """Return whether what is handed out has no host to go to, since some refuse to work."""
        if self.refused and not self.stranded and time.monotonic() > self._looked + LOOK_SECONDS:
            self._looked = time.monotonic()
            asked = bundles(self.run.sweep)
            classes = {self.run.planner.stages[keys[0]].resource for keys in self.held.values()}
            self.stranded = not all(fits_somewhere(asked[name], self.refused) for name in classes)
        return self.stranded


FEEDS: dict[str, Feed] = {}  # by token


def _feed(token: str) -> Feed:
    """Return a running sweep; pickled by name, so that Tune never pickles the sweep."""
    return FEEDS[token]


def searcher(token: str) -> Any:
    """Return the searcher that hands Tune what a feed has."""
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
            return feed.hand_out(trial_id)

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


def stopper(token: str) -> Any:
    """Return what ends a Tune experiment whose feed is stranded."""
    from ray.tune import Stopper

    class Stranded(Stopper):  # type: ignore[misc]
        """Ends everything, and what waits for a place too, when no host is left."""

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            del trial_id, result
            return False

        def stop_all(self) -> bool:
            return _feed(token).look_around()

    return Stranded()
