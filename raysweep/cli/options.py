"""Options and other parts that commands share: the terminal they print to, how signals end them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

Storage = Annotated[
    str | None,
    typer.Option(help="Folder, s3:// or gs:// [RAYSWEEP_STORAGE, else ./raysweep-store]."),
]
SweepFile = Annotated[Path, typer.Argument(help="A sweep file, .yaml or .py.")]
SweepName = Annotated[str, typer.Argument(help="The name that the sweep file gives.")]


def open_console(*, error: bool = False) -> Console:
    """Return the terminal's standard output, or its errors, as rich prints to it."""
    from raysweep.cli.output import PlainConsole

    # Names and messages hold brackets; they are text, not markup.
    out = PlainConsole(stderr=error, soft_wrap=True, highlight=False, markup=False)
    if not out.is_terminal:
        out.width = 200  # A file or a pipe has no width of its own.
    return out


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Exit with the status of a signal, 128 + its number, when a signal stops a run."""
    from raysweep.run.interruption import Interrupted, catching_signals

    with catching_signals():
        try:
            yield
        except Interrupted as stopped:
            print(f"{stopped}; nothing was run", file=sys.stderr)
            raise typer.Exit(128 + stopped.number) from None
