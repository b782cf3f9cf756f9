"""The ends of a search before its trials are used up; pure."""

from __future__ import annotations

from collections.abc import Sequence

from raysweep.sweep.tuning import Stop

HOUR = 3600.0


def why_stopped(
    stop: Stop, ranks: Sequence[tuple[float, ...] | None], seconds: float, gpu_seconds: float
) -> str:
    """Return why no more candidates are wanted; empty if they are.

    Args:
        stop: the ends that the sweep file gives.
        ranks: of the candidates that ended, in the order of asking, the smaller the better; none
            of one that failed or was pruned.
        seconds: since this driver opened the search.
        gpu_seconds: of the GPU that all candidates have used.
    """
    if stop.patience and _since_the_best(ranks) >= stop.patience:
        return f"no better candidate among the last {stop.patience}"
    if stop.hours and seconds >= stop.hours * HOUR:
        return f"{stop.hours:g} hours are over"
    if stop.gpu_hours and gpu_seconds >= stop.gpu_hours * HOUR:
        return f"{stop.gpu_hours:g} GPU hours are used"
    return ""


def _since_the_best(ranks: Sequence[tuple[float, ...] | None]) -> int:
    """Return the number of candidates that ended after the best, none of them better."""
    since, best = 0, None
    for mine in ranks:
        better = mine is not None and (best is None or mine < best)
        since, best = (0, mine) if better else (since + 1, best)
    return since
