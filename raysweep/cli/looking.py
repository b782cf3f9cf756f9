"""The commands that look: at a sweep's state and report, and at the methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli.options import Storage, SweepName, open_console
from raysweep.errors import SpecError


def status(name: SweepName, storage: Storage = None) -> None:
    """Show the state of a sweep, while it runs and afterwards."""
    from raysweep.cli.terminal import print_status
    from raysweep.results.records import storage_uri
    from raysweep.store import Store

    print_status(open_console(), Store(storage_uri(storage)), name)


def report(
    name: SweepName,
    storage: Storage = None,
    output: Annotated[Path | None, typer.Option(help="Where to write the HTML file.")] = None,
) -> None:
    """Write the HTML report of a sweep from its records."""
    from raysweep.jobs.publish import write_page
    from raysweep.results.records import storage_uri
    from raysweep.store import Store
    from raysweep.store.sweepfolder import SweepFolder

    page = write_page(SweepFolder(Store(storage_uri(storage)), name), output)
    for note in page.notes:
        open_console(error=True).print(note)
    open_console().print(page.where)


def list_methods(
    role: Annotated[str, typer.Argument(help="attacks, defenses, datasets or models.")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="The table of the README.")] = False,
) -> None:
    """List the methods that a sweep file can name: idea, source, and where ours differs."""
    from raysweep.cli.terminal import print_methods
    from raysweep.methods import ROLES
    from raysweep.sweep import catalog

    if role and role not in ROLES:
        raise SpecError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
    roles = [r for r in ROLES if role in ("", r)]
    if markdown:
        print("\n\n".join(catalog.markdown(r) for r in roles))
    else:
        print_methods(open_console(), roles)
