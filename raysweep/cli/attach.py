"""The commands for a sweep that runs elsewhere: attach follows it, stop ends it.

They need the storage alone: a driver says what it does there, and finds there what it is asked.
"""

from __future__ import annotations

import signal
import sys
import time
from typing import TYPE_CHECKING

import typer

from raysweep.cli.looking import tell_waiting
from raysweep.cli.options import Storage, SweepName, command, open_console
from raysweep.errors import StoreError

if TYPE_CHECKING:
    from raysweep.results.drivers import Driver
    from raysweep.store import Store
    from raysweep.store.heartbeat import Heartbeat

STOP_SECONDS = 60.0  # for the answer of a driver; its heartbeats are seconds apart


def attach(name: SweepName, storage: Storage = None) -> None:
    """Follow a sweep that runs anywhere, to its end; Ctrl-C leaves it running."""
    from raysweep.cli.progress import Progress
    from raysweep.results.drivers import follow

    store = _store(storage)
    at_work = _alive(store, name)
    tuning = bool(at_work) and at_work[-1].tuning
    try:
        with Progress(open_console(error=True)) as progress:
            for beat in follow(store, at_work[-1].beat.run) if at_work else ():
                progress.show(beat)
    except KeyboardInterrupt:
        back = command("attach", name, storage=storage)
        print(f"detached; {name} goes on; come back with: {back}", file=sys.stderr)
        raise typer.Exit(128 + signal.SIGINT) from None
    _say_end(store, name, storage, tuning=tuning)


def stop(name: SweepName, storage: Storage = None) -> None:
    """Stop a sweep that runs anywhere, as Ctrl-C would: what is stored is kept, records written."""
    from raysweep.results.drivers import ask_to_stop, follow

    store = _store(storage)
    at_work = _alive(store, name)
    if not at_work:
        raise StoreError(
            f"no driver of sweep {name!r} is at work in {store.where()}; see: "
            f"{command('status', name, storage=storage)}"
        )
    console = open_console()
    for driver in at_work:
        ask_to_stop(store, driver.beat.run)
        console.print(f"asked driver {driver.beat.run} on {driver.beat.host} to stop")
    limit = time.monotonic() + STOP_SECONDS
    for driver in at_work:
        for beat in follow(store, driver.beat.run):
            if beat.state != "running":
                break
            if time.monotonic() > limit:
                raise StoreError(
                    f"driver {beat.run} on {beat.host} has not answered for {STOP_SECONDS:.0f} s; "
                    f"end its process {beat.pid} there"
                )
        else:
            console.print(_gone(store, driver.beat, command("status", name, storage=storage)))
            continue
        console.print(f"driver {driver.beat.run} stops: records are written, then it ends")


def _gone(store: Store, beat: Heartbeat, status: str) -> str:
    """Return the line on a driver that gives no sign of life any more: it has ended, or died."""
    from raysweep.store.ledger import has_ended
    from raysweep.store.sweepfolder import SweepFolder

    if has_ended(SweepFolder(store, beat.folder), beat.run):
        return f"driver {beat.run} has ended"
    return (
        f"driver {beat.run} on {beat.host} died before it could stop; what finished is stored, "
        f"see: {status}"
    )


def _store(storage: str | None) -> Store:
    from raysweep.results.records import storage_uri
    from raysweep.store import Store

    return Store(storage_uri(storage))


def _alive(store: Store, name: str) -> list[Driver]:
    """Return the drivers of a sweep that are at work, the newest last.

    Raises:
        StoreError: if there is no sweep of that name; the message lists those that there are.
    """
    from raysweep.results.drivers import drivers
    from raysweep.results.history import folder_of

    folder_of(store, name)
    return [driver for driver in drivers(store, name, tell_waiting) if driver.alive]


def _say_end(store: Store, name: str, storage: str | None, *, tuning: bool) -> None:
    """Print the state of a sweep that nobody runs any more; exit with 1 unless all went well."""
    from raysweep.cli.terminal import print_results, print_status
    from raysweep.results.records import read
    from raysweep.results.status import status

    console, now = open_console(), status(store, name)
    run = now.tuning if tuning or now.launch is None else now.launch
    if run is None or not run.finished or run is now.tuning:
        print_status(console, now)
        raise typer.Exit(0 if run is not None and run.finished else 1)
    records = read(store, name)
    print_results(console, records.rows)
    for note in records.notes:
        console.print(note)
    console.print(f"more: {command('status', name, storage=storage)}")
    if not bool((records.rows["status"] == "ok").all()):
        raise typer.Exit(1)
