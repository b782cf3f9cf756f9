"""The commands that run a sweep file: plan, launch, tune."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raysweep.cli.options import (
    Address,
    Detach,
    Force,
    Inline,
    MaxConcurrent,
    Overrides,
    Storage,
    SweepFile,
    check_output,
    command,
    open_console,
    resumable,
    stoppable,
)
from raysweep.errors import SpecError

if TYPE_CHECKING:
    from raysweep.jobs.launch import Conclusion
    from raysweep.jobs.tune import Tuning
    from raysweep.sweep.spec import Sweep


def plan(
    file: SweepFile,
    overrides: Overrides = None,
    force: Force = None,
    storage: Storage = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the plan as JSON, for a script.")
    ] = False,
) -> None:
    """Show the plan of a launch: stages to run, shared work, and reasons. Writes nothing."""
    from raysweep.cli.terminal import print_preview
    from raysweep.results.records import storage_uri
    from raysweep.run.preview import preview
    from raysweep.store import Store
    from raysweep.sweep.loading import read_sweep
    from raysweep.tuning.forecast import forecast

    loaded = read_sweep(file, overrides or ())
    sweep, store = loaded.sweep, Store(storage_uri(storage))
    with loaded.with_lines():
        found = preview(sweep, store, force or ())
        searches = forecast(sweep)
    if as_json:
        print(json.dumps({"name": sweep.name, "storage": store.where(), **found.pack()}, indent=2))
    else:
        print_preview(open_console(), sweep, found)
        for line in searches:
            open_console().print(line)


def launch(
    file: SweepFile,
    overrides: Overrides = None,
    force: Force = None,
    address: Address = None,
    inline: Inline = False,
    storage: Storage = None,
    max_concurrent: MaxConcurrent = None,
    detach: Detach = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
) -> None:
    """Run the missing and failed stages of a sweep; ends with a table and a report."""
    if dry_run:
        plan(file, overrides, force, storage)
        return
    _check_place(inline, address)
    from raysweep.cli.progress import Progress
    from raysweep.jobs.launch import launch as run_sweep
    from raysweep.results.records import storage_uri
    from raysweep.sweep.loading import read_sweep

    options = [*_repeated("--set", overrides), *_repeated("--force", force)]
    options += _where(address, inline, max_concurrent)
    if detach:
        _detach("launch", file, overrides, options, storage, address)
        return
    again = _again("launch", file, options, storage)
    with resumable(again), stoppable(), Progress(open_console(error=True)) as progress:
        loaded = read_sweep(file, overrides or ())
        with loaded.with_lines():
            conclusion = run_sweep(
                loaded.sweep, loaded.text, storage_uri(storage), address=address, inline=inline,
                max_concurrent=max_concurrent, watch=progress.watch, force=force or (),
                publishing=progress.published,
            )  # fmt: skip
    _say(conclusion, loaded.sweep, again, storage, progress.noted)


def _detach(
    verb: str,
    file: Path,
    overrides: Sequence[str] | None,
    options: Sequence[str],
    storage: str | None,
    address: str | None,
) -> None:
    """Check a sweep file and an address here, then start a driver without this terminal."""
    from raysweep.cli import remote
    from raysweep.sweep.loading import read_sweep

    if address:
        from raysweep.run.cluster.address import found

        found(address)  # where nobody reads what the driver says, it would be said too late
    sweep = read_sweep(file, overrides or ()).sweep
    _check_searched(options, sweep)
    remote.detach([verb, str(file), *options], file, sweep.name, storage)


def _check_place(inline: bool, address: str | None) -> None:
    if inline and address:
        raise SpecError("--inline runs in this process and --address on a cluster; give one")


def _repeated(option: str, values: Sequence[str] | None) -> list[str]:
    """Return an option as often as it was given."""
    return [word for value in values or () for word in (option, value)]


def _where(address: str | None, inline: bool, max_concurrent: int | None) -> list[str]:
    """Return the options that say where a run takes place, as they were given."""
    return [
        *(["--address", address] if address else []),
        *(["--inline"] if inline else []),
        *(["--max-concurrent", str(max_concurrent)] if max_concurrent else []),
    ]


def _again(verb: str, file: Path, options: Sequence[str], storage: str | None) -> str:
    """Return the command that goes on with an interrupted run."""
    from raysweep.sweep.yaml import STANDARD_INPUT

    line = command(verb, file, *options, storage=storage)
    return f"{line}, and the same text on standard input" if file == STANDARD_INPUT else line


def _say(conclusion: Conclusion, sweep: Sweep, again: str, storage: str | None, noted: int) -> None:
    from raysweep.cli.terminal import print_results
    from raysweep.results.race import races, summary

    console = open_console()
    print_results(console, conclusion.rows)
    if sweep.race:
        for line in summary(races(conclusion.rows, sweep.race), sweep.race):
            console.print(line)
    console.print(f"{conclusion.ran} stages ran, {conclusion.cached} were stored already")
    for note in conclusion.notes[noted:]:
        console.print(note)
    for warning in conclusion.warnings:
        console.print(f"warning: {warning}", style="yellow")
    console.print(f"report: {conclusion.report}")
    if conclusion.interrupted:
        console.print(f"interrupted; what finished is stored, go on with: {again}")
        raise typer.Exit(128 + conclusion.interrupted)
    status = command("status", sweep.name, storage=storage)
    if conclusion.unfinished:
        console.print(f"{conclusion.unfinished} trials failed; see: {status}", style="red")
        raise typer.Exit(1)
    report = command("report", sweep.name, storage=storage)
    console.print(f"next: {status} · {report} · raysweep list attacks")


def tune(
    file: SweepFile,
    overrides: Overrides = None,
    address: Address = None,
    inline: Inline = False,
    storage: Storage = None,
    max_concurrent: MaxConcurrent = None,
    studies: Annotated[
        str | None,
        typer.Option(
            envvar="RAYSWEEP_STUDIES",
            help="Database URL for Optuna's studies, for several drivers; else a journal file.",
        ),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Write a sweep file with the tuned parameters.")
    ] = None,
    detach: Detach = False,
) -> None:
    """Search better parameters for the defenses of a sweep; reported where they were not tuned."""
    from raysweep.cli.progress import Progress
    from raysweep.cli.terminal import print_tuned
    from raysweep.jobs.tune import tune as search
    from raysweep.results.records import storage_uri
    from raysweep.sweep.editing import rewritten
    from raysweep.sweep.loading import read_sweep
    from raysweep.tuning.summary import tuned_sweep

    _check_place(inline, address)
    console = open_console()
    _check_free(write)
    options = [*_repeated("--set", overrides), *_where(address, inline, max_concurrent)]
    written = ["--write", str(write)] if write else []
    if detach:
        if studies:
            os.environ["RAYSWEEP_STUDIES"] = studies  # no password stands on a command line
        _detach("tune", file, overrides, [*options, *written], storage, address)
        return
    again = _again("tune", file, [*options, *_studies(studies), *written], storage)
    with resumable(again), stoppable(), Progress(open_console(error=True)) as progress:
        loaded = read_sweep(file, overrides or ())
        _check_searched(written, loaded.sweep)
        with loaded.with_lines():
            tuning = search(
                loaded.sweep, loaded.text, storage_uri(storage), address=address, inline=inline,
                max_concurrent=max_concurrent, studies=studies, watch=progress.watch,
            )  # fmt: skip
    if tuning.interrupted or tuning.tuned is None:
        console.print(f"interrupted; what finished is stored, go on with: {again}")
        raise typer.Exit(128 + tuning.interrupted)
    print_tuned(console, tuning.tuned, loaded.sweep)
    _say_tuned(tuning, progress.noted)
    if write is not None:
        tuned = tuned_sweep(loaded.sweep, tuning.tuned.rows)
        write.write_text(rewritten(loaded, tuned, write.parent), encoding="utf-8")
        console.print(f"tuned sweep file: {write}, of sweep {tuned.name}")
        console.print(f"next: {command('launch', write, storage=storage)}")
    _end_tuned(tuning, command("status", loaded.sweep.name, storage=storage))


def _check_free(write: Path | None) -> None:
    """Refuse a place of a tuned sweep file that is taken, or cannot be written to."""
    if write is not None and write.exists():
        raise SpecError(f"--write: {str(write)!r} is there already; remove it, or name another")
    check_output("--write", write)


def _check_searched(options: Sequence[str], sweep: Sweep) -> None:
    """Refuse to write a file of tuned defenses where attacks are searched."""
    if "--write" in options and sweep.tune is not None and sweep.tune.who == "attack":
        raise SpecError(
            "--write writes tuned defenses, and this sweep file searches attacks; leave it out, "
            "and copy the attacks that are printed at the end"
        )


def _end_tuned(tuning: Tuning, status: str) -> None:
    """End with an error if all candidates of a search failed."""
    if tuning.failed:
        searches = "; ".join(tuning.failed)
        open_console().print(f"every candidate failed: {searches}; see: {status}", style="red")
        raise typer.Exit(1)


def _say_tuned(tuning: Tuning, noted: int) -> None:
    console = open_console()
    console.print(f"{tuning.ran} stages ran, {tuning.cached} were stored already")
    for note in tuning.notes[noted:]:
        console.print(note)
    for warning in tuning.warnings:
        console.print(f"warning: {warning}", style="yellow")
    console.print(f"table: {tuning.where}")
    console.print(f"report: {tuning.report}")


def _studies(url: str | None) -> list[str]:
    """Return the option of a database as it was given; one with a password is not shown."""
    if not url or url == os.environ.get("RAYSWEEP_STUDIES"):
        return []
    return ["--studies", "URL" if "@" in url else url]
