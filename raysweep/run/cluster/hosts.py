"""The hosts of a cluster as one run sees them: which refuse to work, lack files, or fit nothing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence

from raysweep.run.cluster.nodes import bundles, fits_any_host, refusals, room, slots_of
from raysweep.run.cluster.unmet import Unmet
from raysweep.run.run import Run
from raysweep.stages.prepare import Decode
from raysweep.stages.stage import Resource, Stage

LOOK_SECONDS = 0.5
STARTS = 2  # of workers that fail on a host, until it is given no work


class Hosts:
    """The hosts that a run may use, and for what.

    Attributes:
        refused: class of stages → node id → why that host does none of them.
        lacking: node id → which files that host lacks.
        unmet: classes of stages that no host has room for.
        stranded: whether nothing that is left can run.
    """

    def __init__(self, run: Run, prefix: str, max_concurrent: int | None) -> None:
        """Begin with every host.

        Args:
            run: told what hosts say.
            prefix: of everything that is said of the run in Ray's key-value store.
            max_concurrent: the most stages that run at once.
        """
        self._run = run
        self.refusing, self.lacks = f"{prefix}refused/", f"{prefix}lacking/"
        self._most = max_concurrent
        self._asked = bundles(run.sweep)
        self._looked = 0.0
        self.refused: dict[Resource, dict[str, str]] = {"cpu": {}, "gpu": {}}
        self.lacking: dict[str, str] = {}
        self.unmet = Unmet(run.sweep)
        self.stranded = False
        self._failed_starts: Counter[str] = Counter()
        self.slots = self._slots()

    def _slots(self) -> dict[str, int]:
        cpus = room(self.refused["cpu"]).get("CPU", 1)
        gpus = room(self.refused["gpu"]).get("GPU", 0)
        slots = slots_of(cpus, gpus, self._run.sweep, self._most)
        return {name: 0 if name in self.unmet.told else fit for name, fit in slots.items()}

    def avoided(self, resource: Resource, stages: Sequence[Stage]) -> tuple[str, ...]:
        """Return the nodes that a batch must not go to; those without data, if others are left."""
        refused = self.refused[resource]
        avoided = {*refused, *self.lacking}
        decodes = any(isinstance(stage.work, Decode) for stage in stages)
        some_are_left = decodes and fits_any_host(self._asked[resource], avoided)
        return tuple(sorted(avoided)) if some_are_left else tuple(refused)

    def listen(self) -> None:
        """Note which hosts refuse to work, of all classes or of one: they are handed none more."""
        for name, reason in refusals(self.refusing).items():
            resource, _, node = name.rpartition("/")
            self._refuse(node, reason, [of for of in self.refused if of == (resource or of)])
        for node, reason in refusals(self.lacks).items():
            if self.lacking.setdefault(node, reason) is reason:
                self._run.note(reason)

    def _refuse(self, node: str, reason: str, classes: Sequence[Resource]) -> None:
        if any(node not in self.refused[of] for of in classes):
            for of in classes:
                self.refused[of].setdefault(node, reason)
            self.slots = self._slots()
            self._run.note(reason)

    def failed_start(self, node: str, reason: str) -> None:
        """Take in that a worker could not start on a host; one where it happens again gets none."""
        self._failed_starts[node] += 1
        if self._failed_starts[node] >= STARTS:
            self._refuse(node, reason, [*self.refused])

    def no_gpu_left(self) -> bool:
        """Return whether hosts refuse GPU work alone, and none is left for it: others go on."""
        if not self.refused["gpu"].keys() - self.refused["cpu"].keys():
            return False
        left = {name: fits_any_host(self._asked[name], of) for name, of in self.refused.items()}
        return left["cpu"] and not left["gpu"]

    def look(self, waiting: Collection[tuple[Resource, tuple[str, ...]]], *, idle: bool) -> bool:
        """Return whether nothing that is left can run.

        Args:
            waiting: of each batch handed out, its class and the nodes that it avoids.
            idle: whether no stage was ready when last one was asked for.
        """
        if self.stranded or time.monotonic() < self._looked + LOOK_SECONDS:
            return self.stranded
        self._looked = time.monotonic()
        self.listen()  # another worker may have taken over a refused batch
        classes = {name for name, _ in waiting}
        if lines := self.unmet.look(classes):
            self.slots = self._slots()
            for line in lines:
                self._run.note(line)
        told = self.unmet.told
        refused = any(self.refused.values()) and any(
            name not in told and not fits_any_host(self._asked[name], avoided)
            for name, avoided in waiting
        )
        self.stranded = refused or (bool(told) and idle and classes <= told.keys())
        return self.stranded

    @property
    def reasons(self) -> str:
        """The reasons why what is left cannot run, a line each."""
        refused = (reason for of in self.refused.values() for reason in of.values())
        return "\n".join(dict.fromkeys([*refused, *self.unmet.told.values()]))
