"""The judgment of one trial: predictions, scores, flags and verdict against the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from raysweep.arrays import Array, Arrays, Bools, Floats, Ints
from raysweep.metrics.curves import Curves, Losses, Roc
from raysweep.metrics.names import HITS, SEPARABILITY, cases
from raysweep.metrics.parts import (
    Detected,
    Flagged,
    Metric,
    Metrics,
    Verdict,
    count,
    number,
    number_or_none,
    pack_ranking,
    pack_share,
    unpack_ranking,
    unpack_share,
)
from raysweep.metrics.ranking import Ranking, ranking, separability
from raysweep.metrics.rates import (
    Share,
    accuracy,
    attack_success,
    detection,
    hits,
    robust_accuracy,
    share,
)

SHARES = ("ca", "ca_eligible", "ca_target", "asr", "ra")  # of every trial


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The truth about an attack on N training samples and E test inputs.

    Attributes:
        labels: (E,) true labels of the test inputs.
        mapped: (E,) labels that the attacker wants.
        eligible: (E,) mask of the inputs that the ASR counts.
        given: (N,) labels of the training samples as the attack left them.
        poison: (N,) mask of the poisoned training samples.
        cover: (N,) mask of the covers.
        targets: the classes that are backdoor targets; none if nothing is poisoned.
    """

    labels: Ints
    mapped: Ints
    eligible: Bools
    given: Ints
    poison: Bools
    cover: Bools
    targets: tuple[int, ...]

    @property
    def of_target(self) -> Bools:
        """The mask (E,) of test inputs of classes that the attacker wants, poisoned or not."""
        return np.isin(self.labels, self.mapped[self.eligible])


@dataclass(frozen=True, kw_only=True)
class Judgment:
    """All metrics of one trial, and its curves.

    Attributes:
        ca: accuracy on clean inputs.
        ca_eligible: accuracy on the clean inputs that the ASR is measured on: with one target,
            without its class, as Anti-Backdoor Learning's code reports it.
        ca_target: accuracy on the clean inputs of the classes that the attacker wants, which a
            repair may unlearn along with the trigger; of a clean model too.
        asr: attack success rate.
        ra: the share of triggered eligible inputs that are still given their true label.
        flagged: of a decision on training samples; none if there was none.
        ranking: of the scores of training samples; none if they have none.
        separability: space → how far apart poison lies in it; NaN where undefined.
        detected: of a detector of inputs; none if there was none.
        verdict: on the model; none if there was none.
        curves: of scores and losses.
        hits: `ca` → (E,) mask of clean inputs that are given their label; `asr` → mask of the
            eligible inputs that are given the attacker's. Two defenses of one victim are paired by
            them. Evaluations of before they were stored have none.
    """

    ca: Share
    ca_eligible: Share
    ca_target: Share
    asr: Share
    ra: Share
    flagged: Flagged | None
    ranking: Ranking | None
    separability: Mapping[str, float]
    detected: Detected | None
    verdict: Verdict | None
    curves: Curves
    hits: Mapping[str, Bools] = field(default_factory=dict)

    def pack(self) -> tuple[dict[str, Metric], dict[str, Array]]:
        """Return the metrics, flat, and curves and hits as arrays; what is undefined is None."""
        metrics: dict[str, Metric] = {}
        for name in SHARES:
            metrics |= pack_share(name, getattr(self, name))
        metrics |= self.flagged.pack() if self.flagged else {}
        metrics |= pack_ranking(self.ranking) if self.ranking else {}
        for space, value in self.separability.items():
            metrics[SEPARABILITY.of(space)] = number_or_none(value)
        metrics |= self.detected.pack() if self.detected else {}
        metrics |= self.verdict.pack() if self.verdict else {}
        bits = {HITS.of(name): np.packbits(mask) for name, mask in self.hits.items()}
        return metrics, dict(self.curves.pack()) | bits

    @classmethod
    def unpack(cls, metrics: Metrics, arrays: Arrays) -> Judgment:
        """Return the judgment that `pack` has made flat; metrics of others are left aside.

        Raises:
            KeyError: if a metric of every trial is missing.
        """
        ca, ca_eligible, ca_target, asr, ra = (unpack_share(metrics, name) for name in SHARES)
        return cls(
            ca=ca, ca_eligible=ca_eligible, ca_target=ca_target, asr=asr, ra=ra,
            flagged=Flagged.unpack(metrics), ranking=unpack_ranking(metrics),
            separability={
                name: number(metrics[stored])
                for name, stored in SEPARABILITY.within(metrics).items()
            },
            detected=Detected.unpack(metrics), verdict=Verdict.unpack(metrics),
            curves=Curves.unpack(arrays), hits=unpack_hits(metrics, arrays),
        )  # fmt: skip


