"""Compare two stored sweeps: what changed, paired by setting, with intervals and tests."""

from __future__ import annotations

from raysweep.results.changes import Changes, changes
from raysweep.results.records import read, storage_uri
from raysweep.store import Store


def compare(
    first: str, second: str, storage: str | None = None, *, second_storage: str | None = None
) -> Changes:
    """Return the changes from one sweep to another, from their records.

        found = raysweep.compare("baseline", "longer-training")
        found.parameters                           # what differs between the two
        found.cells.query("metric == 'asr' and low > 0")   # where the ASR rose for certain

    Trials meet their like where dataset, model, attack, rate, defense and seed are the same.

    Args:
        first, second: names of the sweeps.
        storage: where their records are, a folder or a URI; by default RAYSWEEP_STORAGE, else
            `./raysweep-store`.
        second_storage: of the second one; by default that of the first.

    Raises:
        StoreError: if there is no sweep of a name; the message lists those that there are.
    """
    stores = Store(storage_uri(storage)), Store(storage_uri(second_storage or storage))
    rows = [read(store, name).rows for store, name in zip(stores, (first, second), strict=True)]
    return changes(rows[0], rows[1], (first, second))
