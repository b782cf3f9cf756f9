"""The columns of the records: every name stands once, and only there is a name taken apart."""

from __future__ import annotations

import ast
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raysweep.metrics.names import INPUT, SEPARABILITY, Family, cases
from raysweep.results import columns, description, entries
from raysweep.results.columns import FOUND, KEYS, PARAMETERS, Costs, Origin, Status, TrialRow, Who
from raysweep.results.description import Description
from raysweep.results.table import read_table, write_tables
from raysweep.store import Store

ROOT = Path(__file__).parent.parent / "raysweep"
FAMILIES = (KEYS, FOUND, SEPARABILITY, INPUT, *PARAMETERS.values(), Family("losses_"))
NAMED_IN = {"metrics/names.py", "metrics/curves.py", "results/columns.py"}


def who() -> Who:
    return Who(
        sweep="s", trial="t", dataset="digits", model="linear", attack="badnets(size=2)",
        attack_name="badnets", rate=0.05, evades=False, target=0, defense="strip",
        defense_name="strip", kind="detector", badges="", seed=3,
    )  # fmt: skip


def costs() -> Costs:
    return Costs(own_seconds=1.0, shared_seconds=2.0, standalone_seconds=3.0, gpu_seconds=0.0)


def whole() -> TrialRow:
    return TrialRow(
        who=who(), parameters={"attack": {"rate": 0.05, "size": 2}, "recipe": {"augment": "[]"}},
        status=Status(status="ok"), metrics={"ca": 0.9, "ca_n": 10, "separability_axes": None},
        origin=Origin(host="h", git_commit="c", finished_at=1.8e9), found={"models": 5.0},
        costs=costs(), keys={"data": "prepare-1", "evaluate": "evaluate-2"},
    )  # fmt: skip


def test_a_row_holds_its_groups_in_order() -> None:
    assert list(whole().pack()) == [
        "sweep", "trial", "dataset", "model", "attack", "attack_name", "rate", "evades", "target",
        "defense", "defense_name", "kind", "badges", "seed", "attack.rate", "attack.size",
        "recipe.augment", "status", "error", "error_stage", "log", "ca", "ca_n",
        "separability_axes", "host", "git_commit", "finished_at", "found.models", "own_seconds",
        "shared_seconds", "standalone_seconds", "gpu_seconds", "key_data", "key_evaluate",
    ]  # fmt: skip


def test_a_row_before_its_evaluation_has_no_metrics() -> None:
    row = TrialRow(
        who=who(), parameters={}, status=Status(status="pending"), costs=costs(), keys={}
    )
    assert list(row.pack()) == [*columns.WHO, *columns.STATUS, *columns.COSTS]


def test_families_give_back_what_they_were_given() -> None:
    packed = whole().pack()
    assert KEYS.within(packed) == {"data": "key_data", "evaluate": "key_evaluate"}
    assert FOUND.within(packed) == {"models": "found.models"}
    assert PARAMETERS["attack"].within(packed) == {"rate": "attack.rate", "size": "attack.size"}
    for family in FAMILIES:
        for name in ("a", "a.b", family.prefix, "key_"):
            assert family.within([family.of(name), "other"]) == {name: family.of(name)}
    assert cases(INPUT.of("tpr")) == INPUT.of(cases("tpr")) == "input_tpr_n"


def test_parameters_are_told_from_everything_else() -> None:
    packed = whole().pack()
    parameters = {column for column in packed if columns.is_parameter(column)}
    assert parameters == {"attack.rate", "attack.size", "recipe.augment"}
    for other in ("attack", "found.attack.rate", "separability_block.2", "key_model.1"):
        assert not columns.is_parameter(other), other
    config, summary = entries.config_of(packed), entries.summary_of(packed)
    assert {"rate", "attack.rate", "trial", "git_commit"} < config.keys()
    assert summary == {
        "ca": 0.9, "ca_n": 10, "ca_low": pytest.approx(0.596, abs=1e-3),
        "ca_high": pytest.approx(0.982, abs=1e-3), "found.models": 5, "standalone_seconds": 3,
        "evades": 0,
    }  # fmt: skip


