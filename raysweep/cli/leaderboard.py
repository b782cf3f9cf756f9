"""The command `leaderboard`: a static site, or BackdoorBench's table, from the records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli.options import Storage, check_output, open_console, stored_sweeps
from raysweep.cli.output import print_text
from raysweep.errors import SpecError

SITE = Path("leaderboard")


def leaderboard(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...", help="Names of sweeps that are stored.", autocompletion=stored_sweeps
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the site, by default ./leaderboard; of backdoorbench the file, by "
            "default standard output."
        ),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help="site, or backdoorbench (its CSV of results).")
    ] = "site",
    storage: Storage = None,
) -> None:
    """Write the results of sweeps as a static site that needs no network, for publishing them."""
    from raysweep.exchange.leaderboard import to_csv
    from raysweep.reports.leaderboard import gather, write
    from raysweep.results.records import storage_uri
    from raysweep.store import Store

    if form not in ("site", "backdoorbench"):
        raise SpecError(f"--format must be one of site, backdoorbench, got {form!r}")
    check_output("--output", output or (SITE if form == "site" else None), folder=form == "site")
    board = gather(Store(storage_uri(storage)), names)
    for source in board.sources:
        for note in source.notes:
            open_console(error=True).print(f"{source.name}: {note}")
    if form == "site":
        open_console().print(str(write(board, output or SITE)))
        return
    text = to_csv(board.cells)
    left = len(board.cells) - text.count("\n") + 1
    if left:
        open_console(error=True).print(f"{left} cells of attacks without poison are left out")
    if output is None:
        print_text(text)
    else:
        output.write_text(text, encoding="utf-8")
        open_console().print(str(output))
