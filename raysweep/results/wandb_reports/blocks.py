"""The blocks of a report: question and answer, heat maps, attacks, curves, tuning, cost, origin."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping, Sequence

import pandas as pd
from wandb_workspaces.reports.v2 import interface as wr

from raysweep.results.columns import Cell
from raysweep.results.entries.sweep import JOB, answers, cost, failures, headline, matrix
from raysweep.results.entries.tuning import CANDIDATE, SEARCH, parameters
from raysweep.results.entries.tuning import JOB as TUNE
from raysweep.results.text import markdown_table, visible
from raysweep.results.wandb_reports.panels import (
    CHARTS,
    COLUMNS,
    HEAT_MAP,
    LINES,
    PICTURES,
    TITLES,
    accuracy_plot,
    bars,
    chart,
    measured,
    runset,
)
from raysweep.results.wandb_reports.subject import Subject


def blocks(entity: str, subjects: Sequence[Subject]) -> list[wr.BlockTypes]:
    """Return the blocks of a report on one sweep, or on several side by side."""
    made: list[wr.BlockTypes] = [wr.TableOfContents()]
    for one in subjects:
        made += [wr.H1(text=f"Sweep {one.name}"), *_answer(one), *_heat_maps(entity, one)]
    if len(subjects) > 1:
        made += _compared(subjects)
    made += [wr.H1(text="Attacks"), *_attacks(entity, subjects)]
    made += [wr.H1(text="Curves"), _curves(entity, subjects)]
    for one in subjects:
        told = [*_tuning(entity, one), *_cost(entity, one), *_failures(one), *_origin(one)]
        made += [wr.H1(text=f"Inside {one.name}"), *told]
    return made


# One sweep


def _answer(one: Subject) -> Iterator[wr.BlockTypes]:
    """Yield question and answer: what can be said of each arena, and of each attack."""
    if one.about.question:
        yield wr.P(text=visible(one.about.question))
    if said := [sentence for _, sentence in answers(one.rows)]:
        yield wr.UnorderedList(items=[visible(sentence) for sentence in said])
    found = headline(one.rows)
    if len(found):
        headers = ["attack", "arena", "ASR without defense", "holds", "worse",
                   "not told from none", "untested", "finding"]  # fmt: skip
        lines = [
            [row["attack"], row["arena"], share(row, "undefended_asr"), row["holds"], row["worse"],
             row["indistinct"], row["untested"], row["failed"]]
            for row in found.to_dict("records")
        ]  # fmt: skip
        yield wr.MarkdownBlock(text=markdown_table(headers, lines))


def _heat_maps(entity: str, one: Subject) -> Iterator[wr.BlockTypes]:
    """Yield the maps of attack by defense: a chart, and a table with intervals for each arena."""
    found = matrix(one.rows)
    if found.empty:
        return
    yield wr.H2(text="Attack by defense")
    panels: list[wr.PanelTypes] = [
        chart(
            "attack_by_defense", HEAT_MAP, {"title": f"{TITLES[metric]}, %"},
            {"Actual": "attack_at_rate", "Predicted": "defense",
             "nPredictions": f"{metric}_percent"},
            layout=wr.Layout(x=12 * n, w=12, h=12),
        )
        for n, metric in enumerate(("asr", "ca"))
    ]  # fmt: skip
    panels.append(
        wr.WeavePanelSummaryTable(
            table_name="attack_by_defense", layout=wr.Layout(y=12, w=COLUMNS, h=10)
        )
    )
    yield wr.PanelGrid(runsets=[runset(entity, one, job=JOB)], panels=panels)
    for arena, part in found.groupby("arena", sort=False):
        yield wr.H3(text=visible(f"ASR in %: {arena}"))
        yield wr.MarkdownBlock(text=_map(part, "asr"))


def _map(part: pd.DataFrame, metric: str) -> str:
    """Return one arena as a table in Markdown: a line per defense, a column per attack."""
    attacks = list(dict.fromkeys(part["attack_at_rate"].map(str)))
    lines = []
    for defense, own in part.groupby("defense", sort=False):
        cells = {row["attack_at_rate"]: share(row, metric) for row in own.to_dict("records")}
        lines.append([str(defense), *(cells.get(attack, "–") for attack in attacks)])
    return markdown_table(["defense", *attacks], lines)


def _compared(subjects: Sequence[Subject]) -> Iterator[wr.BlockTypes]:
    """Yield ASR and clean accuracy of each cell, a column per sweep."""
    yield wr.H1(text="Side by side")
    cells: dict[tuple[str, ...], dict[str, dict[Hashable, Cell]]] = {}
    for one in subjects:
        for row in matrix(one.rows).to_dict("records"):
            place = tuple(str(row[name]) for name in ("arena", "attack_at_rate", "defense"))
            cells.setdefault(place, {})[one.name] = row
    for metric in ("asr", "ca"):
        lines = [
            [*place, *(share(found.get(one.name, {}), metric) for one in subjects)]
            for place, found in cells.items()
        ]
        headers = ["arena", "attack", "defense", *(one.name for one in subjects)]
        yield wr.H3(text=f"{TITLES[metric]}, %")
        yield wr.MarkdownBlock(text=markdown_table(headers, lines))


def share(row: Mapping[Hashable, Cell], metric: str) -> str:
    """Return a share in percent, with the ends of its interval where it has one."""
    value, low, high = (_number(row.get(f"{metric}{end}")) for end in ("", "_low", "_high"))
    if value != value:
        return "–"
    known = f" [{100 * low:.1f}–{100 * high:.1f}]" if low == low else ""
    return f"{100 * value:.1f}{known}"


def _number(value: Cell) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _attacks(entity: str, subjects: Sequence[Subject]) -> Iterator[wr.BlockTypes]:
    """Yield the panels of each attack, over the trials of all sweeps."""
    metrics = measured(subjects)
    for name in dict.fromkeys(name for one in subjects for name in one.attacks):
        own = [one for one in subjects if name in one.attacks]
        yield wr.H2(text=visible(name))
        yield wr.PanelGrid(
            runsets=[runset(entity, one, attack_name=name) for one in own],
            panels=[*bars(metrics), accuracy_plot(8 * ((len(metrics) + 1) // 2))],
        )


def _curves(entity: str, subjects: Sequence[Subject]) -> wr.BlockTypes:
    """Return the panels of curves, of pictures, and of the victims' losses."""
    panels: list[wr.PanelTypes] = [
        chart(
            f"{name}_table", LINES, {"title": title, "xname": x_title},
            {"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"},
            layout=wr.Layout(x=12 * (n % 2), y=8 * (n // 2), w=12, h=8),
        )
        for n, (name, (title, x_title)) in enumerate(CHARTS.items())
    ]  # fmt: skip
    panels += [
        wr.LinePlot(
            title=f"{name} of the victims", x="epoch", y=[name],
            layout=wr.Layout(x=6 * n, y=16, w=6, h=8),
        )
        for n, name in enumerate(("loss", "accuracy"))
    ]  # fmt: skip
    panels.append(wr.MediaBrowser(media_keys=PICTURES, layout=wr.Layout(x=12, y=16, w=12, h=8)))
    return wr.PanelGrid(runsets=[runset(entity, one) for one in subjects], panels=panels)


# What stands behind the numbers of one sweep


def _tuning(entity: str, one: Subject) -> Iterator[wr.BlockTypes]:
    """Yield the results of the searches: parallel coordinates, candidates, held-out numbers."""
    if one.tuned is None:
        return
    names = dict.fromkeys(name for row in one.tuned.rows for name in parameters(row))
    columns = dict.fromkeys(name for row in one.tuned.rows for name in row.columns())
    metrics = [name for name in columns if name.startswith("tuned_") and name.count("_") == 1]
    axes = [wr.Config(name) for name in names] + [wr.SummaryMetric(name) for name in metrics]
    history = [name.removeprefix("tuned_") for name in metrics]
    yield wr.H2(text="Tuning")
    yield wr.PanelGrid(
        runsets=[runset(entity, one, job=SEARCH)],
        panels=[
            wr.ParallelCoordinatesPlot(
                title="parameters that the searches found",
                columns=[wr.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes],
                layout=wr.Layout(w=COLUMNS, h=10),
            ),
            *(
                wr.LinePlot(
                    title=f"{name} of the candidates", x="candidate", y=[f"{CANDIDATE}{name}"],
                    layout=wr.Layout(x=12 * (n % 2), y=10 + 8 * (n // 2), w=12, h=8),
                )
                for n, name in enumerate(history)
            ),
        ],
    )  # fmt: skip
    tables: list[wr.PanelTypes] = [
        wr.WeavePanelSummaryTable(table_name=name, layout=wr.Layout(y=8 * n, w=COLUMNS, h=8))
        for n, name in enumerate(("tuned", "candidates"))
    ]
    yield wr.PanelGrid(runsets=[runset(entity, one, job=TUNE)], panels=tables)


def _cost(entity: str, one: Subject) -> Iterator[wr.BlockTypes]:
    """Yield the seconds of the stages, by kind, and of a trial, by defense."""
    table = cost(one.stages)
    if table.empty:
        return
    yield wr.H2(text="Cost")
    lines = [
        [row["kind"], row["stages"], f"{row['seconds']:.1f}", f"{row['gpu_seconds']:.1f}"]
        for row in table.to_dict("records")
    ]
    headers = ["stage", "how many", "seconds", "GPU seconds"]
    yield wr.MarkdownBlock(text=markdown_table(headers, lines))
    seconds = wr.BarPlot(
        title="seconds of a trial by itself", metrics=[wr.SummaryMetric("standalone_seconds")],
        groupby=wr.Config("defense"), groupby_aggfunc="mean", layout=wr.Layout(w=COLUMNS, h=8),
    )  # fmt: skip
    yield wr.PanelGrid(runsets=[runset(entity, one)], panels=[seconds])


def _failures(one: Subject) -> Iterator[wr.BlockTypes]:
    """Yield the trials that did not finish, by cause."""
    yield wr.H2(text="Failures")
    found = failures(one.rows)
    if found.empty:
        yield wr.P(text="No trial failed.")
    else:
        lines = found[["error", "trials", "stage", "first"]].to_numpy().tolist()
        headers = ["error", "trials", "stage", "the first of them"]
        yield wr.MarkdownBlock(text=markdown_table(headers, lines))


def _origin(one: Subject) -> Iterator[wr.BlockTypes]:
    """Yield the origin of the numbers: versions, commit, storage, and the sweep file."""
    about = one.about
    launched = ""
    if about.created_at is not None:
        launched = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(about.created_at))
    facts = {
        "launched": launched,
        "commit": about.git_commit, "storage": about.storage, **(about.versions or {}),
    }  # fmt: skip
    lines = [[name, fact] for name, fact in facts.items() if fact]
    yield wr.H2(text="Provenance")
    yield wr.MarkdownBlock(text=markdown_table(["what", "value"], lines))
    if about.text:
        yield wr.CodeBlock(code=visible(about.text), language="yaml")
