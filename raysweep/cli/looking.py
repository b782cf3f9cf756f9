"""The commands that look at sweeps: status, report, sweeps, logs, results."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raysweep.cli.options import Storage, SweepName, check_output, open_console
from raysweep.cli.output import AsJson, print_json, print_text
from raysweep.errors import SpecError

if TYPE_CHECKING:
    from raysweep.store.heartbeat import Heartbeat


def status(name: SweepName, storage: Storage = None, as_json: AsJson = False) -> None:
    """Show the state of a sweep, while it runs and afterwards."""
    from raysweep.cli.terminal import print_status
    from raysweep.results import status as states
    from raysweep.results.records import storage_uri
    from raysweep.store import Store

    now = states.status(Store(storage_uri(storage)), name, tell_waiting)
    if as_json:
        print_json(now)
    else:
        print_status(open_console(), now)


def tell_waiting(beat: Heartbeat) -> None:
    """Say on standard error that a sign of life of a driver is waited for."""
    open_console(error=True).print(f"waiting for a sign of the driver on {beat.host} ...")


def report(
    name: SweepName,
    others: Annotated[
        list[str] | None,
        typer.Argument(help="More sweeps, to be compared with the first in a W&B Report."),
    ] = None,
    storage: Storage = None,
    output: Annotated[Path | None, typer.Option(help="Where to write the HTML file.")] = None,
    to_wandb: Annotated[
        bool,
        typer.Option(
            "--wandb", help="Create or update a W&B Report and a saved view; print their URLs."
        ),
    ] = False,
) -> None:
    """Write the HTML report of a sweep from its records, or a W&B Report of it."""
    from raysweep.jobs.publish import write_page
    from raysweep.jobs.wandb_report import report_to_wandb
    from raysweep.results.records import storage_uri
    from raysweep.store import Store
    from raysweep.store.sweepfolder import SweepFolder

    if to_wandb and output is not None:
        raise SpecError("--output names the HTML file, and --wandb writes none; give one of them")
    if to_wandb:
        written = report_to_wandb([name, *(others or ())], storage_uri(storage))
        for note in written.notes:
            open_console(error=True).print(note)
        print_text(f"{written.report}\n{written.view}\n")
        return
    if others:
        raise SpecError(
            f"an HTML report is of one sweep, got {name}, {', '.join(others)}; add --wandb for a "
            f"W&B Report that compares them, or use raysweep compare"
        )
    check_output("--output", output)
    folder = SweepFolder(Store(storage_uri(storage)), name)
    page = write_page(folder, output, within=math.inf)
    for note in page.notes:
        open_console(error=True).print(note)
    open_console().print(page.where)


def sweeps(storage: Storage = None, as_json: AsJson = False) -> None:
    """List the sweeps that a storage holds: state, trials, when they were launched, tuning."""
    from raysweep.cli.terminal import print_sweeps
    from raysweep.results.records import storage_uri
    from raysweep.results.status import all_sweeps
    from raysweep.store import Store

    store = Store(storage_uri(storage))
    found = all_sweeps(store)
    if as_json:
        print_json(found)
    else:
        print_sweeps(open_console(), found, store.where())


def logs(
    name: SweepName,
    trial: Annotated[
        str | None,
        typer.Argument(
            help="The beginning of a trial's id, or a part of its name, "
            "`attack · defense · seed N`; all trials if it is left out."
        ),
    ] = None,
    storage: Storage = None,
    as_json: AsJson = False,
) -> None:
    """Print the logs of the stages that failed, with their tracebacks."""
    from raysweep.cli.terminal import print_logs
    from raysweep.reports.logs import failure_logs
    from raysweep.results.records import storage_uri
    from raysweep.store import Store

    found = failure_logs(Store(storage_uri(storage)), name, trial)
    if as_json:
        print_json(found)
    else:
        print_logs(open_console(), found, name if trial is None else trial)


def results(
    name: SweepName,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="table, csv, json or parquet (every row), markdown or latex (the table).",
        ),
    ] = "table",
    output: Annotated[Path | None, typer.Option(help="File to write; parquet needs one.")] = None,
    version: Annotated[
        int | None, typer.Option(min=1, help="Of the records, as status lists them; the newest.")
    ] = None,
    storage: Storage = None,
) -> None:
    """Print the results of a sweep, or write them to a file: one row per trial, or the table."""
    from raysweep.cli.terminal import print_results
    from raysweep.reports.formats import FORMATS
    from raysweep.results.records import read, storage_uri
    from raysweep.store import Store

    if form not in ("table", *FORMATS):
        raise SpecError(f"--format must be one of table, {', '.join(FORMATS)}, got {form!r}")
    if form == "parquet" and output is None:
        raise SpecError("--format parquet is no text; name a file with --output")
    if form == "table" and output is not None:
        raise SpecError("--output writes a format; give --format csv, json, parquet, ...")
    check_output("--output", output)
    records = read(Store(storage_uri(storage)), name, version)
    for note in records.notes:
        open_console(error=True).print(note)
    if form == "table":
        print_results(open_console(), records.rows)
    elif output is None:
        print_text(FORMATS[form](records.rows).decode())
    else:
        output.write_bytes(FORMATS[form](records.rows))
        open_console().print(str(output))