def unpack_hits(metrics: Metrics, arrays: Arrays) -> dict[str, Bools]:
    """Return the masks of hits that `Judgment.pack` has made bits of; of other arrays, none."""
    return {
        name: np.unpackbits(arrays[stored], count=count(metrics[cases(name)])).astype(bool)
        for name, stored in HITS.within(arrays).items()
    }


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The outputs of a trial that are judged; what a defense does not give is None or empty.

    Attributes:
        clean: (E,) predicted classes of clean test inputs.
        triggered: (E,) predicted classes of triggered test inputs.
        train_scores: (N,) scores of the training samples.
        losses: (T, N) losses of the training samples after each of T steps.
        spaces: name → (N, d) representations of the training samples.
        input_scores: `clean` and `triggered` → (E,) scores of test inputs.
        flags: (N,) mask of the training samples that are held to be poisoned.
        threshold: test inputs with higher scores are rejected.
        classes: the classes held to be backdoor targets.
        class_scores: (K,) anomaly of each class.
        p_value: of the verdict.
    """

    clean: Ints
    triggered: Ints
    train_scores: Floats | None = None
    losses: Floats | None = None
    spaces: Mapping[str, Floats] = field(default_factory=dict)
    input_scores: Mapping[str, Floats] = field(default_factory=dict)
    flags: Bools | None = None
    threshold: float | None = None
    classes: Sequence[int] | None = None
    class_scores: Floats | None = None
    p_value: float | None = None


def judge(truth: Truth, outputs: Outputs) -> Judgment:
    """Return all metrics of a trial and its curves.

    Args:
        truth: the true labels, masks and targets.
        outputs: predictions, scores and decision.
    """
    rejected = _rejected(outputs)
    no_clean, no_triggered = rejected.get("clean"), rejected.get("triggered")
    scores, losses, flags = outputs.train_scores, outputs.losses, outputs.flags
    detected, input_roc = _detected(truth, outputs, rejected) if rejected else (None, None)
    return Judgment(
        ca=accuracy(outputs.clean, truth.labels, no_clean),
        ca_eligible=accuracy(outputs.clean, truth.labels, no_clean, truth.eligible),
        ca_target=accuracy(outputs.clean, truth.labels, no_clean, truth.of_target),
        asr=attack_success(outputs.triggered, truth.mapped, truth.eligible, no_triggered),
        ra=robust_accuracy(outputs.triggered, truth.labels, truth.eligible, no_triggered),
        flagged=None if flags is None else _flagged(truth, flags.astype(bool)),
        ranking=None if scores is None else ranking(scores, truth.poison),
        separability={
            name: separability(points, truth.given, truth.poison)
            for name, points in sorted(outputs.spaces.items())
        },
        detected=detected,
        verdict=None if outputs.classes is None else _verdict(truth, outputs, outputs.classes),
        curves=Curves(
            train=None if scores is None else Roc.of(scores, truth.poison),
            input=input_roc,
            losses=None if losses is None else Losses.of(losses, truth.poison),
        ),
        hits={
            "ca": hits(outputs.clean, truth.labels, no_clean),
            "asr": hits(outputs.triggered, truth.mapped, no_triggered)[truth.eligible],
        },
    )


def _flagged(truth: Truth, flags: Bools) -> Flagged:
    rates = detection(flags, truth.poison, truth.cover)
    return Flagged(
        removed=int(flags.sum()), tpr=rates.tpr, fpr=rates.fpr,
        fpr_no_cover=rates.fpr_no_cover.value, cover_removal=rates.cover_removal.value,
    )  # fmt: skip


def _rejected(outputs: Outputs) -> dict[str, Bools]:
    """Return masks of the clean and of the triggered inputs that score above the threshold."""
    threshold, scores = outputs.threshold, outputs.input_scores
    if threshold is None or "clean" not in scores:
        return {}
    return {name: scores[name] > threshold for name in ("clean", "triggered")}


def _detected(
    truth: Truth, outputs: Outputs, rejected: Mapping[str, Bools]
) -> tuple[Detected, Roc | None]:
    """Return the rates of an input detector: triggered eligible inputs against all clean ones."""
    clean = outputs.input_scores["clean"]
    scores = np.concatenate([clean, outputs.input_scores["triggered"][truth.eligible]])
    positive = np.arange(len(scores)) >= len(clean)
    rates = Detected(
        tpr=share(rejected["triggered"][truth.eligible]),
        fpr=share(rejected["clean"]),
        ranking=ranking(scores, positive),
    )
    return rates, Roc.of(scores, positive)


def _verdict(truth: Truth, outputs: Outputs, classes: Sequence[int]) -> Verdict:
    """Judge a verdict: a backdoored model needs a true target named, a clean one none."""
    scores = outputs.class_scores
    found = bool(set(truth.targets) & set(classes)) if truth.targets else None
    return Verdict(
        classes=tuple(classes),
        correct=not classes if found is None else found,
        target_found=found,
        anomaly=float(scores.max()) if scores is not None and len(scores) else None,
        p_value=outputs.p_value,
    )
