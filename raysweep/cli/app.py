"""The command line: a doorway. Everything that a flag could set is set in the sweep file."""

from __future__ import annotations

import sys

import typer

from raysweep.cli import exchanging, host, looking, methods, removing, running
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
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RaysweepError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"error: {error}; what is stored is kept, so launch again", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