@pytest.mark.parametrize("cell", [None, float("nan"), np.float32("inf"), pd.NA, pd.NaT])
def test_what_is_undefined_is_in_neither(cell: float) -> None:
    row = {**whole().pack(), "attack.size": cell, "ca": cell}
    assert "attack.size" not in entries.config_of(row) and "ca" not in entries.summary_of(row)


def test_a_table_without_a_required_column_is_none(tmp_path: Path) -> None:
    store, rows = Store(str(tmp_path)), pd.DataFrame([whole().pack()])
    stage = {field.name: "" for field in fields(columns.StageRow)}
    stages = pd.DataFrame([stage])
    write_tables(store, "s", rows, stages)
    known = read_table(store, "s", "records"), read_table(store, "s", "stages")
    assert known[0] is not None and list(known[0]) == list(rows)
    assert known[1] is not None and list(known[1]) == list(stage)
    write_tables(store, "s", rows.drop(columns=["sweep", "evades"]), stages.drop(columns="log"))
    assert read_table(store, "s", "records") is not None, "written before these columns were"
    assert read_table(store, "s", "stages") is not None
    write_tables(store, "s", rows.drop(columns="rate"), stages.drop(columns="trials"))
    assert read_table(store, "s", "records") is None and read_table(store, "s", "stages") is None


# What is written down about a sweep

DESCRIBED = Description(
    name="s", question="q", text="name: s", sweep={"name": "s"}, created_at=1.5e9, storage="/x",
    versions={"torch": "2"}, git_commit="", precision="float32", concluded=False,
)  # fmt: skip


def test_a_description_is_what_was_packed(tmp_path: Path) -> None:
    assert list(DESCRIBED.pack()) == [field.name for field in fields(Description)]
    raw = json.dumps(DESCRIBED.pack(), indent=1).encode()
    assert Description.unpack(raw) == DESCRIBED
    store = Store(str(tmp_path))
    description.write_description(store, "s", DESCRIBED)
    assert store.read("sweeps/s/sweep.json") == raw
    assert description.described(store, "s") == DESCRIBED
    assert description.described(store, "other") == Description()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 5), ("sweep", []), ("created_at", -1), ("created_at", 1e12),
        ("created_at", float("nan")), ("created_at", "2026"), ("versions", {"torch": 2}),
        ("concluded", "no"), ("precision", None),
    ],
)  # fmt: skip
def test_what_is_damaged_of_a_description_is_left_out(field: str, value: object) -> None:
    raw = json.dumps({**DESCRIBED.pack(), field: value, "unknown": 1}).encode()
    assert Description.unpack(raw).pack() == {
        name: known for name, known in DESCRIBED.pack().items() if name != field
    }


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"5", b"[" * 10**5, b"\xff"])
def test_a_damaged_file_describes_nothing(raw: bytes) -> None:
    assert Description.unpack(raw) == Description()


# Names are taken apart in one place


def taken_apart(text: str) -> list[str]:
    """Return the texts in code that are the beginning, or a member, of a family of names."""
    return [
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if any(node.value.startswith(family.prefix) for family in FAMILIES)
    ]


def test_no_other_file_writes_or_reads_the_name_of_a_family() -> None:
    files = [
        file
        for package in ("metrics", "results", "reports", "jobs", "cli")
        for file in sorted((ROOT / package).glob("*.py"))
    ]
    found = {str(file.relative_to(ROOT)): taken_apart(file.read_text()) for file in files}
    assert {file: names for file, names in found.items() if names and file not in NAMED_IN} == {}


def test_names_that_are_taken_apart_are_found() -> None:
    for line in (
        'c.startswith("key_")', 'row.get("key_evaluate")', 'f"found.{name}"',
        'n.removeprefix("separability_")', '"input_" + metric', 'f"losses_{who}"',
    ):  # fmt: skip
        assert len(taken_apart(line)) == 1, line
    assert taken_apart('row["attack"] + row["defense_name"] + "seed"') == []
