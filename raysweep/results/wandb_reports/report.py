"""Write the report and the saved view of sweeps to W&B."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raysweep.errors import RaysweepError
from raysweep.results.text import visible
from raysweep.results.wandb_reports.subject import Subject

if TYPE_CHECKING:
    import wandb

TITLE_CHARACTERS = 128  # that W&B takes
EXTRA = 'W&B Reports need wandb-workspaces: pip install "raysweep[wandb-reports]"'


@dataclass(frozen=True, kw_only=True)
class Written:
    """The report and the saved view as they stand on the server: their URLs."""

    report: str
    view: str


def write(subjects: Sequence[Subject]) -> Written:
    """Create or update the report and the saved view of sweeps.

    A report is found by its title, a view by its name: both follow from the sweeps' names.

    Args:
        subjects: one sweep, or several to be compared; all stands in the project of the first.

    Raises:
        RaysweepError: if wandb-workspaces is not installed, or W&B does not take them.
    """
    try:
        from raysweep.results.wandb_reports.view import save_view
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("wandb_workspaces"):
            raise
        raise RaysweepError(EXTRA) from None
    track = subjects[0].track
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the library tells where it has saved
            import wandb

            api = wandb.Api()
            entity = track.entity or str(api.default_entity)
            report = _save_report(api, entity, subjects)
            return Written(report=report, view=save_view(entity, subjects))
    except Exception as error:
        where = "/".join(name for name in (track.entity, track.project) if name)
        raise RaysweepError(
            f"W&B did not take the report of {where} ({type(error).__name__}: {error}); log in "
            f"with `wandb login`, and name a project by track.entity and track.project to which "
            f"you may write"
        ) from error


def _save_report(api: wandb.Api, entity: str, subjects: Sequence[Subject]) -> str:
    """Save the report under its title, in place of the one that has it; return its URL."""
    from wandb_workspaces.reports.v2 import interface as wr

    from raysweep.results.wandb_reports.blocks import blocks

    project = subjects[0].track.project
    title = f"raysweep {' and '.join(one.name for one in subjects)}"[:TITLE_CHARACTERS]
    report = wr.Report(
        project=project, entity=entity, width="fluid", title=title,
        description=visible(subjects[0].about.question or ""), blocks=blocks(entity, subjects),
    )  # fmt: skip
    standing = [one.id for one in api.reports(f"{entity}/{project}") if one.display_name == title]
    if standing:
        report.id = standing[0]
    report.save()
    return str(report.url)
