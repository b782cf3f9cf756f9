"""Datasets whose files have changed since the records of a sweep were written."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping

from raysweep.plan.planner import Planner
from raysweep.results.columns import KEYS
from raysweep.results.table import read_table
from raysweep.store import Manifest, Store


def changed_sources(planner: Planner, store: Store, done: Collection[str]) -> tuple[str, ...]:
    """Return a sentence for each dataset whose records were made from other files.

    Args:
        planner: of the sweep.
        store: where its records are.
        done: keys of everything that is stored; a dataset that is there has not changed.
    """
    planned = {trial.dataset for trial in planner.trials}
    new = {one.label: one for one in planned if planner.data(one) not in done}
    rows = read_table(store, planner.sweep.name, "records") if new else None
    data = KEYS.of("data")
    if rows is None or data not in rows:
        return ()
    said = set()
    for label, own in rows[rows["dataset"].isin(list(new))].groupby("dataset"):
        found = store.manifests(own[data].dropna().unique().tolist())[0]
        sources = {source for one in found.values() if (source := _source(one))}
        if sources and planner.facts(new[str(label)]).digest not in sources:
            ended = own["finished_at"].max() if "finished_at" in own else float("nan")
            said.add(
                f"{label}: its files are not those that the records"
                + (f" of {datetime.date.fromtimestamp(ended)}" if ended == ended else "")
                + " were made from; what reads them runs again"
            )
    return tuple(sorted(said))


def _source(manifest: Manifest) -> str:
    """Return the digest of the files that a decoded dataset was made from; "" if not known."""
    identity = manifest.info.get("identity")
    parameters = identity[1] if isinstance(identity, list) and len(identity) == 3 else None
    return str(parameters.get("source", "")) if isinstance(parameters, Mapping) else ""
