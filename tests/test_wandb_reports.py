"""W&B Reports against a server on loopback: written, updated, compared, refused."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysweep.cli.app import app
from raysweep.errors import RaysweepError
from raysweep.reports.material import Material
from raysweep.results.description import write_description
from raysweep.results.table import write_tables
from raysweep.results.wandb_reports.report import write
from raysweep.results.wandb_reports.subject import Subject
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.spec import Track
from tests.material import generated
from tests.wandb_server import ENTITY, State, send_to, serving

ONLINE = Track(wandb="online", project="p")
EVIL = "<script>alert(1)</script> \x1b[31m [x](javascript:y)"


@pytest.fixture(scope="module")
def world() -> Iterator[State]:
    with serving() as state:
        yield state


@pytest.fixture
def server(world: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    send_to(world, monkeypatch)
    yield world
    world.clear()


@functools.cache
def few() -> Material:
    """Return material of two attacks, of which one has a trial that failed."""
    material = generated(seeds=1)
    rows = material.rows[(material.rows["rate"] == 0.05) & (material.rows["attack"] != "blend")]
    return replace(material, rows=rows.reset_index(drop=True))


def subject(name: str = "s", **changed: Any) -> Subject:
    material = few()
    given = {"about": material.sweep, "rows": material.rows, "stages": material.stages}
    return Subject(**{"name": name, "track": ONLINE, "tuned": material.tuned, **given, **changed})


def views(server: State, kind: str) -> list[dict[str, Any]]:
    found = [view for view in server.views.values() if view["type"] == kind]
    return [view | {"spec": json.loads(view["spec"])} for view in found]


def texts(value: object) -> list[str]:
    """Return every text within a JSON value."""
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inside for text in texts(one)]


def panels(report: dict[str, Any]) -> list[dict[str, Any]]:
    grids = [block for block in report["spec"]["blocks"] if block["type"] == "panel-grid"]
    return [p for grid in grids for p in grid["metadata"]["panelBankSectionConfig"]["panels"]]


def filters(view: dict[str, Any]) -> set[tuple[str, str]]:
    """Return all (parameter, value) by which sets of runs of a report are chosen."""
    found = set()

    def visit(value: object) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("key"), dict) and "value" in value:
                found.add((value["key"]["name"], str(value["value"])))
            for one in value.values():
                visit(one)
        elif isinstance(value, list):
            for one in value:
                visit(one)

    visit(view["spec"])
    return found


def test_a_report_answers_and_shows_and_is_updated_in_place(server: State) -> None:
    first = write([subject()])
    (report,) = views(server, "runs")
    assert report["displayName"] == "raysweep s" and report["projectName"] == "p"
    assert first.report == f"{server.url}/{ENTITY}/p/reports/raysweep-s--{report['id']}"
    said = " ".join(texts(report["spec"]))
    for part in (
        "Which defenses hold against three triggers?", "Attack by defense", "ASR without defense",
        "NonFiniteLoss: step 7", "abc123", "name: generated", "perfect\\_filter",
    ):  # fmt: skip
        assert part in said, part
    kinds = [panel["viewType"] for panel in panels(report)]
    assert {
        "Vega2", "Bar Chart", "Scatter Plot", "Run History Line Plot", "Media Browser",
        "Parallel Coordinates Plot", "Weave",
    } == set(kinds)  # fmt: skip
    curves = [p for p in panels(report) if p["viewType"] == "Run History Line Plot"]
    shown = {tuple(one["config"]["metrics"]) for one in curves}
    assert shown >= {("loss",), ("accuracy",)}, "of the victims, by epoch"
    charts = [p["config"]["panelDefId"] for p in panels(report) if p["viewType"] == "Vega2"]
    assert sorted(set(charts)) == ["wandb/confusion_matrix/v1", "wandb/lineseries/v0"]
    (parallel,) = (p for p in panels(report) if p["viewType"] == "Parallel Coordinates Plot")
    axes = [column["accessor"] for column in parallel["config"]["columns"]]
    assert axes == [
        "config:parameter_overlays.value", "config:parameter_fpr.value", "summary:tuned_tpr",
        "summary:tuned_seconds",
    ]  # fmt: skip
    assert filters(report) >= {("attack_name", name) for name in ("badnets", "sig")}
    assert write([subject()]) == first
    assert len(server.views) == 2 and {view["saved"] for view in server.views.values()} == {2}
    assert not server.unknown


def test_the_saved_view_groups_the_trials_of_the_sweep(server: State) -> None:
    written = write([subject()])
    (view,) = views(server, "project-view")
    assert view["displayName"] == "raysweep s" and written.view.startswith(server.url)
    assert written.view.rpartition("=")[2] in view["name"]
    (runs,) = view["spec"]["section"]["runSets"]
    assert [key["name"] for key in runs["grouping"]] == ["attack.value", "defense.value"]
    assert "summary:asr" in runs["runFeed"]["columnOrder"]


def test_several_sweeps_share_one_report_of_their_own(server: State) -> None:
    write([subject("a")])
    both = write([subject("a"), subject("b", tuned=None)])
    titles = {view["displayName"] for view in server.views.values()}
    assert titles == {"raysweep a", "raysweep a and b"} and "a-and-b" in both.report
    (report,) = (v for v in views(server, "runs") if v["displayName"] == "raysweep a and b")
    assert {("sweep_name", "a"), ("sweep_name", "b")} <= filters(report)
    (table, _) = (b["content"] for b in report["spec"]["blocks"]
                  if b["type"] == "markdown-block" and "| a | b |" in b["content"])  # fmt: skip
    cells = {line.split("|")[3].strip(): line.split("|")[4:6] for line in table.splitlines()}
    one, other = cells["none"]
    assert one == other and "[" in one.replace("\\", ""), "both with their intervals"


def test_hostile_text_stays_text(server: State) -> None:
    material = few()
    rows = material.rows.assign(error=EVIL)
    rows["attack"], rows["defense"] = EVIL + rows["attack"], EVIL + rows["defense"]
    about = material.sweep.__class__(question=EVIL, text=EVIL, git_commit=EVIL)
    write([subject(rows=rows, about=about)])
    (report,) = views(server, "runs")
    assert "\x1b" not in json.dumps(report, ensure_ascii=False)
    for block in report["spec"]["blocks"]:
        if block["type"] == "markdown-block":
            assert "<script>" not in block["content"] and "](java" not in block["content"]


def test_what_goes_wrong_is_said_with_its_remedy(
    server: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.order("graphql upsertView", 403)
    with pytest.raises(RaysweepError, match=r"did not take the report of p .* `wandb login`"):
        write([subject()])
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    for name in [name for name in sys.modules if "wandb_reports" in name]:
        monkeypatch.delitem(sys.modules, name)
    from raysweep.results.wandb_reports import report

    with pytest.raises(RaysweepError, match=r"pip install \"raysweep\[wandb-reports\]\""):
        report.write([subject()])


def store_sweep(uri: str, name: str, mode: str) -> None:
    material, store = few(), Store(uri)
    plan = {"name": name, "track": {"wandb": mode, "project": "p"}}
    about = {"question": material.sweep.question, "sweep": plan, "concluded": True}
    write_description(store, name, material.sweep.__class__(name=name, **about))
    write_tables(store, name, material.rows, material.stages)
    assert material.tuned is not None
    store.write(SweepFolder(store, name).tuned, material.tuned.pack())


def test_the_command_prints_the_urls(
    server: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, mode in (("a", "online"), ("b", "offline"), ("c", "disabled")):
        store_sweep(str(tmp_path), name, mode)
    where = ["--storage", str(tmp_path)]
    app(["report", "a", "--wandb", *where], standalone_mode=False)
    out = capsys.readouterr()
    assert out.out.splitlines()[0].startswith(f"{server.url}/{ENTITY}/p/reports/raysweep-a--")
    assert len(out.out.splitlines()) == 2 and "0" * 40 not in out.out + out.err
    app(["report", "a", "b", "--wandb", *where], standalone_mode=False)
    out = capsys.readouterr()
    assert "raysweep-a-and-b--" in out.out and "the runs of b are kept offline" in out.err
    for words, rule in (
        (["a", "c", "--wandb"], "track.wandb: disabled"), (["a", "b"], "add --wandb"),
        (["a", "--wandb", "--output", "x"], "give one of them"),
    ):  # fmt: skip
        with pytest.raises(RaysweepError, match=rule):
            app(["report", *words, *where], standalone_mode=False)
