"""What a launch would do, before it does it: counts, sharing, reasons, and an estimate."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from raysweep import ledger
from raysweep.driver import timings
from raysweep.graph import STAGE_VERSIONS
from raysweep.plan import Planner
from raysweep.schedule import GUESS_SECONDS, Schedule
from raysweep.spec import Sweep, check_layers
from raysweep.store import Store


@dataclass(frozen=True, kw_only=True)
class KindPreview:
    """One stage kind of a plan.

    Attributes:
        kind: the stage kind.
        naive: how many there would be if every trial did its own.
        distinct: how many there are, each shared by all trials that need it.
        cached: how many are stored already.
        run: how many would run.
        why: reason → count, over those that would run.
        seconds: expected seconds of those that would run.
        guessed: how many of them have no recorded seconds.
    """

    kind: str
    naive: int
    distinct: int
    cached: int
    run: int
    why: dict[str, int]
    seconds: float
    guessed: int


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A plan at a glance; `undecided` trials grow at most `below` further stages.

    `forecasts` are what defenses say of the size of their work.
    """

    trials: int
    forecasts: tuple[str, ...] = ()
    kinds: list[KindPreview] = field(default_factory=list)
    undecided: int = 0
    below: int = 0

    @property
    def seconds(self) -> float:
        """Expected seconds of all stages that would run, on one slot."""
        return sum(kind.seconds for kind in self.kinds)


def preview(sweep: Sweep, store: Store) -> Preview:
    """Plan a sweep against a store.

    Raises:
        PlanError: if the sweep cannot be carried out.
        StoreError: if the store cannot be written.
    """
    planner = Planner(sweep)
    check_layers(sweep)
    store.check()
    recorded = timings(store)
    failed = {
        line["key"] for line in ledger.read(store, sweep.name) if line.get("event") == "failed"
    }
    schedule = Schedule(
        planner, set(store.done()), lambda key: store.outcome(key) or {}, seconds=recorded
    )
    naive, undecided, below = _naive(planner, schedule)
    kinds = []
    for kind in STAGE_VERSIONS:
        keys = [key for key in schedule.wanted if key.partition("-")[0] == kind]
        if not keys:
            continue
        todo = [key for key in keys if key not in schedule.done]
        why: Counter[str] = Counter()
        for key in todo:
            stage = planner.stages[key]
            if key in failed:
                why["failed before"] += 1
            elif all(need in schedule.done for need in stage.needs):
                why["not stored"] += 1
            else:
                why["an input runs first"] += 1
        names = [(planner.stages[key].kind, planner.stages[key].method) for key in todo]
        kinds.append(
            KindPreview(
                kind=kind,
                naive=naive[kind],
                distinct=len(keys),
                cached=len(keys) - len(todo),
                run=len(todo),
                why=dict(why),
                seconds=sum(recorded.get(name, GUESS_SECONDS[kind]) for name in names),
                guessed=sum(name not in recorded for name in names),
            )
        )
    said = {
        f"{trial.defense.name} on {trial.dataset.name}: {text}"
        for trial in planner.trials
        if (text := trial.defense.forecast(len(planner.facts(trial.dataset).labels)))
    }
    return Preview(
        trials=len(planner.trials), kinds=kinds, undecided=undecided, below=below,
        forecasts=tuple(sorted(said)),
    )  # fmt: skip


def _naive(planner: Planner, schedule: Schedule) -> tuple[Counter[str], int, int]:
    """Count stages trial by trial, as if nothing were shared, and the trials still undecided."""
    counts: Counter[str] = Counter()
    undecided = below = 0
    closures: dict[str, Counter[str]] = {}

    def closure(key: str) -> Counter[str]:
        if key not in closures:
            kinds = {key: key.partition("-")[0]}
            stack = list(planner.stages[key].needs)
            while stack:
                need = stack.pop()
                if need not in kinds:
                    kinds[need] = need.partition("-")[0]
                    stack.extend(planner.stages[need].needs)
            closures[key] = Counter(kinds.values())
        return closures[key]

    for trial in planner.trials:
        route = planner.route(trial, schedule.outcomes)
        last = route.evaluate or route.waiting
        assert last is not None
        counts += closure(last)
        if route.waiting is not None:
            undecided += 1
            # A model (retrained or repaired), its predictions, the evaluation.
            below += 3
    return counts, undecided, below
