"""Numbers of stages by kind: wanted, stored, failed, finished by this run; and what trials grew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from raysweep.identity import kind_of
from raysweep.store.heartbeat import KindCount


class Tally:
    """Numbers of stages by kind: one thread counts, others may read.

    Attributes:
        wanted, stored, failed, ran: kind → number of stages, as `KindCount` has them.
        seconds: kind → seconds that the stages which ran took together.
        grown: keys of the stages that trials gained when an outcome that they waited for came.
        resumed_trials: number of these trials.
    """

    def __init__(self) -> None:
        self.wanted: Counter[str] = Counter()
        self.stored: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.ran: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}
        self.grown: list[str] = []
        self.resumed_trials = 0

    def add_run(self, key: str, seconds: float) -> None:
        """Count a stage that this run has finished."""
        kind = kind_of(key)
        self.ran[kind] += 1
        self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds

    def add_growth(self, trials: int, keys: Iterable[str]) -> None:
        """Count trials that have gained stages, or none, from an outcome."""
        self.resumed_trials += trials
        self.grown += keys

    def by_kind(self, out: Iterable[str]) -> dict[str, KindCount]:
        """Return the numbers of each kind; `out` are the keys of the stages handed out."""
        handed = Counter(map(kind_of, out))
        return {
            kind: KindCount(
                wanted=wanted,
                stored=self.stored[kind],
                failed=self.failed[kind],
                out=handed[kind],
                ran=self.ran[kind],
                seconds=round(self.seconds.get(kind, 0.0), 3),
            )
            for kind, wanted in list(self.wanted.items())
        }
