"""The stages that a sweep needs: for its records, for earlier versions of them, for its tuning."""

from __future__ import annotations

from raysweep.errors import RaysweepError, StoreError
from raysweep.results import history
from raysweep.results.description import described
from raysweep.results.records import collector_of
from raysweep.results.table import read_table
from raysweep.store import Store, ledger
from raysweep.store.sweepfolder import SweepFolder


def needs(store: Store, name: str) -> set[str]:
    """Return the keys of all stages that a sweep needs, stored or not.

    Those of a launch that has concluded stand in its table of stages; those of one that is running
    or was killed follow from its description.

    Raises:
        StoreError: if there is no such sweep, or it cannot be known what it needs.
    """
    history.folder_of(store, name)
    folder = SweepFolder(store, name)
    paths = set(store.list(folder.path()))
    keys: set[str] = set()
    if not {folder.description, folder.records}.isdisjoint(paths):
        keys |= _of_launch(folder)
    for number in folder.versions():
        keys |= _of_table(folder.version(number))
    if any(path.startswith(f"{folder.tuning.path()}/") for path in paths):
        keys |= _of_tuning(folder.tuning)
    return keys


def _of_launch(folder: SweepFolder) -> set[str]:
    about = described(folder.store, folder.name)
    if about.concluded:
        return _of_table(folder)
    try:
        return set(collector_of(folder.store, folder.name, about).users)
    except (RaysweepError, OSError) as error:
        raise _unknown(folder, str(error)) from None


def _of_table(folder: SweepFolder) -> set[str]:
    stages = read_table(folder.store, folder.name, "stages")
    if stages is None:
        raise _unknown(folder, "its table of stages cannot be read")
    return set(stages["key"].map(str)) if len(stages) else set()


def _of_tuning(folder: SweepFolder) -> set[str]:
    listed = folder.store.read(folder.needs)
    if listed is None or not ledger.standing(folder).ended:
        raise _unknown(folder, "its last tuning run has not come to its end")
    return set(listed.decode().split())


def _unknown(folder: SweepFolder, why: str) -> StoreError:
    name = folder.name.split("/")[0]
    return StoreError(
        f"{folder.store.where(folder.path())}: it cannot be known which stages the sweep needs "
        f"({why}); run its file to the end again, or remove it: raysweep rm {name}"
    )
