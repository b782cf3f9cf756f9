"""Records of a name as files: which versions there are, what is damaged, what stands in."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import raysweep
from raysweep.errors import StoreError
from raysweep.jobs.launch import launch
from raysweep.results import history
from raysweep.results.rows import Collector
from raysweep.store import Store
from raysweep.sweep.loading import from_text
from raysweep.sweep.yaml import parse
from tests.material import row

SWEEP = """
name: mine
dataset: {digits: {size: 200}}
model: linear
recipe: {epochs: 1}
attacks: [{badnets: {rate: 0.1}}]
defenses: [none]
seeds: 1
track: {wandb: disabled}
"""


def rows_of(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame([row(trial="a", key_evaluate="e")]).assign(**columns)


def put(store: Store, place: str, rows: pd.DataFrame) -> None:
    """Write records as any other program would."""
    path = Path(store.uri) / "sweeps" / place / "records.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(path)


def describe(store: Store, place: str, **values: Any) -> None:
    store.write(f"sweeps/{place}/sweep.json", json.dumps(values).encode())


def test_versions_are_counted_from_one_with_rows_and_those_that_succeeded(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    put(store, "s/versions/2", pd.concat([rows_of(), rows_of(status="failed")]))
    put(store, "s/versions/10", rows_of())
    describe(store, "s", created_at=7.5)
    found = history.versions(store, "s")
    assert [(one.number, one.rows, one.ok, one.launched) for one in found] == [
        (2, 2, 1, 0.0), (10, 1, 1, 0.0), (11, None, None, 7.5),
    ]  # fmt: skip
    assert history.folder_of(store, "s") == history.folder_of(store, "s", 11) == "s"
    assert history.folder_of(store, "s", 10) == "s/versions/10"
    for wrong in (0, 1, 3, 12):
        with pytest.raises(StoreError, match=rf"no version {wrong}; there are: 2, 10, 11"):
            history.folder_of(store, "s", wrong)
    store.write("sweeps/tuned/tune/sweep.json", b"{}")
    assert history.folder_of(store, "tuned") == "tuned/tune"
    store.write("sweeps/tuned/sweep.json", b"{}")
    assert history.folder_of(store, "tuned") == "tuned"
    with pytest.raises(StoreError, match=r"no sweep 'x' in .*; there are: s, tuned;"):
        history.folder_of(store, "x")
    for file in ("s.yaml", "../s.yaml"):
        with pytest.raises(StoreError, match="the name that the sweep file sets, not the file"):
            history.folder_of(store, file)
        with pytest.raises(StoreError, match="the name that the sweep file sets, not the file"):
            raysweep.report(file, store.uri)


@pytest.mark.parametrize("at", [-1, 1e11, 1e300, "now", None, 0, 5.5])
def test_a_date_that_is_none_is_left_out(tmp_path: Path, at: Any) -> None:
    store = Store(str(tmp_path))
    describe(store, "s", name="s", created_at=at, text=5)
    put(store, "s", rows_of())
    about = raysweep.load("s", store.uri).attrs["sweep"]
    valid = at in (0, 5.5) and not isinstance(at, str)
    assert about["name"] == "s" and "text" not in about and ("created_at" in about) == valid
    (only,) = history.versions(store, "s")
    assert only.launched == (at if valid else 0)


def test_what_is_there_and_cannot_be_read_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    sweep = from_text(parse("s.yaml", SWEEP))
    launch(sweep, SWEEP, store.uri, inline=True)
    assert history.damage(store, "mine") == [] == history.damage(store, "another")
    put(store, "mine", raysweep.load("mine", store.uri).drop(columns="badges"))
    store.write("sweeps/mine/stages.parquet", b"torn")
    store.write("sweeps/mine/sweep.json", b"[1]")
    said = history.damage(store, "mine")
    assert [line.split(" is damaged")[0].rsplit("/")[-1] for line in said] == [
        "sweep.json", "records.parquet", "stages.parquet",
    ]  # fmt: skip


def test_rows_that_are_derived_say_which_stages_are_damaged(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    rows = launch(from_text(parse("s.yaml", SWEEP)), SWEEP, store.uri, inline=True).rows
    evaluated = rows["key_evaluate"][0]
    store.delete("sweeps/mine/records.parquet")
    derived = raysweep.load("mine", store.uri)
    assert derived["status"].tolist() == ["ok"] and derived["ca"].equals(rows["ca"])
    (note,) = derived.attrs["notes"]
    assert note == "derived from what is stored: 1 of 1 trials are finished"
    store.write(f"manifests/evaluate/{evaluated}.json", b"")
    derived = raysweep.load("mine", store.uri)
    assert derived["status"].tolist() == ["pending"] and derived["key_evaluate"][0] == evaluated
    assert derived.attrs["notes"] == [
        "derived from what is stored: 0 of 1 trials are finished",
        f"damaged, and counted as missing until the next launch: {evaluated}",
    ]
    again = launch(from_text(parse("s.yaml", SWEEP)), SWEEP, store.uri, inline=True)
    assert again.ran == 1 and again.notes == ["1 stored stages are damaged and run again"]


def test_the_newest_of_earlier_rows_that_succeeded_stands_in() -> None:
    lacking = rows_of(ca=None, status="failed", key_evaluate=None, key_data="d")
    newest, oldest = rows_of(ca=0.5, key_data="d", extra=1), rows_of(ca=0.4, key_data="d")
    merged, kept = history.with_succeeded(lacking, newest, oldest)
    assert kept == 1 and merged["ca"].tolist() == [0.5] and merged["extra"].tolist() == [1]
    assert list(merged.columns)[: len(lacking.columns)] == list(lacking.columns)
    merged, kept = history.with_succeeded(lacking, None, newest.assign(key_data="other"), oldest)
    assert kept == 1 and merged["ca"].tolist() == [0.4]
    fine, kept = history.with_succeeded(rows_of(ca=0.1), newest)
    assert kept == 0 and fine["ca"].tolist() == [0.1]
    assert history.succeeded(newest) == {("a", "e")}
    assert history.succeeded(lacking) == history.succeeded(None) == set()


def test_damaged_stages_are_said_in_one_line() -> None:
    assert history.damage_notes([]) == []
    (one,), (three,) = history.damage_notes(["b"]), history.damage_notes(["c", "a", "b"])
    assert one.endswith("launch: b") and three.endswith("launch: a and 2 more")


def test_a_parameter_of_two_kinds_is_kept_as_text_and_numbers_stay_numbers(tmp_path: Path) -> None:
    """A frame that Parquet could not hold: one column with a number and a word."""
    store, stages = Store(str(tmp_path)), pd.DataFrame()
    rows = pd.concat([
        rows_of(trial="a", **{"defense.k": 1, "defense.n": 2}),
        rows_of(trial="b", **{"defense.k": "all", "defense.n": None}),
        rows_of(trial="c", **{"defense.k": None, "defense.n": 2.5}),
    ], ignore_index=True).astype({"defense.k": object, "defense.n": object})  # fmt: skip
    history.store_records(store, "s", rows, stages, {})
    found = raysweep.load("s", store.uri)
    assert found["defense.k"].tolist()[:2] == ["1", "all"] and found["defense.k"].isna()[2]
    assert found["defense.n"].tolist()[::2] == [2.0, 2.5] and found["defense.n"].dtype == "Float64"


def test_costs_do_not_depend_on_the_order_of_a_set() -> None:
    seconds = {f"key-{n}": value for n, value in enumerate([1e16, 1.0, -1e16, 0.1, 0.2, 0.3])}
    rows: Any = SimpleNamespace(
        users=dict.fromkeys(seconds, 1), _seconds=lambda key, _kind="": seconds[key]
    )
    for order in itertools.permutations(seconds):
        assert Collector._costs(rows, order).standalone_seconds == 1.6  # type: ignore[arg-type]
