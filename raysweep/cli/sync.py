"""The command that publishes a sweep to Weights & Biases."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from raysweep.cli.options import Storage, SweepName, open_console

if TYPE_CHECKING:
    from raysweep.results.wandb import Published

LATEST_SECONDS = 600.0  # after the launch, for what is left
LOOK_SECONDS = 0.2


def sync(
    name: SweepName,
    storage: Storage = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Write runs into the sweep's folder; send nothing.")
    ] = False,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="Publish what finishes, too, until standard input ends; each launch does so.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the numbers as a line of JSON after each batch.")
    ] = False,
) -> None:
    """Send to W&B what it does not hold of a sweep; interrupted, it goes on where it was."""
    from raysweep.cli.progress import Progress
    from raysweep.environment import masked
    from raysweep.jobs.sync import sync as publish
    from raysweep.results.records import opened

    folder = opened(name, storage)
    with Progress(open_console(error=True), "reading") as progress:
        done = publish(
            folder,
            online=not offline,
            ended=_end_of_input() if follow else lambda seconds: True,
            tell=_print_line if as_json else progress.published,
        )
    if as_json:
        _print_line(done)
        return
    console = open_console()
    if done.note:
        console.print(done.note)
    if done.warning:
        console.print(f"warning: {masked(done.warning)}", style="yellow")
    if done.left:
        raise typer.Exit(1)


def _print_line(published: Published) -> None:
    from raysweep.environment import masked

    told = asdict(published)
    told["warning"] = masked(published.warning)
    print(json.dumps(told), flush=True)


def _end_of_input() -> Callable[[float], bool]:
    """Return a function that waits some seconds for the end of standard input.

    This process ends soon after the one that has started it, which may have been killed; and some
    minutes after that end of input at the latest, since wandb's own process may never answer.
    """
    over, given, driver = threading.Event(), sys.stdin.buffer, os.getppid()

    def read() -> None:
        while given.read(1):
            pass
        over.set()
        latest = time.monotonic() + LATEST_SECONDS
        while os.getppid() == driver and time.monotonic() < latest:
            time.sleep(LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return over.wait
