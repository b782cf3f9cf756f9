"""Compare what is stored: two sweeps by setting, and defenses on one victim by test input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from raysweep.arrays import Bools
from raysweep.errors import StoreError
from raysweep.metrics.judgment import unpack_hits
from raysweep.metrics.names import HITS
from raysweep.metrics.pairs import holm, mcnemar
from raysweep.reports.comparison import render
from raysweep.results.cells import SETTING, with_arena
from raysweep.results.changes import Changes, Pairs, of_pairs
from raysweep.results.columns import KEYS
from raysweep.results.grouping import finished
from raysweep.results.records import read, storage_uri
from raysweep.store import Store


def compare(
    first: str,
    second: str,
    storage: str | None = None,
    *,
    second_storage: str | None = None,
    output: str | Path | None = None,
) -> Changes:
    """Return the changes from one sweep to another, from their records.

        found = raysweep.compare("baseline", "longer-training")
        found.parameters                           # what differs between the two
        found.cells.query("metric == 'asr' and low > 0")   # where the ASR rose for certain
        raysweep.compare("baseline", "longer-training", output="changes.html")

    Trials meet their like where dataset, model, attack, rate, defense and seed are the same.

    Args:
        first: name of the one sweep.
        second: name of the other.
        storage: where their records are, a folder or a URI; by default RAYSWEEP_STORAGE, else
            `./raysweep-store`.
        second_storage: of the second one; by default that of the first.
        output: path of an HTML page of the comparison; by default none is written.

    Raises:
        StoreError: if there is no sweep of a name; the message lists those that there are.
        OSError: if the page cannot be written.
    """
    stores = Store(storage_uri(storage)), Store(storage_uri(second_storage or storage))
    one, other = (read(store, name) for store, name in zip(stores, (first, second), strict=True))
    pairs = Pairs.read(one.rows, other.rows)
    found = of_pairs(pairs, (len(one.rows), len(other.rows)), (first, second))
    if output is not None:
        names = (first, second) if first != second else (f"{first} (first)", f"{second} (second)")
        page = render((one, other), pairs, replace(found, names=names))
        Path(output).write_text(page, encoding="utf-8")
    return found


def victims(name: str, other: str = "none", storage: str | None = None) -> pd.DataFrame:
    """Return McNemar's test of every defense against another one, victim by victim.

    Both met the same test inputs, so that only inputs on which they differ say anything.

        from raysweep.jobs.compare import victims
        victims("first").query("metric == 'asr' and holm > 0.05")   # no better than no defense

    Args:
        name: of the sweep.
        other: label of the defense that is compared with.
        storage: as `compare` takes it.

    Columns: arena, attack, rate, seed, defense, metric (`asr` or `ca`), only_one and only_other
    (inputs that only the defense, or only the other, gives the attacker's or the true label), n
    (inputs), p (exact, two-sided) and holm (p after Holm's correction over the defenses of one
    victim and metric). Trials whose evaluation holds no hits, from before they were stored, or is
    gone, are left out.

    Raises:
        StoreError: as `compare` does.
    """
    store = Store(storage_uri(storage))
    done = finished(with_arena(read(store, name).rows))
    table: list[dict[str, object]] = []
    for setting, part in done.groupby(list(SETTING), sort=False):
        keys = zip(part["defense"], part[KEYS.of("evaluate")], strict=True)
        stored = {str(defense): _hits(store, str(key)) for defense, key in keys}
        alone = stored.pop(other, {})
        for metric, with_other in alone.items():
            lines = [
                dict(zip(SETTING, setting, strict=True)) | {"defense": defense, "metric": metric}
                | _discord(hits[metric], with_other)
                for defense, hits in stored.items()
                if metric in hits and len(hits[metric]) == len(with_other)
            ]  # fmt: skip
            corrected = holm([float(str(line["p"])) for line in lines])
            table += [line | {"holm": p} for line, p in zip(lines, corrected, strict=True)]
    columns = [*SETTING, "defense", "metric", "only_one", "only_other", "n", "p", "holm"]
    return pd.DataFrame(table, columns=columns)


def _discord(one: Bools, other: Bools) -> dict[str, object]:
    return {
        "only_one": int((one & ~other).sum()), "only_other": int((other & ~one).sum()),
        "n": len(one), "p": mcnemar(one, other),
    }  # fmt: skip


def _hits(store: Store, key: str) -> dict[str, Bools]:
    """Return the hits that an evaluation holds, by metric; none where they are not stored."""
    names = [HITS.of(metric) for metric in ("ca", "asr")]
    try:
        return unpack_hits(store.outcome(key) or {}, store.arrays(key, names))
    except (StoreError, KeyError):
        return {}
