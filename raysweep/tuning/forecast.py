"""A forecast of a tuning run: its searches, their candidates, and the trials that these come to."""

from __future__ import annotations

from raysweep.errors import SpecError
from raysweep.sweep.spec import Sweep
from raysweep.sweep.tuning import Tune
from raysweep.tuning.feed import TuningPlanner
from raysweep.tuning.folds import splits_of, subjects_of


def forecast(sweep: Sweep) -> list[str]:
    """Return a line per method that is searched: at most how many candidates, on how many trials.

    A sweep that is launched may have a search that cannot be run; a line says so.
    """
    if sweep.tune is None:
        return []
    try:
        return _searches(sweep, sweep.tune)
    except SpecError as error:
        return [f"raysweep tune would refuse this file: {error}"]


def _searches(sweep: Sweep, tune: Tune) -> list[str]:
    lines = []
    planner = TuningPlanner(sweep, whole=tune.needs_models)
    for trials, (outer, inner) in subjects_of(sweep, planner.every):
        splits = list(splits_of(tune, trials, planner.data))
        candidates = tune.trials if outer else 1
        most = sum(len(one.settings) * candidates for one in splits)
        parts = ", ".join((*outer, *inner))
        label = splits[0].subject.label
        replayed = "" if outer else ", decisions replayed on stored scores"
        lines.append(
            f"raysweep tune would search {parts} of {label}: {len(splits)} searches of at most "
            f"{candidates} candidates, at most {most:,} trials beside these{replayed}"
        )
    return lines
