"""Options and other parts that commands share: the terminal they print to, how signals end them."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

# Known without an import of anything heavy, since a shell asks for completions at every key.
DEFAULT_STORAGE = "raysweep-store"
KINDS = (
    "prepare", "poison", "visibility", "train", "features", "shard", "defend", "decide", "evaluate",
)  # fmt: skip


def stored_sweeps(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the sweeps in a local storage that begin with some letters."""
    storage = context.params.get("storage") or os.environ.get("RAYSWEEP_STORAGE")
    folder = Path(storage or DEFAULT_STORAGE) / "sweeps"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(name for name in names if name.startswith(incomplete))


def _kinds_and_methods(incomplete: str) -> list[str]:
    """Return the stage kinds and method names that begin with some letters."""
    from raysweep.methods import ROLES, available

    known = [*KINDS, *(name for role in ROLES for name in available(role))]
    return sorted(name for name in known if name.startswith(incomplete))


Storage = Annotated[
    str | None,
    typer.Option(help="Folder, s3:// or gs:// [RAYSWEEP_STORAGE, else ./raysweep-store]."),
]
SweepFile = Annotated[
    Path, typer.Argument(help="A sweep file, .yaml or .py; - reads YAML from standard input.")
]
SweepName = Annotated[
    str,
    typer.Argument(help="The name that the sweep file gives.", autocompletion=stored_sweeps),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a value of the sweep file for this run, such as seeds=3, recipe.epochs=2 or "
        "attacks.0.badnets.rate=0.1; repeatable.",
    ),
]
Force = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND|METHOD",
        help="Do stages again that are stored: those of a kind, such as train, or of a method, "
        "such as badnets; and what is below them where their results change; repeatable.",
        autocompletion=_kinds_and_methods,
    ),
]
Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster (`auto` on its head node).")
]
Inline = Annotated[
    bool, typer.Option("--inline", help="Run in this process, without Ray; pdb works.")
]
Detach = Annotated[
    bool, typer.Option("--detach", help="Go on without this terminal; says how to come back.")
]
MaxConcurrent = Annotated[int | None, typer.Option(min=1, help="At most so many stages at once.")]


def command(*words: str | Path, storage: str | None) -> str:
    """Return a command of raysweep to copy and paste, with the storage that was given."""
    given = [] if storage is None else ["--storage", storage]
    return shlex.join(["raysweep", *map(str, words), *given])


def open_console(*, error: bool = False) -> Console:
    """Return the terminal's standard output, or its errors, as rich prints to it."""
    from raysweep.cli.output import PlainConsole

    # Names and messages hold brackets; they are text, not markup.
    out = PlainConsole(stderr=error, soft_wrap=True, highlight=False, markup=False)
    if not out.is_terminal:
        out.width = 200  # A file or a pipe has no width of its own.
    return out


def check_output(option: str, place: Path | None, *, folder: bool = False) -> None:
    """Refuse a place for output that cannot be written to, before any work is done for it.

    Args:
        option: the option that names the place.
        place: of a file, or of a folder that may be there already; none: nothing is checked.
        folder: whether it is one of a folder.

    Raises:
        SpecError: names the option, the place, what is wrong, and the remedy.
    """
    from raysweep.errors import SpecError

    if place is None:
        return
    shown = f"{option} {str(place)!r}"
    if folder and place.exists() and not place.is_dir():
        raise SpecError(f"{shown}: is a file, and a folder is asked for; name a folder")
    if not folder and place.is_dir():
        raise SpecError(f"{shown}: is a folder; name a file in it, such as {str(place / 'out')!r}")
    above = place if folder and place.exists() else place.parent
    while folder and not above.exists() and above != above.parent:
        above = above.parent  # they are made
    if not above.is_dir():
        raise SpecError(f"{shown}: {str(above)!r} is no folder; make it, or name another place")
    target = place if place.exists() else above
    if not os.access(target, os.W_OK):
        raise SpecError(f"{shown}: {str(target)!r} cannot be written to; name another place")


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


@contextlib.contextmanager
def resumable(again: str) -> Iterator[None]:
    """Let the error of a lost head end with the command that goes on once there is one again."""
    from raysweep.errors import HeadLost

    try:
        yield
    except HeadLost as lost:
        raise HeadLost(f"{lost}: {again}") from None
