"""Decisions replayed on stored evidence: no training, no model, no stage.

An `Instance` is what one defense found on one (dataset, attack, rate, seed). Its truth can be
sealed: whatever tunes must not read it, and an attempt is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raysweep.context import Context
from raysweep.defenses import Defense, Evidence
from raysweep.desk import Desk
from raysweep.errors import KnowledgeError, PlanError
from raysweep.judging import Array
from raysweep.metrics import Bools, detection, share
from raysweep.plan import Planner
from raysweep.spec import Trial
from raysweep.stages import evidence
from raysweep.store import Store


@dataclass(frozen=True, kw_only=True)
class Instance:
    """What one defense found in one setting, and what the attack did there.

    Attributes:
        where: dataset, attack, rate and seed.
        evidence: what `decide` may read.
        inputs: clean and triggered scores of a detector of inputs, else empty.
        sealed: whether reading the truth is an error.
    """

    where: Mapping[str, Any]
    evidence: Evidence
    inputs: Mapping[str, Array]
    key: str
    sealed: bool
    _poison: Bools
    _cover: Bools
    _eligible: Bools

    def truth(self) -> tuple[Bools, Bools, Bools]:
        """Return which training samples are poison, which covers, which test inputs count.

        Raises:
            KnowledgeError: if it is sealed.
        """
        if self.sealed:
            shown = ", ".join(f"{name}={value}" for name, value in self.where.items())
            raise KnowledgeError(
                f"the truth of the held-out instance ({shown}) was read while tuning; it is opened "
                f"for the final report alone"
            )
        return self._poison, self._cover, self._eligible

    def closed(self) -> Instance:
        """Return the instance with its truth sealed."""
        return replace(self, sealed=True)

    def opened(self) -> Instance:
        """Return the instance with its truth, for the final report."""
        return replace(self, sealed=False)


def measure(defense: Defense, instance: Instance) -> dict[str, float]:
    """Return tpr, fpr and their difference of one decision; NaN where there is nothing to find.

    Of a detector's threshold these are of inputs: triggered ones that the ASR counts, and clean
    ones.
    """
    poison, cover, eligible = instance.truth()
    decided = defense.decide(instance.evidence)
    if decided.flags is not None:
        rates = detection(np.asarray(decided.flags, bool), poison, cover)
        tpr, fpr = rates.tpr.value, rates.fpr.value
    else:
        threshold = np.inf if decided.threshold is None else decided.threshold
        tpr = share((instance.inputs["triggered"] > threshold)[eligible]).value
        fpr = share(instance.inputs["clean"] > threshold).value
    return {"tpr": tpr, "fpr": fpr, "youden": tpr - fpr}


def false_alarms(defense: Defense, instance: Instance) -> float:
    """Return the share of reserved clean scores that a decision holds to be malicious.

    It reads no truth of any attack. NaN where the defense scores no clean samples.
    """
    statistics = instance.evidence.statistics
    decided = defense.decide(instance.evidence)
    if decided.flags is None and decided.threshold is not None:
        return float((instance.evidence.reference_scores > decided.threshold).mean())
    if "reference" not in statistics or decided.flags is None or not decided.flags.any():
        return float("nan") if "reference" not in statistics else 0.0
    lowest = instance.evidence.train_scores[decided.flags].min()
    return float((statistics["reference"] >= lowest).mean())


def instances(planner: Planner, store: Store, trials: list[Trial]) -> list[Instance]:
    """Return the instances of trials whose decisions have run, in their order.

    Raises:
        PlanError: if one has not; the message says what to launch.
    """
    found = []
    for trial in trials:
        stage = _decision(planner, trial)
        for key in stage.needs:
            if store.manifest(key.partition("-")[0], key) is None:
                raise PlanError(
                    f"{trial.attack.label} @ {trial.attack.rate:g}, {trial.defense.label}, seed "
                    f"{trial.seed}: {key} is not stored; launch the sweep first"
                )
        desk = Desk(stage, store, Context(seed=0))
        stored, test = desk.read("defend"), desk.data.test
        found.append(
            Instance(
                where={
                    "dataset": trial.dataset.label, "attack": trial.attack.label,
                    "rate": trial.attack.rate, "seed": trial.seed,
                },
                evidence=evidence(desk),
                inputs={
                    name: stored[f"{name}_scores"]
                    for name in ("clean", "triggered")
                    if f"{name}_scores" in stored
                },
                key=stage.inputs.get("defend") or stage.reads["defend"],
                sealed=False,
                _poison=desk.mask("poison"),
                _cover=desk.mask("cover"),
                _eligible=trial.attack.eligible(test.labels, desk.data.shape.num_classes),
            )
        )  # fmt: skip
    return found


def _decision(planner: Planner, trial: Trial) -> Any:
    route = planner.route(trial, {})
    if "decide" not in route.roles:
        raise PlanError(f"defense {trial.defense.name} decides nothing that could be replayed")
    return planner.stages[route.roles["decide"]]
