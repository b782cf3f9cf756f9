"""The commands that run a sweep file: plan, launch, tune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raysweep.cli.options import Storage, SweepFile, open_console, stoppable
from raysweep.errors import SpecError

if TYPE_CHECKING:
    from raysweep.jobs.launch import Conclusion


def plan(file: SweepFile, storage: Storage = None) -> None:
    """Show the plan of a launch: stages to run, shared work, and reasons."""
    from raysweep.cli.terminal import print_preview
    from raysweep.results.records import storage_uri
    from raysweep.run.preview import preview
    from raysweep.store import Store
    from raysweep.sweep.loading import load_sweep

    sweep = load_sweep(file)
    print_preview(open_console(), sweep, preview(sweep, Store(storage_uri(storage))))


def launch(
    file: SweepFile,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster (`auto` on its head node).")
    ] = None,
    inline: Annotated[
        bool, typer.Option("--inline", help="Run in this process, without Ray; pdb works.")
    ] = False,
    storage: Storage = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="At most so many stages at once.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
) -> None:
    """Run the missing and failed stages of a sweep; ends with a table and a report."""
    if dry_run:
        plan(file, storage)
        return
    if inline and address:
        raise SpecError("--inline runs in this process and --address on a cluster; give one")
    from raysweep.cli.progress import Progress
    from raysweep.jobs.launch import launch as run_sweep
    from raysweep.results.records import storage_uri
    from raysweep.sweep.loading import load_sweep

    with stoppable(), Progress(open_console(error=True)) as progress:
        sweep = load_sweep(file)
        conclusion = run_sweep(
            sweep,
            file.read_text(),
            storage_uri(storage),
            address=address,
            inline=inline,
            max_concurrent=max_concurrent,
            watch=progress.watch,
        )
    _say(conclusion, sweep.name, f"raysweep launch {file}", progress.noted)


def _say(conclusion: Conclusion, name: str, command: str, noted: int) -> None:
    from raysweep.cli.terminal import print_results

    console = open_console()
    print_results(console, conclusion.rows)
    console.print(f"{conclusion.ran} stages ran, {conclusion.cached} were stored already")
    for note in conclusion.notes[noted:]:
        console.print(note)
    for warning in conclusion.warnings:
        console.print(f"warning: {warning}", style="yellow")
    console.print(f"report: {conclusion.report}")
    if conclusion.interrupted:
        console.print(f"interrupted; what finished is stored, go on with: {command}")
        raise typer.Exit(128 + conclusion.interrupted)
    if conclusion.unfinished:
        console.print(
            f"{conclusion.unfinished} trials failed; see: raysweep status {name}", style="red"
        )
        raise typer.Exit(1)
    console.print(f"next: raysweep status {name} · raysweep report {name} · raysweep list attacks")


def tune(
    file: SweepFile,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster (`auto` on its head node).")
    ] = None,
    inline: Annotated[bool, typer.Option("--inline", help="In this process, without Ray.")] = False,
    storage: Storage = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="At most so many stages at once.")
    ] = None,
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
) -> None:
    """Search better parameters for the defenses of a sweep; reported where they were not tuned."""
    from raysweep.cli.progress import Progress
    from raysweep.cli.terminal import print_tuned
    from raysweep.jobs.tune import tune as search
    from raysweep.results.records import storage_uri
    from raysweep.sweep.loading import load_sweep
    from raysweep.sweep.spec import to_yaml
    from raysweep.tuning.summary import tuned_sweep

    if inline and address:
        raise SpecError("--inline runs in this process and --address on a cluster; give one")
    console = open_console()
    if write is not None and write.exists():
        raise SpecError(f"--write: {str(write)!r} is there already; remove it, or name another")
    with stoppable(), Progress(open_console(error=True)) as progress:
        sweep = load_sweep(file)
        tuning = search(
            sweep, file.read_text(), storage_uri(storage), address=address, inline=inline,
            max_concurrent=max_concurrent, studies=studies, watch=progress.watch,
        )  # fmt: skip
    if tuning.interrupted or tuning.tuned is None:
        console.print(f"interrupted; what finished is stored, go on with: raysweep tune {file}")
        raise typer.Exit(128 + tuning.interrupted)
    print_tuned(console, tuning.tuned, sweep)
    console.print(f"{tuning.ran} stages ran, {tuning.cached} were stored already")
    for note in tuning.notes[progress.noted :]:
        console.print(note)
    for warning in tuning.warnings:
        console.print(f"warning: {warning}", style="yellow")
    console.print(f"table: {tuning.where}")
    console.print(f"report: {tuning.report}")
    if write is not None:
        tuned = tuned_sweep(sweep, tuning.tuned.rows)
        write.write_text(to_yaml(tuned))
        console.print(f"tuned sweep file: {write}, of sweep {tuned.name}")
