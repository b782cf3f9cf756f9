"""The jobs as functions for Python and notebooks: what the command line does, with values.

`import raysweep` offers them under their names, without importing anything before the first use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from raysweep.errors import SpecError
from raysweep.jobs import launch as launching
from raysweep.jobs import tune as searching
from raysweep.jobs.launch import Conclusion
from raysweep.jobs.publish import Page, write_page
from raysweep.jobs.tune import Tuning
from raysweep.results.records import storage_uri
from raysweep.run.run import Run
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.loading import read_sweep
from raysweep.sweep.spec import Sweep, to_yaml


def launch(
    sweep: Sweep | str | Path,
    storage: str | None = None,
    *,
    address: str | None = None,
    inline: bool = False,
    max_concurrent: int | None = None,
    force: Sequence[str] = (),
    watch: Callable[[Run], None] | None = None,
) -> Conclusion:
    """Run the stages of a sweep that are missing or failed; write its records and its report.

    What is stored is never computed again, so that a second launch of the same sweep ends at once.
    Failed trials are rows of the records, not exceptions. Ctrl-C (in a notebook: interrupt the
    kernel) stops the run; records and report are written from what there is.

        from raysweep.attacks.badnets import BadNets
        from raysweep.datasets.digits import Digits
        from raysweep.defenses.none import NoDefense
        from raysweep.models.tiny_cnn import TinyCNN

        sweep = raysweep.Sweep(
            name="first", dataset=Digits(), model=TinyCNN(), attack=BadNets(rate=0.1),
            defense=NoDefense(), seeds=3,
        )
        done = raysweep.launch(sweep, inline=True)
        done.rows.groupby("attack")["asr"].mean()

    Args:
        sweep: the sweep, or the path of its file, `.yaml` or `.py`.
        storage: a folder, or an s3:// or gs:// URI, where artifacts and records are kept; by
            default the environment variable RAYSWEEP_STORAGE, else `./raysweep-store`.
        address: of a running Ray cluster, `auto` on its head node; by default Ray is started on
            this machine, and stopped at the end.
        inline: run in this process, one stage after another, without Ray; debuggers work.
        max_concurrent: the most stages that run at once, from 1; by default as many as fit.
        force: stage kinds, such as `train`, and methods whose stages are done again although they
            are stored; what is made from them follows where their results change.
        watch: called with the run whenever its state has changed; by default nothing is.

    Returns:
        the records as a DataFrame (`rows`), the path of the report (`report`), numbers of stages
        and trials, and warnings.

    Raises:
        SpecError: if the sweep file is wrong, line by line, or both `inline` and `address` are
            given.
        PlanError: if the sweep cannot be carried out as asked: missing data, an impossible rate.
        HostError: if no host of the cluster may do the work; records are written before.
        StoreError: if the storage cannot be written.
        Interrupted: a KeyboardInterrupt, if a signal comes before anything was run.
    """
    _one_place(inline, address)
    made, text = _read(sweep)
    return launching.launch(
        made, text, storage_uri(storage), address=address, inline=inline,
        max_concurrent=max_concurrent, force=force, watch=watch or (lambda run: None),
    )  # fmt: skip


def tune(
    sweep: Sweep | str | Path,
    storage: str | None = None,
    *,
    address: str | None = None,
    inline: bool = False,
    max_concurrent: int | None = None,
    studies: str | None = None,
    watch: Callable[[Run], None] | None = None,
) -> Tuning:
    """Search better parameters for the defenses of a sweep; report them on what they have not seen.

    The `tune` section of the sweep says what is searched and by which labels; without one, every
    decision parameter is tuned. Scores that are stored are not computed again.

        found = raysweep.tune("sweep.yaml", inline=True)
        raysweep.load_tuned("first")[["defense", "held_out", "parameters"]]

    Args:
        sweep: the sweep, or the path of its file, `.yaml` or `.py`.
        storage: where artifacts and records are kept, as `launch` takes it.
        address: of a running Ray cluster; by default Ray is started on this machine.
        inline: run in this process, without Ray.
        max_concurrent: the most stages that run at once, from 1; by default as many as fit.
        studies: URL of a database for Optuna's studies, which several drivers may share; by
            default a journal in the storage.
        watch: called with the run whenever its state has changed; by default nothing is.

    Returns:
        the tuned parameters (`tuned`, none if it was interrupted), the paths of table and report,
        numbers of stages, and warnings.

    Raises:
        SpecError: if there is nothing to tune, a setting is wrong, or both `inline` and `address`
            are given.
        PlanError: if the sweep cannot be carried out as asked.
        HostError: if no host of the cluster may do the work.
        StoreError: if the storage cannot be written.
        Interrupted: a KeyboardInterrupt, if a signal comes before anything was run.
    """
    _one_place(inline, address)
    made, text = _read(sweep)
    return searching.tune(
        made, text, storage_uri(storage), address=address, inline=inline,
        max_concurrent=max_concurrent, studies=studies, watch=watch or (lambda run: None),
    )  # fmt: skip


def report(name: str, storage: str | None = None, output: str | Path | None = None) -> Page:
    """Write the HTML report of a stored sweep, also while it runs.

        raysweep.report("first", output="first.html").where

    Args:
        name: of the sweep.
        storage: where its records are, as `launch` takes it.
        output: path of the file; by default `report.html` in the sweep's folder of the storage.

    Returns:
        the path or URI of the page (`where`), and remarks on the records that it shows (`notes`).

    Raises:
        StoreError: if there is no sweep of that name; the message lists those that there are.
        OSError: if the file cannot be written.
    """
    folder = SweepFolder(Store(storage_uri(storage)), name)
    where = None if output is None else Path(output)
    return write_page(folder, where, within=math.inf)


def _read(sweep: Sweep | str | Path) -> tuple[Sweep, str]:
    """Return a sweep and the text that its records keep of it."""
    if isinstance(sweep, Sweep):
        return sweep, to_yaml(sweep)
    if not isinstance(sweep, str | Path):
        raise SpecError(
            f"sweep must be a raysweep.Sweep or the path of a sweep file, got "
            f"{type(sweep).__name__}"
        )
    loaded = read_sweep(Path(sweep))
    return loaded.sweep, loaded.text


def _one_place(inline: bool, address: str | None) -> None:
    if inline and address:
        raise SpecError(
            f"inline=True runs in this process and address={address!r} on a cluster; give one"
        )
