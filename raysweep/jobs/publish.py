"""The tail that launch, tune and report share: the page, and Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.reports.html import render
from raysweep.reports.material import gather
from raysweep.run.interruption import Signals
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.spec import Track

if TYPE_CHECKING:
    from raysweep.results.wandb import Published
    from raysweep.run.run import Run


READ_WITHIN = 4.0  # seconds; a launch does not wait for long when its last stage has ended


@dataclass(frozen=True, kw_only=True)
class Page:
    """The HTML report of a sweep as it was written.

    Attributes:
        where: its path or URI.
        notes: what is to be said about the records that it shows, a line each.
    """

    where: str
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """The end of publishing to W&B: where the runs are, and what went wrong, a line each."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def write_page(
    folder: SweepFolder, output: Path | None = None, *, within: float = READ_WITHIN
) -> Page:
    """Write the HTML report of a stored sweep: into its folder, or to a local file.

    Args:
        folder: of the sweep.
        output: the local file.
        within: seconds after which no more curves and pictures are read; the page says how many
            trials lack theirs.

    Raises:
        StoreError: if there is no sweep of that name, or the page cannot be written.
    """
    material = gather(folder.name, folder.store.uri, within)
    html = render(material).encode()
    if output is None:
        folder.store.write(folder.report, html)
    else:
        output.write_bytes(html)
    where = folder.store.where(folder.report) if output is None else str(output)
    return Page(where=where, notes=material.notes)


def to_wandb(run: Run, signals: Signals, send: Callable[[str, Track, Path], Published]) -> Tracked:
    """Publish results that are stored already; a first signal breaks it off.

    Args:
        run: the run that has ended.
        signals: those that stop it.
        send: writes to W&B, given the sweep's name, mode and project, and the folder of
            offline runs; not called where tracking is disabled.

    Whatever happens at W&B, the sweep stands.
    """
    if run.sweep.track.wandb == "disabled":
        return Tracked()
    folder = SweepFolder(run.store, run.sweep.name).wandb
    try:
        with signals.raising():
            sent = send(run.sweep.name, run.sweep.track, folder)
    except KeyboardInterrupt:
        return Tracked(
            warnings=["W&B: stopped by a signal; what is missing is published by the next launch"]
        )
    return Tracked(
        notes=[sent.note] if sent.note else [], warnings=[sent.warning] if sent.warning else []
    )
