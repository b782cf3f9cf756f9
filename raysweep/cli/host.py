"""The commands on this machine and the format of sweep files: doctor, schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli.options import Storage, open_console


def schema() -> None:
    """Print the JSON Schema of sweep files, for editors."""
    from raysweep.sweep.schema import json_schema

    print(json.dumps(json_schema(), indent=2))


def doctor(
    file: Annotated[
        Path | None, typer.Argument(help="A sweep file, whose needs are checked.")
    ] = None,
    storage: Storage = None,
) -> None:
    """Check this machine: versions, devices, memory, data, W&B login, storage.

    Fails if something is missing that the sweep file needs; without one only the storage counts.
    """
    from raysweep.cli.doctor import print_doctor
    from raysweep.sweep.loading import load_sweep

    sweep = load_sweep(file) if file else None
    if not print_doctor(open_console(), storage, sweep):
        raise typer.Exit(1)
