"""The answer of a defender to one attack: the best that a defense can do by its decision alone.

It is chosen with the labels of the very poison that it answers, which no defender has: what still
passes would pass every value of the decision parameters.
"""

from __future__ import annotations

from raysweep.defenses import Defense
from raysweep.sweep.tuning import Tune
from raysweep.tuning.ranking import Evaluated, best
from raysweep.tuning.space import allowed, grid, own_values, spaces_of, with_parameters
from raysweep.tuning.stored import StoredFindings, measure


def best_answer(instance: StoredFindings, budget: float) -> Defense:
    """Return the defense with those decisions that have the highest TPR within a budget of FPR.

    Args:
        instance: an open instance; decisions are replayed on it.
        budget: the highest FPR; if no decision keeps it, those with the lowest FPR are taken.
    """
    defense = instance.trial.defense
    goals = Tune(metric=("tpr",), constraints=(f"fpr <= {budget!r}",))  # type: ignore[arg-type]
    _, space = spaces_of(defense, Tune(metric=("seconds",), constraints=()))  # type: ignore[arg-type]
    tried = []
    for parameters in (own_values(defense, space), *grid(space, defense.model_dump())):
        answer = allowed(defense, parameters)
        if answer is not None:
            tried.append(Evaluated(parameters=parameters, metrics=measure(answer, instance)))
    return with_parameters(defense, best(tried, goals).parameters)
