"""The command that removes a sweep's records."""

from __future__ import annotations

from typing import Annotated

import typer

from raysweep.cli.options import Storage, SweepName, open_console
from raysweep.errors import StoreError


def remove(
    name: SweepName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Remove it though a run of it has no end.")
    ] = False,
    storage: Storage = None,
) -> None:
    """Remove a sweep's records, all versions, with its report, ledgers and tuning; no artifact.

    What stages computed stays: a launch of the same sweep file finds it, and `raysweep store prune
    --older-than 0d` removes what no sweep needs any more. A run that has no end may still be
    running somewhere, so that --force is needed.
    """
    from raysweep.results.records import storage_uri
    from raysweep.results.removal import removal
    from raysweep.store import Store

    found = removal(Store(storage_uri(storage)), name)
    if found.unfinished and not force:
        raise StoreError(
            f"sweep {name!r} may be running: {'; '.join(found.unfinished)}; stop it first, or if "
            f"it was killed, give --force"
        )
    console = open_console()
    console.print(str(found))
    if not yes and not _confirmed():
        console.print("nothing was removed")
        raise typer.Exit(1)
    found.remove()
    console.print(f"removed {len(found.paths)} files; all artifacts are kept")


def _confirmed() -> bool:
    """Return the answer at the terminal; no where nobody can answer."""
    try:
        return typer.confirm("remove all of it?")
    except typer.Abort:
        return False
