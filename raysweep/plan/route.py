"""The parts of a plan: facts of datasets, settings that trials share, each trial's route."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from raysweep.attacks import Counts
from raysweep.datasets import IntArray, Size
from raysweep.stages.stage import Outcome, Stage

Outcomes = Mapping[str, Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The facts of a dataset that a plan needs, known without decoding it.

    Attributes:
        digest: of the files.
        labels: (N,) of the training set.
        num_classes: K.
        classes: their names, in the order of labels.
        rows: (N,) row numbers of the training set in the source's training files, ascending.
        clean: how many reserved clean samples of each class there are.
        small: whether the plan has decoded and checked all of them.
        test_labels, test_rows: (E,) of the evaluation set, as `labels` and `rows`.
        size: channels, height and width of an image; none if only decoding all tells it.
    """

    digest: str
    labels: IntArray
    num_classes: int
    classes: tuple[str, ...]
    rows: IntArray
    clean: tuple[int, ...]
    small: bool
    test_labels: IntArray
    test_rows: IntArray
    size: Size | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The stages that all defenses against one (dataset, model, attack, recipe, seed) share.

    Attributes:
        data: the decoded dataset.
        poison: the replaced samples, if there are any.
        victim: the victim's training.
        stamp: role → key of what a stage that stamps reads.
        counts: how many samples the attack touches.
    """

    data: str
    poison: str | None
    victim: str
    stamp: Mapping[str, str]
    counts: Counts


# Of the stages that records name; those that only a search asks for are not among them.
ROLES = (
    "data", "victim", "poison", "defend", "reference", "decide", "model", "tested", "evaluate",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The stages of one trial as far as they are known, in the order of work.

    Attributes:
        data: the decoded dataset.
        victim: the victim's training.
        poison: the replaced samples, if there are any.
        shards: the parts of the defense's work.
        pauses: runs of the defense that found its parts not enough; they are part of its cost.
        defend: the defense's run, the last that is known.
        reference: the decision, or run, of the defense whose removal count is matched.
        decide: the defense's decision.
        model: the model that is evaluated.
        tested: its predictions on test inputs.
        evaluate: the last stage.
        undefended: the evaluation of the victim that nothing defends; where attacks are searched.
        visibility: how far the trigger changes inputs; where attacks are searched.
        waiting: the stage whose outcome is needed to go on, a decision or a run at one of its
            pauses; else None.
    """

    data: str
    victim: str
    poison: str | None = None
    shards: tuple[str, ...] = ()
    pauses: tuple[str, ...] = ()
    defend: str | None = None
    reference: str | None = None
    decide: str | None = None
    model: str | None = None
    tested: str | None = None
    evaluate: str | None = None
    undefended: str | None = None
    visibility: str | None = None
    waiting: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """Role → key of every stage that plays a role of its own in a record."""
        return {role: key for role in ROLES if (key := getattr(self, role)) is not None}

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of all stages; what these stages need is not among them."""
        beside = (key for key in (self.undefended, self.visibility) if key is not None)
        return (*self.named.values(), *self.shards, *self.pauses, *beside)


class Routed(Protocol):
    """The part of a trial's route that a schedule reads."""

    @property
    def keys(self) -> Sequence[str]:
        """Keys of all stages that are known."""

    @property
    def waiting(self) -> str | None:
        """The stage whose outcome is needed to go on."""


T = TypeVar("T")


class Plan(Protocol[T]):
    """The stages and routes that a schedule works from; `Planner` is the plan of a sweep."""

    stages: dict[str, Stage]

    @property
    def trials(self) -> Sequence[T]:
        """All trials, in the order of the sweep."""

    def route(self, trial: T, outcomes: Outcomes) -> Routed:
        """Add to `stages` what is known of a trial, given outcomes; pure otherwise."""


def followed(
    route: Callable[[Outcomes], Route], outcome_of: Callable[[str], Outcome | None]
) -> Route:
    """Return a trial's route as far as the outcomes that are there lead.

    Args:
        route: gives it from the outcomes that it has waited for so far.
        outcome_of: reads one; None if that stage has not run.
    """
    outcomes: dict[str, Outcome] = {}
    found = route(outcomes)
    while found.waiting is not None and (known := outcome_of(found.waiting)) is not None:
        outcomes[found.waiting] = known
        found = route(outcomes)
    return found


def remaining(
    seconds: Mapping[str, float],
    stages: Mapping[str, Stage],
    children: Mapping[str, Sequence[str]],
    rank: dict[str, float],
    grown: float,
) -> None:
    """Enter each new stage's longest remaining path into `rank`, children before parents.

    Args:
        seconds: what each new stage is expected to take.
        stages: all stages of the plan.
        children: key → keys of all stages that read it.
        rank: the longest remaining paths so far, in seconds.
        grown: what a decision may add takes: a training and its evaluation.
    """
    ahead = {key: sum(child in seconds for child in children.get(key, ())) for key in seconds}
    leaves = [key for key in seconds if not ahead[key]]
    while leaves:
        key = leaves.pop()
        stage = stages[key]
        below = max((rank[child] for child in children.get(key, ())), default=0.0)
        rank[key] = seconds[key] + (max(below, grown) if stage.work.GROWS else below)
        for need in set(stage.needs) & seconds.keys():
            ahead[need] -= stage.needs.count(need)
            if not ahead[need]:
                leaves.append(need)
