"""The page of a sweep, which launch, tune and report write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raysweep.reports.html import render
from raysweep.reports.material import gather
from raysweep.store.sweepfolder import SweepFolder

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
