"""The command that compares two sweeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raysweep.cli.options import Storage, SweepName, check_output, open_console
from raysweep.cli.output import AsJson, print_json

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from raysweep.results.changes import Changes

MOST_NAMED = 10  # trials that stand in one sweep alone


def compare(
    first: SweepName,
    second: SweepName,
    storage: Storage = None,
    second_storage: Annotated[
        str | None, typer.Option(help="Of the second sweep, if it is stored elsewhere.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="HTML file to write: the page of the comparison, which opens offline."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every cell, changed or not.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the changes from one sweep to another: trials of the same setting, paired."""
    from raysweep.jobs.compare import compare as compared

    check_output("--output", output)
    found = compared(first, second, storage, second_storage=second_storage, output=output)
    if as_json:
        print_json(
            {name: value.to_dict("records") if hasattr(value, "to_dict") else value
             for name, value in vars(found).items()}
        )  # fmt: skip
    else:
        _print(open_console(), found, every)
    if output is not None:
        open_console(error=as_json).print(str(output))


def _print(console: Console, found: Changes, every: bool) -> None:
    """Print counts, parameters, defenses over all attacks, and cells."""
    first, second = found.names
    console.print(
        f"{first}: {found.trials[0]} trials, {second}: {found.trials[1]} trials; {found.both} are "
        f"in both, {found.same} of them evaluated by the same artifact"
    )
    for name, only in ((first, found.only_first), (second, found.only_second)):
        for trial in only[:MOST_NAMED]:
            console.print(f"only in {name}: {trial}")
        if len(only) > MOST_NAMED:
            console.print(f"only in {name}: {len(only) - MOST_NAMED} more trials")
    if not found.both:
        return
    _table(console, "parameters that differ", ("parameter", first, second, "trials"),
           found.parameters.astype(str).to_numpy().tolist())  # fmt: skip
    _table(console, f"{second} − {first} over attacks, in points",
           ("arena", "defense", "metric", "difference", "p (Holm)", "n"),
           [_over_attacks(row) for row in _records(found.defenses)])  # fmt: skip
    cells = found.cells if every else _changed(found.cells)
    title = "every cell" if every else "cells whose difference is not explained by chance"
    _table(console, f"{title}, in percent",
           ("arena", "attack", "defense", "metric", first, second, "difference", "n"),
           [_cell(row) for row in _records(cells)])  # fmt: skip


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): cell for name, cell in row.items()} for row in table.to_dict("records")]


def _over_attacks(row: Mapping[str, Any]) -> list[str]:
    return [
        row["arena"], row["defense"], row["metric"], change(row["value"], row["low"], row["high"]),
        _p(row["holm"]), f"{row['n']} {row['unit']}",
    ]  # fmt: skip


def _cell(row: Mapping[str, Any]) -> list[str]:
    return [
        row["arena"], f"{row['attack']} @ {100 * row['rate']:g} %", row["defense"], row["metric"],
        f"{100 * row['first']:.1f}", f"{100 * row['second']:.1f}",
        change(row["difference"], row["low"], row["high"]), str(row["n"]),
    ]  # fmt: skip


def _changed(cells: pd.DataFrame) -> pd.DataFrame:
    return cells[(cells["low"] > 0) | (cells["high"] < 0)]


def change(value: float, low: float, high: float) -> str:
    """Return a difference in points, with its interval where it has one."""
    shown = "–" if math.isnan(value) else f"{100 * value:+.1f}"
    return shown if math.isnan(low) else f"{shown} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _p(p: float) -> str:
    return "–" if math.isnan(p) else f"{p:.2g}"


def _table(
    console: Console, title: str, headers: Sequence[str], lines: Sequence[Sequence[str]]
) -> None:
    from rich.table import Table

    if not lines:
        console.print(f"{title}: none")
        return
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")
    for line in lines:
        table.add_row(*line)
    console.print(table)
