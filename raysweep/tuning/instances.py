"""Decisions replayed on stored evidence: no training, no model, no stage.

An `Instance` is what one defense found in one setting. Its truth can be sealed: whatever tunes must
not read it, and an attempt is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from raysweep.arrays import Array, Bools
from raysweep.defenses import Defense, Evidence
from raysweep.errors import KnowledgeError, PlanError
from raysweep.methods.context import Context
from raysweep.metrics.ranking import ranking
from raysweep.plan.planner import Planner
from raysweep.plan.route import Route, followed
from raysweep.stages.inputs import Inputs
from raysweep.stages.knowledge import evidence
from raysweep.store import Manifest, Store
from raysweep.sweep.spec import Trial
from raysweep.sweep.tuning import EVALUATED, RANKED, REPLAYED


@dataclass(frozen=True, kw_only=True)
class Instance:
    """What one defense found in one setting, and what the attack did there.

    Attributes:
        where: dataset, attack, rate and seed.
        evidence: what `decide` may read; none if the defense decides nothing.
        inputs: clean and triggered scores of a detector of inputs, else empty.
        key: of the stage that found it.
        seconds: that the defense took here, without what it shares with others.
        gpu_seconds: the same in GPUs times seconds.
        sealed: whether reading the truth is an error.
    """

    where: Mapping[str, Any]
    evidence: Evidence | None
    inputs: Mapping[str, Array]
    key: str
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    sealed: bool
    _poison: Bools
    _cover: Bools
    _eligible: Bools
    _judged: Mapping[str, Any]

    def truth(self) -> tuple[Bools, Bools, Bools]:
        """Return which training samples are poison, which covers, which test inputs count.

        Raises:
            KnowledgeError: if it is sealed.
        """
        self.check_open()
        return self._poison, self._cover, self._eligible

    def check_open(self) -> None:
        """Make sure that the truth may be read.

        Raises:
            KnowledgeError: if it is sealed.
        """
        if self.sealed:
            shown = ", ".join(f"{name}={value}" for name, value in self.where.items())
            raise KnowledgeError(
                f"the truth of the held-out instance ({shown}) was read while tuning; it is opened "
                f"for the final report alone"
            )

    def closed(self) -> Instance:
        """Return the instance with its truth sealed."""
        return replace(self, sealed=True)

    def opened(self) -> Instance:
        """Return the instance with its truth, for the final report."""
        return replace(self, sealed=False)

    @cached_property
    def scores(self) -> tuple[Array, Bools] | None:
        """Scores and which of them are malicious, as AUROC takes them; reads the truth."""
        poison, _, eligible = self.truth()
        if self.evidence is None:
            return None
        if self.inputs:
            triggered = self.inputs["triggered"][eligible]
            both = np.concatenate([self.inputs["clean"], triggered])
            return both, np.arange(len(both)) >= len(self.inputs["clean"])
        return self.evidence.train_scores, poison

    @cached_property
    def ranks(self) -> dict[str, float]:
        """AUROC, AP and TPR at 1 % FPR: the same for every decision on these scores."""
        scored = self.scores
        if scored is None or np.isnan(scored[0]).any():
            return {}
        order = ranking(*scored)
        return {"auroc": order.auroc, "ap": order.ap, "tpr_at_1fpr": order.tpr_at_1fpr}

    @cached_property
    def sorted_inputs(self) -> tuple[Array, Array]:
        """Scores of triggered inputs that count and of clean ones, in order; reads the truth."""
        _, _, eligible = self.truth()
        triggered = self.inputs["triggered"][eligible]
        return np.sort(triggered), np.sort(self.inputs["clean"])

    @cached_property
    def counts(self) -> tuple[int, int]:
        """How many training samples are poison, and how many are not; reads the truth."""
        poison, _, _ = self.truth()
        return int(np.count_nonzero(poison)), int(np.count_nonzero(~poison))


def measure(
    defense: Defense, instance: Instance, wanted: Collection[str] = RANKED
) -> dict[str, float]:
    """Return the metrics of one decision; NaN where there is nothing to measure on.

    Those of scores without a threshold are computed only if one is among the wanted.

    TPR and FPR of a detector's threshold are of inputs: triggered ones that the ASR counts, and
    clean ones. CA, ASR and RA are those of the model that was evaluated after the decision.
    """
    instance.check_open()
    found = dict.fromkeys(REPLAYED, np.nan)
    found |= {"seconds": instance.seconds, "gpu_seconds": instance.gpu_seconds}
    if not RANKED.isdisjoint(wanted):
        found |= instance.ranks
    for name in EVALUATED:
        value = instance._judged.get(name)
        found[name] = np.nan if value is None else float(value)
    if instance.evidence is not None:
        tpr, fpr = _rates(defense, instance.evidence, instance)
        found |= {"tpr": tpr, "fpr": fpr, "youden": tpr - fpr}
    return found


def _rates(defense: Defense, seen: Evidence, instance: Instance) -> tuple[float, float]:
    decided = defense.decide(seen)
    if decided.flags is None:
        threshold = np.inf if decided.threshold is None else decided.threshold
        return _above(instance.sorted_inputs[0], threshold), _above(
            instance.sorted_inputs[1], threshold
        )
    flags = np.asarray(decided.flags, bool)
    positives, negatives = instance.counts
    flagged = int(np.count_nonzero(flags))
    true = int(np.count_nonzero(flags & instance._poison))
    return _over(true, positives), _over(flagged - true, negatives)


def _over(hits: int, n: int) -> float:
    return hits / n if n else float("nan")


def _above(ordered: Array, threshold: float) -> float:
    """Return the share of sorted scores above a threshold; NaN scores, sorted last, are not."""
    known = len(ordered) - int(np.isnan(ordered[-1:]).any() and np.isnan(ordered).sum())
    return _over(known - int(np.searchsorted(ordered[:known], threshold, "right")), len(ordered))


def false_alarms(defense: Defense, instance: Instance) -> float:
    """Return the share of reserved clean scores that a decision holds to be malicious.

    It reads no truth of any attack. NaN where the defense scores no clean samples.
    """
    if instance.evidence is None:
        return float("nan")
    statistics = instance.evidence.statistics
    decided = defense.decide(instance.evidence)
    if decided.flags is None and decided.threshold is not None:
        return float((instance.evidence.reference_scores > decided.threshold).mean())
    if "reference" not in statistics or decided.flags is None or not decided.flags.any():
        return float("nan") if "reference" not in statistics else 0.0
    lowest = instance.evidence.train_scores[decided.flags].min()
    return float((statistics["reference"] >= lowest).mean())


def instance_of(planner: Planner, store: Store, trial: Trial) -> Instance:
    """Return what is stored of one trial: its evidence, and its evaluation where it has one.

    Raises:
        PlanError: if it has not run; the message says what to launch.
    """
    route = followed(partial(planner.decision, trial), store.outcome)
    if route.waiting is not None:
        _stored(store, route.waiting, trial)
    assert route.defend is not None
    decides = bool(trial.defense.gives() & {"train_scores", "input_scores"})
    stage = planner.stages[route.decide if decides and route.decide else route.defend]
    for key in stage.needs if decides else (route.defend,):
        _stored(store, key, trial)
    given = Inputs({**stage.inputs, **stage.reads}, store, Context(seed=0))
    scores = given.findings("defend").input_scores
    spent = [_stored(store, key, trial) for key in (route.defend, *route.shards, *route.pauses)]
    return Instance(
        where={
            "dataset": trial.dataset.label, "attack": trial.attack.label,
            "rate": trial.attack.rate, "seed": trial.seed,
        },
        evidence=evidence(given, trial.defense) if decides else None,
        inputs={name: scores[name] for name in ("clean", "triggered") if name in scores},
        key=route.defend,
        seconds=sum(float(one.info.get("seconds", 0.0)) for one in spent),
        gpu_seconds=sum(float(one.info.get("gpu_seconds", 0.0)) for one in spent),
        sealed=False,
        _poison=given.mask("poison"),
        _cover=given.mask("cover"),
        _eligible=trial.attack.eligible(given.data.test.labels, given.data.shape.num_classes),
        _judged=_judged(store, followed(partial(planner.route, trial), store.outcome)),
    )  # fmt: skip


def _stored(store: Store, key: str, trial: Trial) -> Manifest:
    manifest = store.manifest(key)
    if manifest is None:
        raise PlanError(
            f"{trial.attack.label} @ {trial.attack.rate:g}, {trial.defense.label}, seed "
            f"{trial.seed}: {key} is not stored; launch the sweep first"
        )
    return manifest


def _judged(store: Store, route: Route) -> Mapping[str, Any]:
    """Return the outcome of a trial's evaluation, if the plan goes that far."""
    if route.evaluate is None:
        return {}
    return store.outcome(route.evaluate) or {}
