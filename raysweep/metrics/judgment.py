"""The judgment of one trial: predictions, scores, flags and verdict against the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raysweep.arrays import Array, Bools, Ints
from raysweep.metrics.ranking import ranking, roc, separability
from raysweep.metrics.rates import (
    Share,
    accuracy,
    attack_success,
    detection,
    robust_accuracy,
    share,
)


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


def judge(
    *,
    truth: Truth,
    tested: Mapping[str, Array],
    found: Mapping[str, Array],
    decided: Mapping[str, Array],
    decision: Mapping[str, Any],
) -> tuple[dict[str, float | int | str | bool | None], dict[str, Array]]:
    """Return the metrics of a trial, flat, and its ROC curves.

    Args:
        truth: the true labels, masks and targets.
        tested: predictions on clean and triggered test inputs.
        found: scores of the defense, if any.
        decided: flags and class scores of the decision, if any.
        decision: the decision's outcome: threshold, classes, p-value.
    """
    metrics: dict[str, Any] = {}
    curves: dict[str, Array] = {}
    rejected = _rejected(found, decision)
    clean, triggered = tested["clean_predicted"], tested["triggered_predicted"]
    _enter(metrics, "ca", accuracy(clean, truth.labels, rejected.get("clean")))
    # With one target: without its class, as Anti-Backdoor Learning's code reports it.
    among = accuracy(clean, truth.labels, rejected.get("clean"), truth.eligible)
    _enter(metrics, "ca_eligible", among)
    _enter(
        metrics,
        "asr",
        attack_success(triggered, truth.mapped, truth.eligible, rejected.get("triggered")),
    )
    _enter(
        metrics,
        "ra",
        robust_accuracy(triggered, truth.labels, truth.eligible, rejected.get("triggered")),
    )
    if "flags" in decided:
        flags = decided["flags"].astype(bool)
        rates = detection(flags, truth.poison, truth.cover)
        metrics["removed"] = int(flags.sum())
        _enter(metrics, "tpr", rates.tpr)
        _enter(metrics, "fpr", rates.fpr)
        metrics["fpr_no_cover"] = _number(rates.fpr_no_cover.value)
        metrics["cover_removal"] = _number(rates.cover_removal.value)
    if "train_scores" in found:
        _rank(metrics, curves, "", "train", found["train_scores"], truth.poison)
    if "losses" in found:
        curves |= _apart(found["losses"], truth.poison)
    for name in (n for n in found if n.startswith("spaces.")):
        apart = separability(found[name], truth.given, truth.poison)
        metrics[f"separability_{name.removeprefix('spaces.')}"] = _number(apart)
    if rejected:
        _judge_inputs(metrics, curves, truth, found, rejected)
    if decision.get("classes") is not None:
        metrics |= _verdict(truth, decision, decided)
    return metrics, curves


def _number(value: float) -> float | None:
    """Return a metric for JSON: undefined is None, not NaN."""
    return None if np.isnan(value) else float(value)


def _enter(metrics: dict[str, Any], name: str, value: Share) -> None:
    metrics[name] = _number(value.value)
    metrics[f"{name}_n"] = value.n


def _rank(
    metrics: dict[str, Any],
    curves: dict[str, Array],
    prefix: str,
    curve: str,
    scores: Array,
    positive: Bools,
) -> None:
    order = ranking(scores, positive)
    for name in ("auroc", "ap", "tpr_at_1fpr"):
        metrics[f"{prefix}{name}"] = _number(getattr(order, name))
    fpr, tpr = roc(scores, positive)
    if len(fpr):
        curves[f"{curve}_roc_fpr"] = fpr.astype(np.float32)
        curves[f"{curve}_roc_tpr"] = tpr.astype(np.float32)


def _apart(losses_TN: Array, poison: Bools) -> dict[str, Array]:
    """Return the quartiles of the losses of poison and of the rest after each of T steps, (3, T).

    A group without samples has none. If both groups have samples, also the AUROC of a low loss,
    (T,), for which a loss that is not a number is the highest.
    """
    told = {
        f"losses_{name}": np.percentile(losses_TN[:, who], (25, 50, 75), axis=1).astype(np.float32)
        for name, who in (("poison", poison), ("rest", ~poison))
        if who.any()
    }
    if len(told) == 2:
        ranks = np.where(np.isnan(losses_TN), -np.inf, -losses_TN)
        areas = [ranking(step, poison).auroc for step in ranks]
        told["losses_auroc"] = np.array(areas, np.float32)
    return told


def _rejected(found: Mapping[str, Array], decision: Mapping[str, Any]) -> dict[str, Bools]:
    """Return masks of the clean and of the triggered inputs that score above the threshold."""
    threshold = decision.get("threshold")
    if threshold is None or "clean_scores" not in found:
        return {}
    return {name: found[f"{name}_scores"] > threshold for name in ("clean", "triggered")}


def _judge_inputs(
    metrics: dict[str, Any],
    curves: dict[str, Array],
    truth: Truth,
    found: Mapping[str, Array],
    rejected: Mapping[str, Bools],
) -> None:
    """Judge an input detector: triggered eligible inputs against all clean ones."""
    _enter(metrics, "input_tpr", share(rejected["triggered"][truth.eligible]))
    _enter(metrics, "input_fpr", share(rejected["clean"]))
    scores = np.concatenate([found["clean_scores"], found["triggered_scores"][truth.eligible]])
    positive = np.arange(len(scores)) >= len(found["clean_scores"])
    _rank(metrics, curves, "input_", "input", scores, positive)


def _verdict(
    truth: Truth, decision: Mapping[str, Any], decided: Mapping[str, Array]
) -> dict[str, Any]:
    """Judge a verdict: is there a backdoor, and are its targets among the classes named?"""
    classes = tuple(decision["classes"])
    right = bool(classes) == bool(truth.targets)
    scores = decided.get("class_scores")
    return {
        "verdict": bool(classes),
        "verdict_classes": ", ".join(map(str, classes)),
        "verdict_correct": right,
        "target_found": bool(set(truth.targets) & set(classes)) if truth.targets else None,
        "anomaly": float(scores.max()) if scores is not None and len(scores) else None,
        "p_value": decision.get("p_value"),
    }
