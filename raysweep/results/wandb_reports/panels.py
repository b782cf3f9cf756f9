"""The panels of reports and saved views: sets of runs, and charts over them."""

from __future__ import annotations

from collections.abc import Sequence

from wandb_workspaces import expr
from wandb_workspaces.reports.v2 import interface as wr

from raysweep.results.wandb_reports.subject import Subject

HEAT_MAP, LINES = "wandb/confusion_matrix/v1", "wandb/lineseries/v0"  # charts that W&B brings
CHARTS = {
    "roc": ("ROC: TPR by FPR", "FPR"),
    "precision_recall": ("Precision by recall", "recall"),
    "scores_of_training_samples": ("Scores of training samples", "score"),
    "scores_of_inputs": ("Scores of inputs", "score"),
}
PICTURES = ["examples", "trigger", "highest_scored"]
TITLES = {
    "asr": "attack success rate", "ca": "clean accuracy", "tpr": "TPR of training samples",
    "fpr": "FPR of training samples", "input_tpr": "TPR of inputs", "input_fpr": "FPR of inputs",
}  # fmt: skip

COLUMNS = 24  # of a grid of panels


def runset(entity: str, one: Subject, **equal: str) -> wr.Runset:
    """Return the runs of a sweep, or those of them whose parameters are as given.

    The sweep is told by `sweep_name`: the library takes a parameter `sweep` for a W&B sweep.

    Args:
        entity: of the project.
        one: the sweep.
        equal: parameter → its value; `job` stands for W&B's job type.
    """
    conditions = [expr.Config("sweep_name") == one.name]
    for name, value in equal.items():
        key = expr.Metric("JobType") if name == "job" else expr.Config(name)
        conditions.append(key == value)
    return wr.Runset(
        entity=entity, project=one.track.project, name=one.name, filters=expr.And(*conditions)
    )


def chart(
    table: str, name: str, strings: dict[str, str], fields: dict[str, str], layout: wr.Layout
) -> wr.CustomChart:
    """Return a chart that W&B brings, of a table that runs have logged."""
    return wr.CustomChart(
        query={"summaryTable": {"tableKey": table}}, chart_name=name, chart_fields=fields,
        chart_strings=strings, layout=layout,
    )  # fmt: skip


def bars(metrics: Sequence[str]) -> list[wr.PanelTypes]:
    """Return a bar plot of each metric: the mean of each defense, and the range of its trials."""
    return [
        wr.BarPlot(
            title=TITLES[metric], metrics=[wr.SummaryMetric(metric)],
            groupby=wr.Config("defense"), groupby_aggfunc="mean", groupby_rangefunc="minmax",
            layout=wr.Layout(x=12 * (n % 2), y=8 * (n // 2), w=12, h=8),
        )
        for n, metric in enumerate(metrics)
    ]  # fmt: skip


def measured(subjects: Sequence[Subject]) -> list[str]:
    """Return the metrics that some trial has, of those that have a title."""
    frames = [one.rows for one in subjects]
    return [m for m in TITLES if any(m in rows and rows[m].notna().any() for rows in frames)]


def accuracy_plot(y: int) -> wr.PanelTypes:
    """Return the plot of each trial's clean accuracy against its attack success rate."""
    return wr.ScatterPlot(
        title="clean accuracy by attack success rate", x=wr.SummaryMetric("asr"),
        y=wr.SummaryMetric("ca"), layout=wr.Layout(y=y, w=COLUMNS, h=8),
    )  # fmt: skip
