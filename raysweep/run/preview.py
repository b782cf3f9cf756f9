"""A forecast of a launch: counts of stages, sharing, reasons, and an estimate of the time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field

from raysweep.identity import Json, kind_of
from raysweep.plan.costs import Costs, shape_of
from raysweep.plan.fits import check_fits
from raysweep.plan.planner import Planner
from raysweep.plan.race import RacingPlanner, planner_of
from raysweep.plan.route import Route
from raysweep.results import targets
from raysweep.run.force import forcing
from raysweep.run.limits import Limit, Limits, forecast
from raysweep.run.nearest import Difference, nearest
from raysweep.run.racing import Racing
from raysweep.run.schedule import Schedule
from raysweep.run.sources import changed_sources
from raysweep.stages.stage import in_order_of_work
from raysweep.store import Store, ledger
from raysweep.store.events import Failed
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.spec import Sweep, check_layers
from raysweep.sweep.trials import Trial

# What a decision may grow: a model (retrained or repaired), its predictions, the evaluation.
GROWN = 3
LARGE = (
    "its files are larger than {} MiB: the plan looks at labels and first images alone, all images "
    "are checked before any training"
)
NEW, BELOW = "not stored", "an input runs first"
MAYBE = "again if an input changes"


@dataclass(frozen=True, kw_only=True)
class KindPreview:
    """One stage kind of a plan.

    Attributes:
        kind: the stage kind.
        naive: how many there would be if every trial did its own.
        distinct: how many there are, each shared by all trials that need it.
        cached: how many are stored already.
        run: how many would run.
        why: reason → count, over all that would run, or may run.
        nearest: how they differ from the nearest stored stage; none if no such stage is known.
        seconds: expected seconds of those that would run.
        guessed: how many of them have no recorded seconds.
    """

    kind: str
    naive: int
    distinct: int
    cached: int
    run: int
    why: dict[str, int]
    nearest: Difference | None
    seconds: float
    guessed: int

    @property
    def reasons(self) -> str:
        """The reasons in words."""
        told = ", ".join(f"{count} {reason}" for reason, count in self.why.items())
        return f"{told}; nearest stored: {self.nearest}" if self.nearest else told


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A plan at a glance.

    Attributes:
        trials: how many.
        forecasts: what methods say of the size of their work, and of what is doubtful; how long
            stages may run, where that follows from what was timed.
        kinds: stages that are known.
        undecided: trials whose further stages depend on a decision.
        below: how many these are at most.
        below_seconds: about how long they take, if none is shared.
        damaged: keys of stored stages that are damaged and count as missing.
    """

    trials: int
    forecasts: tuple[str, ...] = ()
    kinds: list[KindPreview] = field(default_factory=list)
    undecided: int = 0
    below: int = 0
    below_seconds: float = 0.0
    damaged: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Expected seconds of all known stages that would run, on one slot."""
        return sum(kind.seconds for kind in self.kinds)

    def pack(self) -> dict[str, Json]:
        """Return the plan as JSON values."""
        return {**asdict(self), "seconds": self.seconds}


def preview(sweep: Sweep, store: Store, force: Sequence[str] = ()) -> Preview:
    """Plan a sweep against a store; nothing is written.

    Args:
        sweep: what would be run.
        store: where artifacts are, or would be.
        force: stage kinds and methods whose stages are done again although they are stored.

    Raises:
        SpecError: if `force` names neither a stage kind nor a method of the sweep.
        PlanError: if the sweep cannot be carried out.
        StoreError: if the store cannot be read.
    """
    planner = planner_of(sweep)
    check_layers(sweep)
    check_fits(planner)
    costs = Costs(planner, store)
    limits, longest = Limits(sweep, costs, store), list[Limit | None]()
    events = ledger.read(SweepFolder(store, sweep.name))
    failed = {event.key for event in events if isinstance(event, Failed)}
    damaged: list[str] = []
    schedule = Schedule(
        planner, store.done(), lambda keys: store.manifests(keys)[0],
        force=forcing(force, sweep), expected=costs,
        discard=damaged.append,  # from the plan alone: nothing is changed
    )  # fmt: skip
    if isinstance(planner, RacingPlanner):
        Racing(planner, store).take_in_stored(schedule)
    changed = changed_sources(planner, store, schedule.stored.keys)
    naive, waiting = _naive(planner, schedule)
    undecided = [_below(planner, costs, trial, route) for trial, route in waiting]
    wanted = {key: stage for key, stage in planner.stages.items() if key in schedule.wanted}
    kinds = []
    for kind in in_order_of_work(wanted.values()):
        keys = [key for key, stage in wanted.items() if stage.kind == kind]
        held = {key for key in keys if key in schedule.stored.held}
        todo = [key for key in keys if key not in schedule.done and key not in held]
        reasons = {key: _reason(planner, schedule, key, damaged, failed) for key in todo}
        new = [planner.stages[key] for key, why in reasons.items() if why in (NEW, BELOW)]
        stages = [planner.stages[key] for key in todo]
        longest += map(limits.of, stages)
        kinds.append(
            KindPreview(
                kind=kind,
                naive=naive[kind],
                distinct=len(keys),
                cached=len(keys) - len(todo),
                run=len(todo),
                why=dict(Counter(reasons.values())) | ({MAYBE: len(held)} if held else {}),
                nearest=nearest(new, schedule.stored.keys, store, sweep.name),
                seconds=sum(map(costs, stages)),
                guessed=sum(not costs.known(stage) for stage in stages),
            )
        )
    return Preview(
        trials=len(planner.trials), kinds=kinds,
        forecasts=changed + _forecasts(planner, forecast(longest)),
        undecided=len(undecided), below=sum(below for below, _ in undecided),
        below_seconds=sum(seconds for _, seconds in undecided), damaged=tuple(damaged),
    )  # fmt: skip


def _forecasts(planner: Planner, on_limits: str) -> tuple[str, ...]:
    """Return the sentences of methods on the size of their work and on doubtful parameters.

    That on the limits of stages, if there is one, comes last.
    """
    said = {_devices(planner.sweep), *class_names(planner)}
    tried: set[object] = set()
    if isinstance(planner, RacingPlanner):
        said.add(planner.forecast())
    for trial in planner.trials:
        dataset, attack, defense, model = trial.dataset, trial.attack, trial.defense, trial.model
        facts = planner.facts(dataset)
        if (pair := (dataset, attack)) not in tried:
            tried.add(pair)
            beside = dataset.caution()
            said.add(beside and f"{dataset.label}: {beside}")
            if not facts.small:
                said.add(f"{dataset.label}: {LARGE.format(dataset.AT_PLAN)}")
            caution = attack.caution(facts.labels, facts.num_classes)
            said.add(caution and f"{attack.label} on {dataset.name}: {caution}")
        if (triple := (dataset, model, defense)) not in tried:
            tried.add(triple)
            for text in (
                defense.forecast(len(facts.labels)),
                defense.caution(model, shape_of(dataset, facts.num_classes)),
            ):
                said.add(text and f"{defense.name} on {dataset.name}: {text}")
    return (*sorted(said - {""}), *filter(None, [on_limits]))


def class_names(planner: Planner) -> tuple[str, ...]:
    """Return a sentence for each target whose number is not the name of its class."""
    said = set()
    for trial in planner.trials:
        dataset, attack = trial.dataset, trial.attack
        if attack.label_map == "all_to_one" and (attack.rate or attack.EVADES):
            name = planner.facts(dataset).classes[attack.target]
            said.add(targets.sentence(dataset.label, dataset.CLASS, attack.target, name))
    return tuple(sorted(said - {""}))


def _devices(sweep: Sweep) -> str:
    """Return a sentence if stages ask for more GPUs than this machine has."""
    wanted = sweep.resources.gpu.gpu
    if not wanted:
        return ""
    import torch

    here = torch.cuda.device_count()
    if wanted <= here:
        return ""
    return (
        f"resources.gpu.gpu: a stage asks for {wanted:g} GPU, and this machine has {here}: launch "
        f"it with --address on a cluster that has them, or with --set resources.gpu.gpu=0"
    )


def _reason(
    planner: Planner,
    schedule: Schedule,
    key: str,
    damaged: Collection[str],
    failed: Collection[str],
) -> str:
    """Return why a stage would run."""
    if key in damaged:
        return "damaged"
    if key in schedule.stored.forced:
        return "forced"
    if key in failed:
        return "failed before"
    if key in schedule.stored.replaced:
        return "made from an input that was replaced"
    return NEW if set(planner.stages[key].needs) <= schedule.done else BELOW


def _below(planner: Planner, costs: Costs, trial: Trial, route: Route) -> tuple[int, float]:
    """Return the number of stages that a decision may still add to a route, and their seconds."""
    # Together they take about as long as the training of the victim.
    below, seconds = GROWN, costs(planner.stages[planner.setting(trial).victim])
    classes = planner.facts(trial.dataset).num_classes
    shards = route.shards
    lacking = len(trial.defense.parts(classes)) - len(shards)
    if shards and lacking:  # it waits at a pause of its parts
        below += lacking + len(trial.defense.pauses(classes))
        seconds += lacking * costs(planner.stages[shards[-1]])
    return below, seconds


def _naive(planner: Planner, schedule: Schedule) -> tuple[Counter[str], list[tuple[Trial, Route]]]:
    """Count stages trial by trial, as if nothing were shared; return the undecided trials too."""
    counts: Counter[str] = Counter()
    undecided = []
    closures: dict[str, Counter[str]] = {}

    def closure(key: str) -> Counter[str]:
        if key not in closures:
            kinds = {key: kind_of(key)}
            stack = list(planner.stages[key].needs)
            while stack:
                need = stack.pop()
                if need not in kinds:
                    kinds[need] = kind_of(need)
                    stack.extend(planner.stages[need].needs)
            closures[key] = Counter(kinds.values())
        return closures[key]

    for trial in planner.trials:
        route = planner.route(trial, schedule.outcomes)
        last = route.evaluate or route.waiting
        assert last is not None
        counts += closure(last)
        if route.waiting is not None:
            undecided.append((trial, route))
    return counts, undecided
