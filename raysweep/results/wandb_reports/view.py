"""The saved view of sweeps: their trials in W&B's own table and charts."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from wandb_workspaces import expr
from wandb_workspaces.workspaces import interface as ws

from raysweep.identity import digest
from raysweep.results.wandb_reports.panels import accuracy_plot, bars, measured
from raysweep.results.wandb_reports.subject import Subject

NAME_CHARACTERS = 11  # of a view's name in its URL
PINNED = tuple(f"config:{name}.value" for name in ("attack", "rate", "defense", "seed"))


def save_view(entity: str, subjects: Sequence[Subject]) -> str:
    """Save the view of sweeps, in place of the one that has its name; return its URL."""
    project, names = subjects[0].track.project, [one.name for one in subjects]
    short = digest("/".join(names))[:NAME_CHARACTERS]
    view = ws.Workspace(entity=entity, project=project, name=f"raysweep {' and '.join(names)}")
    with contextlib.suppress(ValueError):  # there is none yet
        view = ws.Workspace.from_url(f"https://any/{entity}/{project}?nw={short}")
    view._internal_name = f"nw-{short}-v"  # else it is named by chance
    metrics = measured(subjects)
    view.sections = [
        ws.Section(
            name="Metrics by defense", is_open=True,
            panels=[*bars(metrics), accuracy_plot(8 * ((len(metrics) + 1) // 2))],
        )
    ]  # fmt: skip
    view.runset_settings = ws.RunsetSettings(
        filters=expr.And(expr.Config("sweep_name").isin(names)),
        groupby=[expr.Config("attack"), expr.Config("defense")],
        pinned_columns=[*PINNED, *(f"summary:{metric}" for metric in metrics)],
    )
    return str(view.save().url)  # type: ignore[no-untyped-call]
