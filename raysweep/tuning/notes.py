"""The note of a tuned row: why nothing was found, or what is to be said beside what was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raysweep.attacks import Attack
from raysweep.defenses import Defense
from raysweep.errors import PlanError
from raysweep.sweep.ranges import Number, Parameters
from raysweep.sweep.searching import broken_rule
from raysweep.tuning.measurements import Measurements
from raysweep.tuning.ranking import excess
from raysweep.tuning.search import Search
from raysweep.tuning.space import allowed, points

SMALL = 1e-6  # a step beyond the end of a range, to see whether the method ends there itself


def note(search: Search, chosen: Sequence[Parameters], measurements: Measurements) -> str:
    """Return the note of a search's rows, empty if there is nothing to say."""
    if chosen:
        return "; ".join(_beside(search, chosen, measurements))
    if search.failures:
        return f"every candidate failed: {search.failures[0]}"
    if search.knows == "clean_only":
        return "scores no clean samples: the method's own parameters"
    return "nothing tried"


def _beside(
    search: Search, chosen: Sequence[Parameters], measurements: Measurements
) -> Iterator[str]:
    edges = [edge for one in chosen for edge in _edges(search, one)]
    if edges:
        yield f"{' and '.join(dict.fromkeys(edges))}: a wider range may hold a better one"
    counted = _thresholds(search, chosen[0], measurements)
    if counted is not None:
        distinct, tried, scores = counted
        if distinct < tried:
            yield (
                f"{distinct} distinct thresholds for {tried} values: the calibration set has "
                f"{scores} scores"
            )
    if isinstance(search.subject, Attack) and not any(
        excess(one.metrics, search.tune) == 0 for one in search.evaluated(measurements)
    ):
        yield "no candidate keeps the constraints; this one breaks them least"
    if search.study is not None and search.study.stopped:
        yield f"stopped: {search.study.stopped}"


def _edges(search: Search, chosen: Parameters) -> Iterator[str]:
    """Yield the numbers that were chosen at an end of their range where the method goes on."""
    for name, values in {**search.outer, **search.inner}.items():
        if values.listed is not None or name not in chosen:
            continue
        low, high = values.span
        for end, edge, sign in ((low, "lower", -1), (high, "upper", 1)):
            if chosen[name] == end:
                broken = broken_rule(search.subject, {**chosen, name: _beyond(end, sign)})
                if broken is None or broken.field != name:
                    yield f"{name} lies at the {edge} end of its range"


def _beyond(end: Number, sign: int) -> Number:
    return end + sign if isinstance(end, int) else end + sign * SMALL * max(abs(end), SMALL)


def _thresholds(
    search: Search, chosen: Parameters, measurements: Measurements
) -> tuple[int, int, int] | None:
    """Return distinct thresholds, values tried and calibration scores of a detector's threshold.

    On the first setting that the search saw; none of what is no threshold, or of several numbers.
    """
    decisions = points(search.inner, search.known) if search.inner else None
    if decisions is None:
        return None
    outer = {name: value for name, value in chosen.items() if name in search.outer}
    try:
        evidence = search.seen_first(outer, measurements).evidence
    except PlanError:
        return None
    every = (allowed(search.subject, {**outer, **one}) for one in decisions)
    defenses = [one for one in every if isinstance(one, Defense)]
    if evidence is None or not defenses or defenses[0].decide(evidence).threshold is None:
        return None
    thresholds = {defense.decide(evidence).threshold for defense in defenses}
    return len(thresholds), len(defenses), len(evidence.reference_scores)
