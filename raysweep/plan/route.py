"""The words of a plan: stages with their keys, and what is known of each trial's route."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raysweep.attacks import Counts
from raysweep.datasets import IntArray
from raysweep.stages.stage import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a plan must know about a dataset, without decoding it."""

    digest: str
    labels: IntArray
    num_classes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The stages that all defenses against one (dataset, model, attack, recipe, seed) share."""

    data: str
    poison: str | None
    victim: str
    stamp: dict[str, str]
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The stages of one trial as far as they are known.

    Attributes:
        roles: role → key, in the order of work.
        evaluate: the last stage, once it is known.
        waiting: the stage whose outcome is needed to go on, a decision or a `run` at one of its
            pauses; else None.
    """

    roles: dict[str, str]
    evaluate: str | None
    waiting: str | None


Outcomes = Mapping[str, Mapping[str, Any]]


def followed(
    route: Callable[[Outcomes], Route], outcome_of: Callable[[str], Mapping[str, Any] | None]
) -> Route:
    """Return a trial's route as far as the outcomes that are there lead.

    Args:
        route: gives it from the outcomes that it has waited for so far.
        outcome_of: reads one; None if that stage has not run.
    """
    outcomes: dict[str, Mapping[str, Any]] = {}
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
        grown: what a decision may grow takes: a training and its evaluation.
    """
    ahead = {key: sum(child in seconds for child in children.get(key, ())) for key in seconds}
    leaves = [key for key in seconds if not ahead[key]]
    while leaves:
        key = leaves.pop()
        stage = stages[key]
        below = max((rank.get(child, 0.0) for child in children.get(key, ())), default=0.0)
        rank[key] = seconds[key] + (max(below, grown) if stage.grows else below)
        for need in set(stage.needs) & seconds.keys():
            ahead[need] -= stage.needs.count(need)
            if not ahead[need]:
                leaves.append(need)


class Plan(Protocol):
    """What a schedule works from; `Planner` is the one that sweeps use."""

    stages: dict[str, Stage]

    @property
    def trials(self) -> Sequence[Any]:
        """All trials, in the order of the sweep."""

    def route(self, trial: Any, outcomes: Outcomes) -> Route:
        """Add to `stages` what is known of a trial, given outcomes; pure otherwise."""
