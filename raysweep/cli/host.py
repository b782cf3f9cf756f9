"""The commands on this machine and the format of sweep files: doctor, schema."""

from __future__ import annotations

import json

import typer

from raysweep.cli.options import Storage, open_console


def schema() -> None:
    """Print the JSON Schema of sweep files, for editors."""
    from raysweep.sweep.schema import json_schema

    print(json.dumps(json_schema(), indent=2))


def doctor(storage: Storage = None) -> None:
    """Check this machine: versions, devices, data, storage."""
    from raysweep.cli.doctor import print_doctor

    if not print_doctor(open_console(), storage):
        raise typer.Exit(1)
