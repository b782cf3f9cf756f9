"""The command line: a doorway. Everything that a flag could set is set in the sweep file."""

from __future__ import annotations

import errno
import io
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from raysweep import __version__
from raysweep.cli import (
    attach,
    comparing,
    exchanging,
    host,
    init,
    leaderboard,
    looking,
    methods,
    remote,
    removing,
    running,
    storing,
    sync,
)
from raysweep.errors import PlanError, PluginWarning, RaysweepError, SpecError
from raysweep.results.text import visible

_usual_warning = warnings.formatwarning

app = typer.Typer(
    help="Sweeps over backdoor attacks and defenses: plan, launch, look.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (running.plan, running.launch, running.tune, looking.status, looking.report):
    app.command()(command)
app.command()(remote.submit)
app.command()(init.init)
app.command()(exchanging.export)
app.command(name="import")(exchanging.import_folder)
app.command()(attach.attach)
app.command()(attach.stop)
app.command()(looking.sweeps)
app.command()(looking.logs)
app.command()(looking.results)
app.command()(leaderboard.leaderboard)
app.command()(comparing.compare)
app.command()(sync.sync)
app.command(name="rm")(removing.remove)
app.command(name="list")(methods.list_methods)
app.command()(methods.show)
app.add_typer(storing.app, name="store")
app.command()(host.schema)
app.command()(host.doctor)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"raysweep {__version__}")
        raise typer.Exit


@app.callback()
def _before(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""
    del version


def main() -> None:
    """Run the command line; a known error or warning is one message, never a traceback."""
    warnings.formatwarning = _warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a sign that it lacks is no error
            stream.reconfigure(errors="replace")
    try:
        app()
    except (SpecError, PlanError) as error:
        _fail(str(error), 2)
    except RaysweepError as error:
        _fail(str(error), 1)
    except OSError as error:
        remedy = _remedy(error)
        _fail(f"{error}{remedy and f'; {remedy}'}", 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _remedy(error: OSError) -> str:
    """Return the remedy of an error of the operating system; nothing where none is known."""
    if isinstance(error, ConnectionError | TimeoutError):
        return "what is stored is kept: give the command again once the connection works"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space there, then give the command again: what is stored is kept"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "name a place that you may write to, or give yourself the permission"
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return "correct the path, or make the folder"
    return ""


def _warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Return a warning as the terminal shows it; a plugin's without a line of code."""
    if issubclass(category, PluginWarning):
        return f"warning: {visible(str(message))}\n"
    return _usual_warning(message, category, filename, lineno, line)


def _fail(message: str, status: int) -> NoReturn:
    """Print an error, whose names may hold escape codes, and end with a status."""
    from raysweep.environment import masked

    print(f"error: {visible(masked(message))}", file=sys.stderr)
    sys.exit(status)
