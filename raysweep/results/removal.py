"""The removal of a sweep's records: everything below `sweeps/<name>/`, and no artifact."""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from dataclasses import dataclass

from raysweep.errors import SpecError, StoreError
from raysweep.results import history
from raysweep.store import Store, ledger
from raysweep.store.sweepfolder import (
    DESCRIPTION,
    NEEDS,
    RECORDS,
    REPORT,
    STAGES,
    TUNED,
    SweepFolder,
)
from raysweep.sweep.spec import Sweep

_NAME = re.compile(str(Sweep.model_fields["name"].metadata[0].pattern))
_KINDS = {
    DESCRIPTION: "descriptions", RECORDS: "tables of trials", STAGES: "tables of stages",
    REPORT: "reports", TUNED: "tables of a tuning", "journal.log": "journals of studies",
    NEEDS: "lists of stages",
}  # fmt: skip
_FOLDERS = {"ledger": "ledgers", "logs": "logs of failures", "wandb": "files of W&B"}


@dataclass(frozen=True, kw_only=True)
class Removal:
    """The files of a sweep that are to be removed.

    Attributes:
        folder: of the sweep.
        paths: of all its files, in the store.
        versions: how many versions of its records are among them.
        unfinished: a line for each of its runs that has no end, hence may still be running.
    """

    folder: SweepFolder
    paths: tuple[str, ...]
    versions: int
    unfinished: tuple[str, ...]

    def __str__(self) -> str:
        counts = Counter(self._kind(path) for path in self.paths)
        listed = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        return (
            f"{self.folder.store.where(self.folder.path())}: the records of "
            f"{self.folder.name}, versions: {self.versions} ({listed})"
        )

    def _kind(self, path: str) -> str:
        inside = path.removeprefix(f"{self.folder.path()}/").split("/")
        folders = [_FOLDERS[part] for part in inside[:-1] if part in _FOLDERS]
        return folders[0] if folders else _KINDS.get(inside[-1], "other files")

    def remove(self) -> None:
        """Remove the files, and the folder where the store has folders.

        Raises:
            StoreError: if one cannot be removed, or the folder is a link to another place.
        """
        store, where = self.folder.store, self.folder.store.where(self.folder.path())
        local = store.local(self.folder.path())
        if local is None:
            for path in self.paths:
                store.delete(path)
            return
        if local.is_symlink():
            raise StoreError(
                f"{where} is a link to {local.resolve()}, outside of the storage; remove the link "
                f"and what it leads to by hand"
            )
        try:
            shutil.rmtree(local)  # It follows no link inside.
        except OSError as error:
            raise StoreError(f"{where} cannot be removed ({error}); check permissions") from error


def removal(store: Store, name: str) -> Removal:
    """Return everything that is stored of a sweep and its tuning, ready to be removed.

    Raises:
        SpecError: if the name is none that a sweep may have.
        StoreError: if there is no sweep of that name; the message lists all sweeps.
    """
    if not _NAME.fullmatch(name):
        raise SpecError(
            f"a sweep's name is 1 to 64 letters, digits, - _ and ., the first a letter or a digit, "
            f"got {name!r}"
        )
    history.folder_of(store, name)
    folder = SweepFolder(store, name)
    paths = store.list(folder.path())
    launched = not {folder.description, folder.records}.isdisjoint(paths)
    runs = {"launch": folder, "tuning run": folder.tuning}
    return Removal(
        folder=folder, paths=tuple(paths), versions=len(folder.versions()) + launched,
        unfinished=tuple(line for run, of in runs.items() if (line := _unfinished(run, of))),
    )  # fmt: skip


def _unfinished(run: str, folder: SweepFolder) -> str:
    now = ledger.standing(folder)
    if now.ended or not now.last:
        return ""
    return f"its last {run} has no end; its last sign of life was {time.ctime(now.last)}"
