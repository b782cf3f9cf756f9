"""Decisions replayed on stored evidence: no training, no model, no stage.

An instance is what one defense found in one setting. Its truth can be sealed: whatever tunes must
not read it, and an attempt is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np

from raysweep.arrays import Array, Bools
from raysweep.attacks import Attack
from raysweep.defenses import Decision, Defense, Evidence
from raysweep.errors import KnowledgeError, PlanError
from raysweep.identity import canonical, finite_or_none
from raysweep.methods.context import Context
from raysweep.metrics.ranking import ranking
from raysweep.metrics.rates import share, share_above, tpr_and_fpr
from raysweep.plan.planner import Planner
from raysweep.plan.route import Route, followed
from raysweep.stages.inputs import Inputs
from raysweep.stages.knowledge import evidence
from raysweep.store import Manifest, Store
from raysweep.sweep.ranges import Scalar
from raysweep.sweep.trials import Trial
from raysweep.sweep.tuning import ATTACKED, EVALUATED, RANKED, REPLAYED, MetricName, Metrics


@dataclass(frozen=True, kw_only=True)
class StoredFindings:
    """The findings of one defense in one setting, and the truth about the attack there.

    Attributes:
        trial: where it was found.
        evidence: what `decide` may read; none if the defense decides nothing.
        inputs: clean and triggered scores of a detector of inputs, else empty.
        key: of the stage that found it.
        seconds: that the defense took here, without what it shares with others; where attacks are
            searched, that all stages of the trial took, but for its decoded dataset.
        gpu_seconds: the same in GPUs times seconds.
        clean: whether nothing is attacked here: a trial at rate 0, for false alarms alone.
        attacked: metrics of the attack by itself; only where one is searched.
        sealed: whether reading the truth is an error.
    """

    trial: Trial
    evidence: Evidence | None
    inputs: Mapping[str, Array]
    key: str
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    clean: bool = False
    attacked: Metrics = field(default_factory=dict)
    sealed: bool
    _poison: Bools
    _cover: Bools
    _eligible: Bools
    _evaluated: Metrics
    _targets: tuple[int, ...] = ()

    def truth(self) -> tuple[Bools, Bools, Bools]:
        """Return the masks of poisoned training samples, of covers, and of test inputs that count.

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

    @cached_property
    def where(self) -> Mapping[str, Scalar]:
        """Dataset, attack, rate and seed: the setting, for memory and messages."""
        trial = self.trial
        return {
            "dataset": trial.dataset.label, "attack": trial.attack.label,
            "rate": trial.attack.rate, "seed": trial.seed,
        }  # fmt: skip

    def closed(self) -> StoredFindings:
        """Return the instance with its truth sealed."""
        return replace(self, sealed=True)

    def opened(self) -> StoredFindings:
        """Return the instance with its truth, for the final report."""
        return replace(self, sealed=False)

    @cached_property
    def identity(self) -> tuple[str, str]:
        """The stage and the setting, under which measurements of it are remembered."""
        return self.key, canonical(dict(self.where))

    @cached_property
    def scores(self) -> tuple[Array, Bools] | None:
        """Scores and which of them are malicious, as AUROC takes them; reads the truth."""
        poison, _, eligible = self.truth()
        if self.evidence is None:
            return None
        if not self.inputs and "train_scores" not in dir(self.evidence):
            return None  # a verdict alone
        if self.inputs:
            triggered = self.inputs["triggered"][eligible]
            both = np.concatenate([self.inputs["clean"], triggered])
            return both, np.arange(len(both)) >= len(self.inputs["clean"])
        return self.evidence.train_scores, poison

    @cached_property
    def ranks(self) -> dict[MetricName, float]:
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
        triggered = self.inputs["triggered"][eligible] if "triggered" in self.inputs else ()
        return np.sort(triggered), np.sort(self.inputs["clean"])

    @cached_property
    def cases(self) -> tuple[int, int]:
        """Numbers of samples, or inputs, that TPR and FPR are shares of; reads the truth."""
        if self.inputs:
            triggered, clean = self.sorted_inputs
            return len(triggered), len(clean)
        poison, _, _ = self.truth()
        return int(np.count_nonzero(poison)), int(np.count_nonzero(~poison))


def measure(
    defense: Defense, findings: StoredFindings, wanted: Collection[MetricName] = RANKED
) -> dict[MetricName, float]:
    """Return the metrics of one decision; NaN where there is nothing to measure on.

    Those of scores without a threshold are computed only if one is among the wanted.

    TPR and FPR of a detector's threshold are of inputs: triggered ones that the ASR counts, and
    clean ones. CA, ASR and RA are those of the model that was evaluated after the decision. At rate
    0 there are false alarms, a verdict that is right or wrong, and costs alone.
    """
    findings.check_open()
    metrics: dict[MetricName, float] = {
        **dict.fromkeys(REPLAYED, np.nan),
        "seconds": findings.seconds,
        "gpu_seconds": findings.gpu_seconds,
        **dict.fromkeys(EVALUATED, np.nan),
        **({} if findings.clean else findings._evaluated),
        **findings.attacked,
    }
    if not RANKED.isdisjoint(wanted) and not findings.clean:
        metrics |= findings.ranks
    if findings.evidence is None:
        return metrics
    decision = defense.decide(findings.evidence)
    if decision.classes is not None:
        metrics["verdict_correct"] = float(_correct(decision.classes, findings))
    tpr, fpr = _rates(decision, findings)
    if findings.clean:
        metrics["false_alarms"] = fpr if decision.classes is None else float(bool(decision.classes))
    else:
        metrics |= {"tpr": tpr, "fpr": fpr, "youden": tpr - fpr}
    return metrics


