"""The parts of a judgment, and the metrics under which each is stored; undefined is None there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from raysweep.metrics.names import INPUT, cases
from raysweep.metrics.ranking import Ranking
from raysweep.metrics.rates import Share

Metric = float | int | str | bool | None
Metrics = Mapping[str, Metric]
RANKS = ("auroc", "ap", "tpr_at_1fpr")


def number_or_none(value: float) -> float | None:
    """Return a metric for JSON: undefined is None, not NaN."""
    return None if math.isnan(value) else float(value)


def number(metric: Metric) -> float:
    """Return a stored metric as a float; NaN where it is undefined."""
    return math.nan if metric is None else float(metric)


def count(metric: Metric) -> int:
    """Return a stored number of cases."""
    return 0 if metric is None else int(metric)


def pack_share(name: str, value: Share) -> Metrics:
    """Return a share and its number of cases under their metrics' names."""
    return {name: number_or_none(value.value), cases(name): value.n}


def unpack_share(metrics: Metrics, name: str) -> Share:
    """Return the share that is stored under a metric's name, or raise a KeyError."""
    return Share(value=number(metrics[name]), n=count(metrics[cases(name)]))


def pack_ranking(order: Ranking) -> Metrics:
    """Return a ranking under its metrics' names."""
    return {name: number_or_none(getattr(order, name)) for name in RANKS}


def unpack_ranking(metrics: Metrics) -> Ranking | None:
    """Return the ranking among metrics; none where nothing was ranked."""
    if "auroc" not in metrics:
        return None
    auroc, ap, tpr_at_1fpr = (number(metrics[name]) for name in RANKS)
    return Ranking(auroc=auroc, ap=ap, tpr_at_1fpr=tpr_at_1fpr)


def classes_in(text: str) -> tuple[int, ...]:
    """Return the classes that a verdict names, as `Verdict.pack` writes them."""
    return tuple(map(int, text.split(", "))) if text else ()


@dataclass(frozen=True, kw_only=True)
class Flagged:
    """The flags of a decision on training samples against the truth.

    Attributes:
        removed: how many samples are flagged.
        tpr: of poison.
        fpr: of all others; a cover counts as one of them.
        fpr_no_cover: of all others that are no covers; NaN if there are none.
        cover_removal: the share of covers that are flagged; NaN if there are none.
    """

    removed: int
    tpr: Share
    fpr: Share
    fpr_no_cover: float
    cover_removal: float

    def pack(self) -> Metrics:
        """Return the rates under their metrics' names."""
        return {
            "removed": self.removed,
            **pack_share("tpr", self.tpr),
            **pack_share("fpr", self.fpr),
            "fpr_no_cover": number_or_none(self.fpr_no_cover),
            "cover_removal": number_or_none(self.cover_removal),
        }

    @classmethod
    def unpack(cls, metrics: Metrics) -> Flagged | None:
        """Return the rates among metrics; none where nothing was flagged or kept."""
        if "removed" not in metrics:
            return None
        return cls(
            removed=count(metrics["removed"]), tpr=unpack_share(metrics, "tpr"),
            fpr=unpack_share(metrics, "fpr"), fpr_no_cover=number(metrics["fpr_no_cover"]),
            cover_removal=number(metrics["cover_removal"]),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Detected:
    """A detector of inputs: triggered eligible inputs against all clean ones.

    Attributes:
        tpr: the share of triggered eligible inputs that are rejected.
        fpr: the share of clean inputs that are rejected.
        ranking: of the scores, without a threshold.
    """

    tpr: Share
    fpr: Share
    ranking: Ranking

    def pack(self) -> Metrics:
        """Return rates and ranking under their metrics' names."""
        rates = {**pack_share(INPUT.of("tpr"), self.tpr), **pack_share(INPUT.of("fpr"), self.fpr)}
        return rates | {INPUT.of(name): value for name, value in pack_ranking(self.ranking).items()}

    @classmethod
    def unpack(cls, metrics: Metrics) -> Detected | None:
        """Return rates and ranking among metrics; none where no inputs were scored."""
        own = {name: metrics[stored] for name, stored in INPUT.within(metrics).items()}
        order = unpack_ranking(own)
        if order is None:
            return None
        return cls(tpr=unpack_share(own, "tpr"), fpr=unpack_share(own, "fpr"), ranking=order)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A verdict on a model against the truth.

    Attributes:
        classes: those held to be backdoor targets, ascending; none: the model is held to be clean.
        correct: whether a true target is among the classes, or none is named of a clean model;
            a backdoored model whose verdict names another class is judged wrongly.
        target_found: whether a true target is among the classes; none where there is no target.
        anomaly: the largest of all classes; none if classes have no scores.
        p_value: of the verdict, where the method has one.
    """

    classes: tuple[int, ...]
    correct: bool
    target_found: bool | None
    anomaly: float | None
    p_value: float | None

    def pack(self) -> Metrics:
        """Return the verdict under its metrics' names."""
        return {
            "verdict": bool(self.classes),
            "verdict_classes": ", ".join(map(str, self.classes)),
            "verdict_correct": self.correct,
            "target_found": self.target_found,
            "anomaly": self.anomaly,
            "p_value": self.p_value,
        }

    @classmethod
    def unpack(cls, metrics: Metrics) -> Verdict | None:
        """Return the verdict among metrics; none where none was given."""
        if "verdict" not in metrics:
            return None
        target, anomaly, p_value = (metrics[n] for n in ("target_found", "anomaly", "p_value"))
        return cls(
            classes=classes_in(str(metrics["verdict_classes"])),
            correct=bool(metrics["verdict_correct"]),
            target_found=None if target is None else bool(target),
            anomaly=None if anomaly is None else number(anomaly),
            p_value=None if p_value is None else number(p_value),
        )
