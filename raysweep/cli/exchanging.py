"""The commands that exchange poisoned sets and victims with other projects: export, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli.options import Storage, SweepFile, check_output, open_console
from raysweep.errors import SpecError


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
    check_output("--to", to, folder=True)
    for given in poisoned_sets(load_sweep(file), Store(storage_uri(storage))):
        open_console().print(str(writers[form](given, to)))


def import_folder(
    folder: Annotated[Path, typer.Argument(help="One attack's folder of the other project.")],
    to: Annotated[Path, typer.Option(help="Folder to write; nothing is overwritten.")],
    form: Annotated[
        str, typer.Option("--format", help="backdoorbench or backdoor-toolbox.")
    ] = "backdoorbench",
) -> None:
    """Make another project's poisoned set an attack of your sweeps; runs nothing that it holds."""
    from raysweep.exchange import backdoorbench, check_free, toolbox
    from raysweep.exchange.folder import read_foreign, save
    from raysweep.paths import resolved

    readers = {"backdoorbench": backdoorbench.read, "backdoor-toolbox": toolbox.read}
    if form not in readers:
        raise SpecError(f"--format must be one of {', '.join(readers)}, got {form!r}")
    check_output("--to", to, folder=True)
    check_free(to)
    foreign = read_foreign(readers[form], folder)
    save(foreign, to)
    console = open_console()
    console.print(str(foreign))
    stamped = "" if len(foreign.test_rows) else ", trigger: NAME OF AN ATTACK"
    where = resolved(str(to))  # a sweep file may stand in another folder
    console.print(f"in a sweep file: attacks: [{{imported: {{path: {where}{stamped}}}}}]")
