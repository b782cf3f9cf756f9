"""The run of one trial: flat parameters, numbers with n and interval, curves, what it used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from raysweep.metrics.names import cases
from raysweep.metrics.rates import Share
from raysweep.results.columns import COSTS, WHO, Cell, is_parameter
from raysweep.results.entries.artifacts import artifact, newest, stage_keys
from raysweep.results.entries.entry import Entry, State, defined, marked, numbers, run_id
from raysweep.results.text import fenced
from raysweep.store import Store
from raysweep.sweep.spec import Track

if TYPE_CHECKING:
    from raysweep.results.entries.media import Media

CONFIG = frozenset({*WHO, "git_commit"}) - {"sweep", "evades"}
TAGS = ("dataset", "model", "attack_name", "defense_name")
# Shares of a cost change whenever another trial joins; they say nothing about this one.
UNSTABLE = frozenset({*COSTS, "finished_at"}) - {"standalone_seconds"}
FAILED = "failed"  # the tag of trials that have no metrics


def trial(row: Mapping[str, Cell], sweep: str, track: Track, store: Store | None = None) -> Entry:
    """Return the run of one trial of a sweep that finished or failed.

    Args:
        row: of the records.
        sweep: its name.
        track: where the run is to be.
        store: where its artifacts are, for curves, pictures and lineage; none: numbers alone.
    """
    failed = row.get("status", "ok") != "ok"
    state: State = "failed" if failed else "finished"
    keys = stage_keys(row)
    stored = store.manifests(keys.values())[0] if store and not failed else {}
    used = [keys[role] for role in ("poison", "victim") if keys.get(role) in stored]
    made = [role for role in ("defend", "evaluate") if keys.get(role) in stored]
    media = None
    if store is not None and "evaluate" in made:
        media = _Media(row=row, keys=keys, store=store, images=track.images)
    entry = Entry(
        run=run_id(sweep, str(row["trial"])),
        name=f"{row['attack']} · {row['defense']} · seed {row['seed']}",
        job=str(row["kind"]),
        tags=(*(str(row[tag]) for tag in TAGS if row.get(tag)), *([FAILED] if failed else [])),
        config={"sweep_name": sweep, **config_of(row)},
        summary={} if failed else summary_of(row),
        notes=fenced(str(row.get("error") or row["status"])) if failed else "",
        state=state,
        media=media,
        reads=tuple(map(newest, used)),
        writes=tuple(artifact(role, stored[keys[role]]) for role in made),
    )
    return marked(entry, track)


@dataclass(frozen=True, kw_only=True)
class _Media:
    """Draws the charts and pictures of a trial; what draws them is imported only then."""

    row: Mapping[str, Cell]
    keys: Mapping[str, str]
    store: Store
    images: bool

    def __call__(self) -> Media:
        from raysweep.results.entries.media import trial_media

        return trial_media(self.row, self.keys, self.store, images=self.images)


def config_of(row: Mapping[str, Cell]) -> dict[str, Cell]:
    """Return parameters with flat keys: filters and groups of W&B disagree on nested ones."""
    chosen = {name: defined(cell) for name, cell in row.items() if _configures(name)}
    return {name: cell for name, cell in chosen.items() if cell is not None}


def summary_of(row: Mapping[str, Cell]) -> dict[str, float]:
    """Return every number that is neither a parameter nor undefined.

    A share m of m_n cases has the ends of its 95 % Wilson interval beside it: m_low, m_high.
    """
    told = numbers({n: c for n, c in row.items() if not _configures(n) and n not in UNSTABLE})
    for name, value in list(told.items()):
        n = told.get(cases(name), math.nan)
        if n > 0:
            told[f"{name}_low"], told[f"{name}_high"] = Share(value=value, n=int(n)).interval
    return told


@lru_cache(maxsize=4096)
def _configures(column: str) -> bool:
    """Return whether a column is told as configuration; asked of every cell of a table."""
    return column in CONFIG or is_parameter(column)
