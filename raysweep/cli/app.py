"""The command line: a doorway. Everything that a flag could set is set in the sweep file."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from raysweep.cli import exchanging, host, looking, methods, removing, running
from raysweep.cli.output import visible
from raysweep.errors import PlanError, RaysweepError, SpecError

app = typer.Typer(
    help="Sweeps over backdoor attacks and defenses: plan, launch, look.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (running.plan, running.launch, running.tune, looking.status, looking.report):
    app.command()(command)
app.command()(exchanging.export)
app.command(name="import")(exchanging.import_folder)
app.command()(looking.sweeps)
app.command()(looking.logs)
app.command()(looking.results)
app.command(name="rm")(removing.remove)
app.command(name="list")(methods.list_methods)
app.command()(methods.show)
app.command()(host.schema)
app.command()(host.doctor)


def main() -> None:
    """Run the command line; a known error is one message, never a traceback."""
    try:
        app()
    except (SpecError, PlanError) as error:
        _fail(str(error), 2)
    except RaysweepError as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(f"{error}; what is stored is kept, so launch again", 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str, status: int) -> NoReturn:
    """Print an error, whose names may hold escape codes, and end with a status."""
    print(f"error: {visible(message)}", file=sys.stderr)
    sys.exit(status)
