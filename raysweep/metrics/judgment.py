"""The judgment of one trial: predictions, scores, flags and verdict against the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysweep.arrays import Array, Arrays, Bools, Ints
from raysweep.metrics.curves import Curves, Losses, Roc
from raysweep.metrics.names import SEPARABILITY, SPACES
from raysweep.metrics.parts import (
    Detected,
    Flagged,
    Metric,
    Metrics,
    Verdict,
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
    robust_accuracy,
    share,
)

SHARES = ("ca", "ca_eligible", "asr", "ra")  # of every trial


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


@dataclass(frozen=True, kw_only=True)
class Judgment:
    """All metrics of one trial, and its curves.

    Attributes:
        ca: accuracy on clean inputs.
        ca_eligible: accuracy on the clean inputs that the ASR is measured on: with one target,
            without its class, as Anti-Backdoor Learning's code reports it.
        asr: attack success rate.
        ra: the share of triggered eligible inputs that are still given their true label.
        flagged: of a decision on training samples; none if there was none.
        ranking: of the scores of training samples; none if they have none.
        separability: space → how far apart poison lies in it; NaN where undefined.
        detected: of a detector of inputs; none if there was none.
        verdict: on the model; none if there was none.
        curves: of scores and losses.
    """

    ca: Share
    ca_eligible: Share
    asr: Share
    ra: Share
    flagged: Flagged | None
    ranking: Ranking | None
    separability: Mapping[str, float]
    detected: Detected | None
    verdict: Verdict | None
    curves: Curves

    def pack(self) -> tuple[dict[str, Metric], dict[str, Array]]:
        """Return the metrics, flat, and the curves as arrays; what is undefined is None."""
        metrics: dict[str, Metric] = {}
        for name in SHARES:
            metrics |= pack_share(name, getattr(self, name))
        metrics |= self.flagged.pack() if self.flagged else {}
        metrics |= pack_ranking(self.ranking) if self.ranking else {}
        for space, value in self.separability.items():
            metrics[SEPARABILITY.of(space)] = number_or_none(value)
        metrics |= self.detected.pack() if self.detected else {}
        metrics |= self.verdict.pack() if self.verdict else {}
        return metrics, dict(self.curves.pack())

    @classmethod
    def unpack(cls, metrics: Metrics, arrays: Arrays) -> Judgment:
        """Return the judgment that `pack` has made flat; metrics of others are left aside.

        Raises:
            KeyError: if a metric of every trial is missing.
        """
        ca, ca_eligible, asr, ra = (unpack_share(metrics, name) for name in SHARES)
        return cls(
            ca=ca, ca_eligible=ca_eligible, asr=asr, ra=ra,
            flagged=Flagged.unpack(metrics), ranking=unpack_ranking(metrics),
            separability={
                name: number(metrics[stored])
                for name, stored in SEPARABILITY.within(metrics).items()
            },
            detected=Detected.unpack(metrics), verdict=Verdict.unpack(metrics),
            curves=Curves.unpack(arrays),
        )  # fmt: skip


def judge(
    *,
    truth: Truth,
    tested: Mapping[str, Array],
    found: Mapping[str, Array],
    decided: Mapping[str, Array],
    decision: Mapping[str, Any],
) -> Judgment:
    """Return all metrics of a trial and its curves.

    Args:
        truth: the true labels, masks and targets.
        tested: predictions on clean and triggered test inputs.
        found: scores of the defense, if any.
        decided: flags and class scores of the decision, if any.
        decision: the decision's outcome: threshold, classes, p-value.
    """
    rejected = _rejected(found, decision)
    clean, triggered = tested["clean_predicted"], tested["triggered_predicted"]
    no_clean, no_triggered = rejected.get("clean"), rejected.get("triggered")
    scores = found.get("train_scores")
    detected, input_roc = _detected(truth, found, rejected) if rejected else (None, None)
    return Judgment(
        ca=accuracy(clean, truth.labels, no_clean),
        ca_eligible=accuracy(clean, truth.labels, no_clean, truth.eligible),
        asr=attack_success(triggered, truth.mapped, truth.eligible, no_triggered),
        ra=robust_accuracy(triggered, truth.labels, truth.eligible, no_triggered),
        flagged=_flagged(truth, decided["flags"].astype(bool)) if "flags" in decided else None,
        ranking=None if scores is None else ranking(scores, truth.poison),
        separability={
            name: separability(found[space], truth.given, truth.poison)
            for name, space in sorted(SPACES.within(found).items())
        },
        detected=detected,
        verdict=None if decision.get("classes") is None else _verdict(truth, decision, decided),
        curves=Curves(
            train=None if scores is None else Roc.of(scores, truth.poison),
            input=input_roc,
            losses=Losses.of(found["losses"], truth.poison) if "losses" in found else None,
        ),
    )


def _flagged(truth: Truth, flags: Bools) -> Flagged:
    rates = detection(flags, truth.poison, truth.cover)
    return Flagged(
        removed=int(flags.sum()), tpr=rates.tpr, fpr=rates.fpr,
        fpr_no_cover=rates.fpr_no_cover.value, cover_removal=rates.cover_removal.value,
    )  # fmt: skip


def _rejected(found: Mapping[str, Array], decision: Mapping[str, Any]) -> dict[str, Bools]:
    """Return masks of the clean and of the triggered inputs that score above the threshold."""
    threshold = decision.get("threshold")
    if threshold is None or "clean_scores" not in found:
        return {}
    return {name: found[f"{name}_scores"] > threshold for name in ("clean", "triggered")}


def _detected(
    truth: Truth, found: Mapping[str, Array], rejected: Mapping[str, Bools]
) -> tuple[Detected, Roc | None]:
    """Return the rates of an input detector: triggered eligible inputs against all clean ones."""
    scores = np.concatenate([found["clean_scores"], found["triggered_scores"][truth.eligible]])
    positive = np.arange(len(scores)) >= len(found["clean_scores"])
    rates = Detected(
        tpr=share(rejected["triggered"][truth.eligible]),
        fpr=share(rejected["clean"]),
        ranking=ranking(scores, positive),
    )
    return rates, Roc.of(scores, positive)


def _verdict(truth: Truth, decision: Mapping[str, Any], decided: Mapping[str, Array]) -> Verdict:
    """Judge a verdict: is there a backdoor, and are its targets among the classes named?"""
    classes = tuple(decision["classes"])
    scores = decided.get("class_scores")
    return Verdict(
        classes=classes,
        correct=bool(classes) == bool(truth.targets),
        target_found=bool(set(truth.targets) & set(classes)) if truth.targets else None,
        anomaly=float(scores.max()) if scores is not None and len(scores) else None,
        p_value=decision.get("p_value"),
    )