def _correct(classes: Sequence[int], findings: StoredFindings) -> bool:
    """Return whether a verdict is right: a true target among its classes, or none at rate 0."""
    return not classes if findings.clean else bool({*classes} & {*findings._targets})


def _rates(decision: Decision, findings: StoredFindings) -> tuple[float, float]:
    """Return TPR and FPR of a decision, as a trial that is run to its end is judged."""
    if decision.flags is not None:
        tpr, fpr = tpr_and_fpr(np.asarray(decision.flags, bool), findings._poison)
        return tpr.value, fpr.value
    threshold = None if decision.threshold is None else finite_or_none(decision.threshold)
    if threshold is None:  # it is not stored either
        return np.nan, np.nan
    triggered, clean = findings.sorted_inputs
    return share_above(triggered, threshold).value, share_above(clean, threshold).value


def false_alarms(defense: Defense, findings: StoredFindings) -> float:
    """Return the share of reserved clean scores that a decision holds to be malicious.

    It reads no truth of any attack. NaN where the defense scores no clean samples.
    """
    evidence = findings.evidence
    if evidence is None:
        return float("nan")
    decision = defense.decide(evidence)
    if decision.flags is None and decision.threshold is not None:
        return share(evidence.reference_scores > decision.threshold).value
    if "reference" not in evidence.statistics or decision.flags is None or not decision.flags.any():
        return float("nan") if "reference" not in evidence.statistics else 0.0
    lowest = evidence.train_scores[decision.flags].min()
    return share(evidence.statistics["reference"] >= lowest).value


def attacks(attack: Attack) -> bool:
    """Return whether an attack does anything: it poisons, or its test inputs evade."""
    return attack.rate > 0 or attack.EVADES


def stored_findings(planner: Planner, store: Store, trial: Trial) -> StoredFindings:
    """Return the stored findings of one trial, and its evaluation where it has one.

    Raises:
        PlanError: if it has not run; the message says what to launch.
    """
    route = followed(partial(planner.decision, trial), store.outcome)
    if route.waiting is not None:
        _stored(store, route.waiting, trial)
    assert route.defend is not None
    decides = bool(trial.defense.gives() - {"model"})
    stage = planner.stages[route.decide if decides and route.decide else route.defend]
    for key in stage.needs if decides else (route.defend,):
        _stored(store, key, trial)
    given = Inputs({**stage.inputs, **stage.reads}, store, Context(seed=0))
    scores = given.findings("defend").input_scores
    labels, classes = given.data.test.labels, given.data.shape.num_classes
    eligible = trial.attack.eligible(labels, classes)
    whole = followed(partial(planner.route, trial), store.outcome)
    own = {route.defend, *route.shards, *route.pauses}
    keys = needed(planner, whole) if whole.undefended else own
    spent = [_stored(store, key, trial) for key in sorted(keys)]
    return StoredFindings(
        trial=trial,
        evidence=evidence(given, trial.defense) if decides else None,
        inputs={name: scores[name] for name in ("clean", "triggered") if name in scores},
        key=route.defend,
        seconds=sum(float(one.info.get("seconds", 0.0)) for one in spent),
        gpu_seconds=sum(float(one.info.get("gpu_seconds", 0.0)) for one in spent),
        clean=not attacks(trial.attack),
        sealed=False,
        _poison=given.mask("poison"),
        _cover=given.mask("cover"),
        _eligible=eligible,
        _targets=tuple(np.unique(trial.attack.relabel(labels, classes)[eligible]).tolist()),
        attacked=_attacked(store, whole, trial),
        _evaluated=_evaluated(store, whole),
    )  # fmt: skip


def _stored(store: Store, key: str, trial: Trial) -> Manifest:
    manifest = store.manifest(key)
    if manifest is None:
        raise PlanError(
            f"{trial.attack.label} @ {trial.attack.rate:g}, {trial.defense.label}, seed "
            f"{trial.seed}: {key} is not stored; launch the sweep first"
        )
    return manifest


def needed(planner: Planner, route: Route) -> set[str]:
    """Return the keys of all stages that a trial needs, but for its decoded dataset."""
    keys, ahead = set[str](), list(route.keys)
    while ahead:
        key = ahead.pop()
        if key not in keys and key != route.data:
            keys.add(key)
            ahead += planner.stages[key].needs
    return keys


def _attacked(store: Store, route: Route, trial: Trial) -> Metrics:
    """Return the metrics of an attack by itself, if the plan measures them; else none."""
    if route.undefended is None or route.visibility is None:
        return {}
    for key in (route.undefended, route.visibility):
        _stored(store, key, trial)
    victim = store.outcome(route.undefended) or {}
    known = {"rate": trial.attack.rate, **(store.outcome(route.visibility) or {})}
    known |= {f"victim_{name}": victim.get(name) for name in ("asr", "ca")}
    found = {name: known.get(name) for name in ATTACKED}
    return {name: float("nan") if v is None else float(v) for name, v in found.items()}


def _evaluated(store: Store, route: Route) -> Metrics:
    """Return the metrics of a trial's evaluation, if the plan goes that far; else none."""
    outcome = None if route.evaluate is None else store.outcome(route.evaluate)
    known = outcome or {}
    return {name: float(known[name]) for name in EVALUATED if known.get(name) is not None}
