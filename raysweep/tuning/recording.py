"""Exact searches of decisions, left as Optuna studies so that a dashboard shows every search.

Nothing is asked of such a study: it is written once what it shows is known, and anew when the
search is another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from raysweep.sweep.tuning import Tune
from raysweep.tuning.candidates import METRICS, REPLAYED, TIED, UNKNOWN
from raysweep.tuning.ranking import Evaluated, best
from raysweep.tuning.space import Space, distribution, into_study
from raysweep.tuning.storage import open_storage, quiet

EXACT = "exact"  # the attribute of such a study: how many candidates were tried
SHOWN = 80  # candidates of one, evenly over all that were tried, and the best


def record(
    name: str, space: Space, tune: Tune, where: str | Path, tied: str, found: Sequence[Evaluated]
) -> None:
    """Write the study of an exact search, unless it is there already."""
    with quiet():
        before = _study(name, where)
        if before is not None:
            if EXACT not in before.user_attrs or before.user_attrs.get(TIED) == tied:
                return
            discard_exact(name, where)
        storage = open_storage(where)
        # In a database another driver may write the same at once.
        with contextlib.suppress(KeyError, optuna.exceptions.OptunaError):
            study = optuna.create_study(
                study_name=name, storage=storage,
                directions=[objective.goal for objective in tune.metric],
            )  # fmt: skip
            study.set_user_attr(EXACT, len(found))
            study.set_metric_names([objective.name for objective in tune.metric])
            study.add_trials([_trial(one, space, tune) for one in _shown(found, tune)])
            study.set_user_attr(TIED, tied)  # what was cut short before this is written anew


def discard_exact(name: str, where: str | Path) -> None:
    """Delete the study of an exact search, which is written anew at no cost; others are kept."""
    study = _study(name, where)
    if study is not None and EXACT in study.user_attrs:
        optuna.delete_study(study_name=name, storage=open_storage(where))


def _study(name: str, where: str | Path) -> optuna.Study | None:
    try:
        return optuna.load_study(study_name=name, storage=open_storage(where))
    except KeyError:
        return None


def _shown(found: Sequence[Evaluated], tune: Tune) -> list[Evaluated]:
    chosen = best(found, tune)
    every = found[:: -(-len(found) // SHOWN)]
    return [one for one in found if one is chosen or any(one is other for other in every)]


def _trial(one: Evaluated, space: Space, tune: Tune) -> FrozenTrial:
    values = [one.metrics[objective.name] for objective in tune.metric]
    known = {name: value for name, value in one.metrics.items() if value == value}
    state = TrialState.COMPLETE if all(v == v for v in values) else TrialState.FAIL
    names = [name for name in space if name in one.parameters]
    limits = zip(tune.constraints, tune.bounds, strict=True)
    return optuna.trial.create_trial(
        state=state,
        params=into_study(space, {name: one.parameters[name] for name in names}),
        distributions={name: distribution(space[name]) for name in names},
        values=values if state == TrialState.COMPLETE else None,
        constraints={text: min(bound.excess(one.metrics), UNKNOWN) for text, bound in limits},
        user_attrs={METRICS: known, REPLAYED: {}},
    )
