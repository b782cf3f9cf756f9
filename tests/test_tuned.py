"""What a tuning leaves is packed to JSON and back; what is damaged is said by its field."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from raysweep.errors import StoreError
from raysweep.results.account import (
    NOTHING,
    CandidateRow,
    CurvePoint,
    DecisionCurve,
    SearchAccount,
)
from raysweep.results.tuned import Tuned, TunedMetric, TunedRow  # fmt: skip
from raysweep.sweep.tuning import Tune

TPR = TunedMetric(tuned=0.8, default=0.5, oracle=0.9, interval=(0.7, 0.85))
COST = TunedMetric(tuned=2.5, default=2.0, oracle=1.0, interval=(2.0, 3.0))
ROW = TunedRow(
    defense="strip(overlays=8)", labels="transfer", held_out="blend", point=0,
    parameters={"fpr": 0.02, "overlays": 8, "layer": None, "classes": (1, (2, "three"), True)},
    tried=9, seconds=4.5, gpu_seconds=0.0, note="", metrics={"tpr": TPR, "gpu_seconds": COST},
)  # fmt: skip
MEAN = replace(
    ROW, held_out="mean of 2", parameters={}, note="constraints hold: tuned 2, own 1",
    metrics={"tpr": replace(TPR, interval=None), "gpu_seconds": replace(COST, interval=None)},
)  # fmt: skip
NEVER_RAN = replace(ROW, held_out=NOTHING, tried=0, note="no such picture", metrics={})
CANDIDATES = (
    CandidateRow(
        number=0, state="complete", parameters={"fpr": 0.1}, metrics={"tpr": 0.5}, seconds=1.5
    ),
    CandidateRow(number=1, state="running", parameters={"fpr": 0.2}, metrics={}, seconds=None),
)
CURVE = DecisionCurve(
    parameter="overlays", chosen=8,
    points=(CurvePoint(value=2, tpr=0.5, fpr=0.1), CurvePoint(value=3, tpr=0.5, fpr=0.25)),
)  # fmt: skip
TUNED = Tuned(
    settings=Tune(metric=["tpr", "gpu_seconds"], trials=9),
    rows=(ROW, NEVER_RAN),
    means=(MEAN,),
    searches=(
        SearchAccount(
            defense=ROW.defense, held_out="blend", history=CANDIDATES, importance={"fpr": 1.0},
            curve=CURVE,
        ),
        SearchAccount(defense=ROW.defense, held_out=NOTHING),
    ),
)  # fmt: skip


def test_all_that_a_tuning_leaves_is_unpacked_as_it_was_packed() -> None:
    assert Tuned.unpack(TUNED.pack()) == TUNED
    assert TunedRow.unpack(ROW.pack()) == ROW
    assert SearchAccount.unpack(TUNED.searches[0].pack()) == TUNED.searches[0]


def test_a_row_is_written_by_set_of_parameters_and_a_mean_by_metric() -> None:
    assert list(ROW.pack()) == [
        "defense", "labels", "held_out", "point", "parameters", "tried", "seconds", "gpu_seconds",
        "note", "tuned_tpr", "tuned_gpu_seconds", "default_tpr", "default_gpu_seconds",
        "oracle_tpr", "oracle_gpu_seconds", "tuned_tpr_low", "tuned_tpr_high",
        "tuned_gpu_seconds_low", "tuned_gpu_seconds_high",
    ]  # fmt: skip
    assert list(MEAN.columns()) == [
        "tuned_tpr", "default_tpr", "oracle_tpr", "tuned_gpu_seconds", "default_gpu_seconds",
        "oracle_gpu_seconds",
    ]  # fmt: skip
    assert NEVER_RAN.columns() == {}
    assert (ROW.columns()["oracle_tpr"], ROW.columns()["tuned_tpr_high"]) == (0.9, 0.85)


def test_numbers_that_are_undefined_come_back_undefined() -> None:
    nothing = float("nan")
    undefined = TunedMetric(tuned=nothing, default=0.0, oracle=nothing, interval=(nothing, nothing))
    text = replace(TUNED, rows=(replace(ROW, metrics={"tpr": undefined}),)).pack()
    assert Tuned.unpack(text).pack() == text and b"NaN" in text


def test_the_oldest_tables_have_no_means() -> None:
    told = json.loads(TUNED.pack())
    del told["means"], told["searches"][1]["curve"]
    assert Tuned.unpack(json.dumps(told).encode()) == replace(TUNED, means=())


def put(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(told: Any) -> None:
        for step in path[:-1]:
            told = told[step]
        told[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("rows", 1, "defense", value=3), r"rows\[1\]\.defense must be text, got 3"),
        (put("rows", 0, "tuned_tpr", value="x"), r'rows\[0\]\.tuned_tpr must be a number, got "x"'),
        (put("rows", 0, "tuned_tpr_high", value=None), r"rows\[0\]\.tuned_tpr_high must be a num"),
        (put("rows", 0, "tuned_tqr", value=0.5), r"rows\[0\]\.tuned_tqr is unknown"),
        (put("rows", 0, "point", value=True), r"rows\[0\]\.point must be a whole number, got true"),
        (put("rows", 0, "labels", value="all"), r"rows\[0\]\.labels must be one of .*'transfer'"),
        (put("rows", 0, "parameters", value=[]), r"rows\[0\]\.parameters must be a mapping"),
        (put("rows", 0, "parameters", "fpr", value={}), r"rows\[0\]\.parameters\.fpr must be a va"),
        (put("rows", value={}), "rows must be a list"),
        (put("means", 0, "note", value=None), r"means\[0\]\.note must be text, got null"),
        (put("settings", "labels", value="all"), r"settings\.labels: Input should be"),
        (put("settings", "wanted", value=1), r"settings\.wanted: Extra inputs"),
        (put("searches", 0, "history", 1, "state", value="lost"), r"history\[1\]\.state must be o"),
        (put("searches", 0, "history", 0, "metrics", "x", value=1), r"metrics must be a mapping"),
        (put("searches", 0, "importance", "fpr", value="1"), r"importance\.fpr must be a number"),
        (put("searches", 0, "curve", "points", 1, value={"value": 1}), r"points\[1\]\.tpr is miss"),
        (put("searches", 0, "curve", "chosen", value={}), r"searches\[0\]\.curve\.chosen must be"),
        (lambda told: told.pop("searches"), "searches is missing"),
    ],
)  # fmt: skip
def test_damage_is_said_by_its_field(change: Callable[[Any], None], said: str) -> None:
    told = json.loads(TUNED.pack())
    change(told)
    with pytest.raises(StoreError, match=rf"^/s/tuned\.json is damaged: .*{said}.* anew$"):
        Tuned.unpack(json.dumps(told).encode(), "/s/tuned.json")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[]", b"[" * 100_000])
def test_what_is_no_table_at_all_is_damage_too(text: bytes) -> None:
    with pytest.raises(StoreError, match=r"tuned\.json is damaged: .*tune the sweep again"):
        Tuned.unpack(text)
