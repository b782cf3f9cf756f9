"""Metrics of defenses and attacks on stored instances, each read and measured once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from raysweep.defenses import Defense
from raysweep.identity import canonical
from raysweep.methods import Method
from raysweep.plan.planner import Planner
from raysweep.store import Store
from raysweep.sweep.trials import Trial
from raysweep.sweep.tuning import Metrics, Tune
from raysweep.tuning.answer import best_answer
from raysweep.tuning.ranking import joined
from raysweep.tuning.stored import StoredFindings, measure, stored_findings

REMEMBERED = 64  # instances in memory


class Measurements:
    """Measures defenses, or attacks, on stored instances, and remembers every measurement."""

    def __init__(self, planner: Planner, store: Store, tune: Tune) -> None:
        self.planner, self.store, self.tune = planner, store, tune
        self._instances: OrderedDict[str, StoredFindings] = OrderedDict()
        self._measured: dict[tuple[str, tuple[str, str]], Metrics] = {}
        self._answers: dict[tuple[str, str], Defense] = {}

    def stored(self, trial: Trial) -> StoredFindings:
        """Return the stored findings of a trial, open."""
        memo = repr(trial)
        if memo not in self._instances:
            self._instances[memo] = stored_findings(self.planner, self.store, trial)
            if len(self._instances) > REMEMBERED:
                self._instances.popitem(last=False)
        self._instances.move_to_end(memo)
        return self._instances[memo]

    def measured(self, subject: Method, instance: StoredFindings) -> Metrics:
        """Return the metrics of a defense's decision on an open instance.

        Of an attack, those of the decision of the defense that it meets there, and its own.
        """
        instance.check_open()  # remembered metrics must not bypass the seal
        defense = subject if isinstance(subject, Defense) else self._met(instance)
        memo = (canonical(defense.identity()), instance.identity)
        if memo not in self._measured:
            self._measured[memo] = measure(defense, instance, self.tune.named_metrics)
        return self._measured[memo]

    def _met(self, instance: StoredFindings) -> Defense:
        """Return the defense that an attack meets: as written, or as it answers at its best."""
        if self.tune.against == "own":
            return instance.trial.defense
        if instance.identity not in self._answers:
            self._answers[instance.identity] = best_answer(instance, self.tune.budget)
        return self._answers[instance.identity]

    def joined(self, subject: Method, over: Sequence[StoredFindings]) -> Metrics:
        """Return the mean, or worst, metrics over open instances."""
        return joined([self.measured(subject, one) for one in over], self.tune)
