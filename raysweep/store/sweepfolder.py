"""The places of everything that is stored of one sweep; no other file knows them.

sweeps/<name>/sweep.json                                the description
sweeps/<name>/records.parquet, stages.parquet           the rows
sweeps/<name>/report.html, tuned.json                   the page, and what tuning found
sweeps/<name>/ledger/<run>.jsonl, logs/<key>.txt        how runs went
sweeps/<name>/wandb/…                                   W&B runs that are kept offline
sweeps/<name>/versions/<n>/…                            earlier records, from 1
sweeps/<name>/tune/sweep.json, ledger/…, journal.log    the name's tuning
sweeps/<name>/tune/needs.txt                            which stages it needs
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from raysweep.identity import cache_folder, digest
from raysweep.store.store import Store

DESCRIPTION, RECORDS, STAGES = "sweep.json", "records.parquet", "stages.parquet"
REPORT, TUNED, NEEDS = "report.html", "tuned.json", "needs.txt"
DEFAULT_STORAGE = "raysweep-store"


def storage_uri(chosen: str | None = None) -> str:
    """Return the URI of the storage: the choice, RAYSWEEP_STORAGE, or ./raysweep-store."""
    return chosen or os.environ.get("RAYSWEEP_STORAGE") or DEFAULT_STORAGE


@dataclass(frozen=True, slots=True)
class SweepFolder:
    """The files of a sweep, of an earlier version of it, or of its tuning, as paths in the store.

    Attributes:
        store: where the folder is.
        name: of the sweep; or the name of `version(n)` or `tuning`, e.g. `first/versions/2`.
    """

    store: Store
    name: str

    def path(self, file: str = "") -> str:
        """Return the path of a file of the folder, or of the folder itself."""
        return f"sweeps/{self.name}/{file}".rstrip("/")

    @property
    def description(self) -> str:
        """The sweep as it was asked for, with the versions of the code and the date."""
        return self.path(DESCRIPTION)

    @property
    def records(self) -> str:
        """One row per trial."""
        return self.path(RECORDS)

    @property
    def stages(self) -> str:
        """One row per stage."""
        return self.path(STAGES)

    @property
    def report(self) -> str:
        """The HTML page."""
        return self.path(REPORT)

    @property
    def tuned(self) -> str:
        """The rows of a tuning."""
        return self.path(TUNED)

    @property
    def needs(self) -> str:
        """The keys of all stages that a tuning run wanted, a line each."""
        return self.path(NEEDS)

    @property
    def ledger(self) -> str:
        """The folder of the ledgers, one file a run."""
        return self.path("ledger")

    def log(self, key: str) -> str:
        """Return the path of the traceback of a failed stage."""
        return self.path(f"logs/{key}.txt")

    # Folders of this machine

    @property
    def wandb(self) -> Path:
        """The local folder of W&B's files; below the working directory for a remote store."""
        return self.store.local(self.path("wandb")) or Path("wandb-offline") / self.name

    @property
    def journal(self) -> Path:
        """The local file of Optuna's studies; in the cache for a remote store."""
        elsewhere = cache_folder() / "studies" / digest(f"{self.store.uri}/{self.name}")
        return (self.store.local(self.tuning.path()) or elsewhere) / "journal.log"

    # Folders inside

    @property
    def tuning(self) -> SweepFolder:
        """The folder of the sweep's tuning."""
        return SweepFolder(self.store, f"{self.name}/tune")

    def version(self, number: int) -> SweepFolder:
        """Return the folder of an earlier version of the records."""
        return SweepFolder(self.store, f"{self.name}/versions/{number}")

    def versions(self) -> list[int]:
        """Return the numbers of the earlier versions, sorted."""
        above = self.path("versions/")
        firsts = {path[len(above) + 1 :].split("/")[0] for path in self.store.list(above)}
        return sorted(int(first) for first in firsts if first.isdecimal())


def names(store: Store) -> list[str]:
    """Return the names of all sweeps in a store, sorted."""
    return sorted({path.split("/")[1] for path in store.list("sweeps") if path.count("/") > 1})
