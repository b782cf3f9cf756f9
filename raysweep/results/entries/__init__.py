"""The contents of W&B: which runs a sweep has there, and what each of them says.

entry      a run and an artifact, as values      trial      one run per trial
artifacts  manifests of stages, for lineage      shared     datasets, poisoned sets, victims
media      charts and pictures of a trial        sweep      one run per sweep
tuning     a tuning, and each of its searches
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from raysweep.results.columns import Cell
from raysweep.results.entries.entry import Artifact, Entry, run_id
from raysweep.results.entries.shared import shared
from raysweep.results.entries.sweep import whole
from raysweep.results.entries.trial import config_of, summary_of, trial
from raysweep.results.entries.tuning import searches, tuning
from raysweep.results.tuned import Tuned
from raysweep.store import Store
from raysweep.sweep.spec import Track

__all__ = [
    "Artifact",
    "Entry",
    "config_of",
    "of_trials",
    "of_tuning",
    "run_id",
    "shared",
    "summary_of",
    "trial",
    "tuning",
    "whole",
]


def of_trials(
    rows: Iterable[Mapping[str, Cell]],
    sweep: str,
    track: Track,
    store: Store,
    *,
    seed: int = 0,
    told: set[str] | None = None,
) -> Iterator[Entry]:
    """Yield the runs of trials, each after those of the stages that it shares with others.

    Args:
        rows: of trials; those that are pending have no run.
        sweep: its name.
        track: where the runs are to be, and how much they say.
        store: where its artifacts are.
        seed: the sweep's first; its trials are told in detail where `track.details` is `some`.
        told: ids of the runs of shared stages that were yielded before; this call adds its own.
    """
    known = set() if told is None else told
    for row in rows:
        if row["status"] == "pending":
            continue
        detailed = track.details == "all" or (track.details == "some" and row["seed"] == seed)
        for entry in shared(row, sweep, track, store, lineage=detailed, told=known):
            known.add(entry.run)
            yield entry
        yield trial(row, sweep, track, store if detailed else None)


def of_tuning(tuned: Tuned, sweep: str, track: Track) -> list[Entry]:
    """Return the runs of a tuning: the tuning's own, and one of each search."""
    return [tuning(tuned, sweep, track), *searches(tuned, sweep, track)]
