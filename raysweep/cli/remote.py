"""The command that hands a sweep to a cluster, and drivers that go on without this terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli.options import (
    Force,
    MaxConcurrent,
    Overrides,
    Storage,
    SweepFile,
    command,
    open_console,
)
from raysweep.errors import HostError, SpecError
from raysweep.results.text import visible

JobsServer = Annotated[
    str, typer.Option(help="Jobs server of a Ray cluster, such as http://HEAD:8265.")
]


def submit(
    file: SweepFile,
    address: JobsServer,
    overrides: Overrides = None,
    force: Force = None,
    tuning: Annotated[
        bool, typer.Option("--tune", help="Search better parameters, as tune does.")
    ] = False,
    storage: Storage = None,
    max_concurrent: MaxConcurrent = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show what the driver prints; Ctrl-C detaches.")
    ] = False,
) -> None:
    """Run a sweep on a cluster from outside; the same again while it runs comes back to it."""
    from raysweep.jobs.submit import submit as hand_over
    from raysweep.results.records import storage_uri
    from raysweep.sweep.loading import read_sweep

    if tuning and force:
        raise SpecError("--force does stages of a launch again; leave it or --tune out")
    loaded = read_sweep(file, overrides or ())
    options = [word for value in force or () for word in ("--force", value)]
    options += ["--max-concurrent", str(max_concurrent)] if max_concurrent else []
    submission = hand_over(
        loaded, file, storage_uri(storage), address=address,
        verb="tune" if tuning else "launch", options=options,
    )  # fmt: skip
    console = open_console()
    began = "submitted" if submission.fresh else "under way already"
    console.print(
        f"{submission.name}: {began} as job {submission.job} at {submission.server.address}"
    )
    back = _ways_back(submission.name, storage)
    again = ["submit", str(file), "--address", address, "--follow"]
    again += [word for value in overrides or () for word in ("--set", value)]
    again += ["--tune", *options] if tuning else options
    if not follow:
        console.print(f"follow it: {command(*again, storage=storage)}")
        console.print(back)
        return
    try:
        status = submission.server.follow(submission.job, _show)
    except KeyboardInterrupt:
        console.print(f"\ndetached; {submission.name} goes on. {back}")
        console.print(f"come back: {command(*again, storage=storage)}")
        raise typer.Exit(130) from None
    except HostError as error:
        raise HostError(
            f"{error}; whether the driver goes on, tells: "
            f"{command('attach', submission.name, storage=storage)}; to come back, or to go on "
            f"where a new head was started: {command(*again, storage=storage)}"
        ) from None
    raise typer.Exit(status)


def _show(lines: str) -> None:
    """Print lines of a driver, which may hold escape codes, as they come."""
    print(visible(lines), end="", file=sys.stdout, flush=True)


def _ways_back(name: str, storage: str | None) -> str:
    """Return the commands that look at a running sweep, and that stop it."""
    attach, stop = (command(verb, name, storage=storage) for verb in ("attach", "stop"))
    return f"look: {attach} · stop: {stop}"


def detach(words: Sequence[str], file: Path, name: str, storage: str | None) -> None:
    """Start a launch or tuning that goes on without this terminal, and say how to come back.

    Args:
        words: the command with its options, but for the storage.
        file: the sweep file.
        name: of the sweep.
        storage: as it was given.
    """
    from raysweep.jobs.detached import detached
    from raysweep.results.records import storage_uri
    from raysweep.store import Store
    from raysweep.store.sweepfolder import SweepFolder
    from raysweep.sweep.yaml import STANDARD_INPUT

    if file == STANDARD_INPUT:
        raise SpecError(
            "--detach: a driver that goes on alone reads no standard input; give a file"
        )
    folder = SweepFolder(Store(storage_uri(storage)), name)
    left = detached(
        [*words, *(["--storage", storage] if storage else [])],
        folder.tuning if words[0] == "tune" else folder,
    )
    console = open_console()
    console.print(f"{name}: run {left.run or 'not begun yet'}, process {left.pid}")
    console.print(f"log: {left.log}")
    if left.status:
        console.print(f"it has ended already, with {left.status}; the log says why", style="red")
        raise typer.Exit(left.status)
    console.print(_ways_back(name, storage))
