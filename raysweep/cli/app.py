"""The command line: a doorway. Everything that a flag could set is set in the sweep file."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raysweep.errors import PlanError, RaysweepError, SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from raysweep.jobs.launch import Conclusion

app = typer.Typer(
    help="Sweeps over backdoor attacks and defenses: plan, launch, look.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Storage = Annotated[
    str | None,
    typer.Option(help="Folder, s3:// or gs:// [RAYSWEEP_STORAGE, else ./raysweep-store]."),
]
SweepFile = Annotated[Path, typer.Argument(help="A sweep file, .yaml or .py.")]
SweepName = Annotated[str, typer.Argument(help="The name that the sweep file gives.")]


def _console(*, error: bool = False) -> Console:
    from rich.console import Console

    # Names and messages hold brackets; they are text, not markup.
    console = Console(stderr=error, soft_wrap=True, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200  # A file or a pipe has no width of its own.
    return console


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Exit with the status of a signal, 128 + its number, when a signal stops a run."""
    from raysweep.run.interruption import Interrupted, catching_signals

    with catching_signals():
        try:
            yield
        except Interrupted as stopped:
            print(f"{stopped}; nothing was run", file=sys.stderr)
            raise typer.Exit(128 + stopped.number) from None


@app.command()
def plan(file: SweepFile, storage: Storage = None) -> None:
    """Show the plan of a launch: stages to run, shared work, and reasons."""
    from raysweep.cli.terminal import print_preview
    from raysweep.results.records import storage_uri
    from raysweep.run.preview import preview
    from raysweep.store import Store
    from raysweep.sweep.loading import load_sweep

    sweep = load_sweep(file)
    print_preview(_console(), sweep, preview(sweep, Store(storage_uri(storage))))


@app.command()
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

    with _stoppable(), Progress(_console(error=True)) as progress:
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

    console = _console()
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


@app.command()
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
    console = _console()
    if write is not None and write.exists():
        raise SpecError(f"--write: {str(write)!r} is there already; remove it, or name another")
    with _stoppable(), Progress(_console(error=True)) as progress:
        sweep = load_sweep(file)
        tuning = search(
            sweep, file.read_text(), storage_uri(storage), address=address, inline=inline,
            max_concurrent=max_concurrent, studies=studies, watch=progress.watch,
        )  # fmt: skip
    if tuning.interrupted or tuning.tuned is None:
        console.print(f"interrupted; what finished is stored, go on with: raysweep tune {file}")
        raise typer.Exit(128 + tuning.interrupted)
    print_tuned(console, tuning.tuned)
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


@app.command()
def status(name: SweepName, storage: Storage = None) -> None:
    """Show the state of a sweep, while it runs and afterwards."""
    from raysweep.cli.terminal import print_status
    from raysweep.results.records import storage_uri
    from raysweep.store import Store

    print_status(_console(), Store(storage_uri(storage)), name)


@app.command()
def report(
    name: SweepName,
    storage: Storage = None,
    output: Annotated[Path | None, typer.Option(help="Where to write the HTML file.")] = None,
) -> None:
    """Write the HTML report of a sweep from its records."""
    from raysweep.jobs.publish import write_page
    from raysweep.results.records import storage_uri
    from raysweep.store import Store
    from raysweep.store.sweepfolder import SweepFolder

    page = write_page(SweepFolder(Store(storage_uri(storage)), name), output)
    for note in page.notes:
        _console(error=True).print(note)
    _console().print(page.where)


@app.command()
def export(
    file: SweepFile,
    to: Annotated[Path, typer.Option(help="Folder to write below; nothing is overwritten.")],
    form: Annotated[
        str, typer.Option("--format", help="backdoorbench or backdoor-toolbox.")
    ] = "backdoorbench",
    storage: Storage = None,
) -> None:
    """Write a finished sweep's poisoned sets and victims in another project's format."""
    from raysweep.exchange import backdoorbench, poisoned_sets, toolbox
    from raysweep.results.records import storage_uri
    from raysweep.store import Store
    from raysweep.sweep.loading import load_sweep

    writers = {"backdoorbench": backdoorbench.write, "backdoor-toolbox": toolbox.write}
    if form not in writers:
        raise SpecError(f"--format must be one of {', '.join(writers)}, got {form!r}")
    for given in poisoned_sets(load_sweep(file), Store(storage_uri(storage))):
        _console().print(str(writers[form](given, to)))


@app.command(name="import")
def import_folder(
    folder: Annotated[Path, typer.Argument(help="One attack's folder of the other project.")],
    to: Annotated[Path, typer.Option(help="Folder to write; nothing is overwritten.")],
    form: Annotated[
        str, typer.Option("--format", help="backdoorbench or backdoor-toolbox.")
    ] = "backdoorbench",
) -> None:
    """Make another project's poisoned set an attack of your sweeps; runs nothing that it holds."""
    from raysweep.exchange import backdoorbench, toolbox
    from raysweep.exchange.folder import read_foreign, save
    from raysweep.paths import resolved

    readers = {"backdoorbench": backdoorbench.read, "backdoor-toolbox": toolbox.read}
    if form not in readers:
        raise SpecError(f"--format must be one of {', '.join(readers)}, got {form!r}")
    foreign = read_foreign(readers[form], folder)
    save(foreign, to)
    console = _console()
    console.print(str(foreign))
    stamped = "" if len(foreign.test_rows) else ", trigger: NAME OF AN ATTACK"
    where = resolved(str(to))  # a sweep file may stand in another folder
    console.print(f"in a sweep file: attacks: [{{imported: {{path: {where}{stamped}}}}}]")


@app.command(name="list")
def list_methods(
    role: Annotated[str, typer.Argument(help="attacks, defenses, datasets or models.")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="The table of the README.")] = False,
) -> None:
    """List the methods that a sweep file can name: idea, source, and where ours differs."""
    from raysweep.cli.terminal import print_methods
    from raysweep.methods import ROLES
    from raysweep.sweep import catalog

    if role and role not in ROLES:
        raise SpecError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
    roles = [r for r in ROLES if role in ("", r)]
    if markdown:
        print("\n\n".join(catalog.markdown(r) for r in roles))
    else:
        print_methods(_console(), roles)


@app.command()
def schema() -> None:
    """Print the JSON Schema of sweep files, for editors."""
    from raysweep.sweep.schema import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command()
def doctor(storage: Storage = None) -> None:
    """Check this machine: versions, devices, data, storage."""
    from raysweep.cli.doctor import print_doctor

    if not print_doctor(_console(), storage):
        raise typer.Exit(1)


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
