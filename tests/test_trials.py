"""The records as a frame: its schema, means over seeds, and what its trials have stored."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import NoReturn, get_type_hints

import numpy as np
import pandas as pd
import pytest

import raysweep
from raysweep.cli.app import app
from raysweep.defenses.spectral_signatures import SpectralSignatures
from raysweep.errors import SpecError, StoreError
from raysweep.metrics.names import SEPARABILITY
from raysweep.metrics.ranking import ranking
from raysweep.plan.route import ROLES, Route
from raysweep.reports.tables import text_table
from raysweep.results import columns, entries
from raysweep.results.records import read
from raysweep.results.schema import COLUMNS, METRICS, typed
from raysweep.results.trials import Trials
from raysweep.store import Store
from raysweep.sweep.loading import from_text
from raysweep.sweep.spec import Track
from raysweep.sweep.yaml import parse
from tests.test_columns import whole
from tests.test_metrics import whole_judgment

TEXT = """
name: seen
question: does it hold?
dataset: {digits: {size: 400}}
model: linear
recipe: {epochs: 4, batch_size: 32, precision: float32}
attacks: [{badnets: {rate: [0.0, 0.1]}}]
defenses:
  - none
  - spectral_signatures
  - strip: {overlays: 4}
  - abl: {tuning_epochs: 1, unlearning_steps: 3}
seeds: 2
track: {wandb: disabled}
"""


def broken(self: object, inputs: object, ctx: object) -> NoReturn:
    raise ValueError("no scores today")


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Trials]:
    """A storage, and the rows of the sweep that was launched in it."""
    folder = str(tmp_path_factory.mktemp("trials") / "store")
    sweep = from_text(parse("seen.yaml", TEXT))
    return folder, raysweep.launch(sweep, folder, inline=True).rows


@pytest.fixture(scope="module")
def storage(launched: tuple[str, Trials]) -> str:
    """A storage with a sweep that succeeded, and one of which every trial failed."""
    folder, _ = launched
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpectralSignatures, "run", broken)
        other = TEXT.replace("seen", "lost").replace("size: 400", "size: 300")
        failing = from_text(parse("lost.yaml", other))
        alone = failing.model_copy(update={"defenses": (SpectralSignatures(),)})
        raysweep.launch(alone, folder, inline=True)
    return folder


@pytest.fixture(scope="module")
def rows(storage: str) -> Trials:
    return raysweep.load("seen", storage)


def trial(rows: Trials, defense: str, rate: float = 0.1) -> str:
    found = rows[(rows["defense_name"] == defense) & (rows["rate"] == rate)]
    return str(found["trial"].iloc[0])


# The schema


def test_the_schema_names_every_column_once() -> None:
    names = [column.name for column in COLUMNS]
    assert len(names) == len({*names})
    fixed = (*columns.WHO, *columns.STATUS, *columns.ORIGIN, *columns.COSTS)
    judged, _ = whole_judgment().pack()
    measured = [name for name in judged if not SEPARABILITY.within([name])]
    counts = ["poison_count", "cover_count", "relabeled_count", "n_train"]
    assert list(METRICS) == [*measured, *counts]
    unnamed = {"shards", "pauses", "waiting", "undefended", "visibility"}
    assert {*ROLES} == {field.name for field in fields(Route)} - unnamed
    assert sorted(columns.KEYS.within(names)) == sorted(ROLES)
    assert {*names} == {*fixed, *METRICS, *columns.KEYS.within(names).values()}
    assert all(column.meaning for column in COLUMNS)


def test_the_types_are_those_of_the_rows_that_are_written() -> None:
    kinds = {str: "string", float: "Float64", int: "Int64", bool: "boolean"}
    for group in (columns.Who, columns.Status, columns.Origin, columns.Costs):
        for name, hint in get_type_hints(group).items():
            known = next(column.dtype for column in COLUMNS if column.name == name)
            assert known == kinds.get(hint, "Float64" if hint == float | None else "string"), name
    judged, _ = whole_judgment().pack()
    for column in COLUMNS:
        value = judged.get(column.name)
        if value is not None:
            assert kinds[type(value)] == column.dtype, column.name


def test_what_is_undefined_is_missing_and_numbers_of_cases_stay_whole() -> None:
    lacking = {**whole().pack(), "ca": None, "ca_n": None, "asr": math.nan, "verdict": None}
    given = {**whole().pack(), "ca": 0.5, "ca_n": 90, "verdict": True}
    frame = typed(pd.DataFrame([lacking, given]))
    assert frame["ca"].dtype == "Float64" and frame["ca_n"].dtype == "Int64"
    assert frame["verdict"].dtype == "boolean" and frame["error"].dtype == "string"
    assert frame["ca_n"].tolist() == [pd.NA, 90] and frame["asr"].isna().all()
    assert frame["recipe.augment"].tolist() == ["[]", "[]"]
    assert frame["attack.size"].dtype == "Int64" and frame["attack.rate"].dtype == "Float64"
    assert list(frame)[: len(columns.WHO)] == list(columns.WHO)
    pd.testing.assert_frame_equal(typed(frame), frame)


def test_records_of_earlier_versions_have_the_columns_too() -> None:
    older = pd.DataFrame([whole().pack()]).drop(columns=["sweep", "evades", "ca_n"])
    frame = typed(older.assign(asr="lost"))
    assert frame[["sweep", "evades", "ca_n", "asr"]].isna().all(axis=None)
    assert frame["evades"].dtype == "boolean" and frame["ca"].tolist() == [0.9]


def test_columns_are_the_same_whatever_failed(storage: str, rows: Trials) -> None:
    lost = raysweep.load("lost", storage)
    assert set(lost["status"]) == {"failed"}
    fixed = [column.name for column in COLUMNS]
    for frame in (rows, lost):
        held = [name for name in frame if name in fixed]
        assert held == [name for name in typed(pd.DataFrame(frame)) if name in fixed]
        assert {*held} == {*fixed}
        for column in COLUMNS:
            assert frame[column.name].dtype == column.dtype, column.name
    assert lost[list(METRICS)].isna().all(axis=None)
    both = pd.concat([rows, lost])
    assert both.dtypes[fixed].equals(rows.dtypes[fixed])


def test_a_launch_gives_the_rows_that_are_loaded(launched: tuple[str, Trials]) -> None:
    storage, given = launched
    pd.testing.assert_frame_equal(given, raysweep.load("seen", storage), check_exact=True)
    assert given.attrs == {"storage": storage, "folder": "seen"}


def test_values_obey_the_ranges_that_the_schema_states(rows: Trials) -> None:
    for column in COLUMNS:
        present = rows[column.name].dropna()
        assert len(present) == len(rows) or column.missing, column.name
        if column.bounds == "0 to 1":
            assert present.between(0, 1).all(), column.name
        elif column.bounds == "from 0":
            assert (present >= 0).all(), column.name


def test_readers_of_rows_take_both_kinds_of_missing_values(storage: str, rows: Trials) -> None:
    plain = read(Store(storage), "seen").rows
    assert text_table(rows) == text_table(plain)
    track = Track(wandb="disabled")
    for one, other in zip(rows.to_dict("records"), plain.to_dict("records"), strict=True):
        mine, theirs = entries.trial(one, "seen", track), entries.trial(other, "seen", track)
        assert mine.summary == theirs.summary and mine.config == theirs.config


def test_files_hold_the_columns_of_the_schema(storage: str, tmp_path: Path) -> None:
    for ending in ("csv", "parquet", "json"):
        file = tmp_path / f"lost.{ending}"
        words = ["results", "lost", "--format", ending, "--output", str(file)]
        app([*words, "--storage", storage], standalone_mode=False)
    tables = (
        pd.read_csv(tmp_path / "lost.csv"), pd.read_parquet(tmp_path / "lost.parquet"),
        pd.read_json(tmp_path / "lost.json"),
    )  # fmt: skip
    for table in tables:
        assert {column.name for column in COLUMNS} <= {*table}
    assert tables[1]["asr_n"].dtype == "Int64"


# Means over seeds


def test_pivot_takes_means_over_seeds(rows: Trials) -> None:
    table = rows.query("rate == 0.1").pivot("asr")
    assert type(table) is pd.DataFrame and (table.dtypes == "Float64").all()
    assert list(table.index) == list(rows["defense"].unique()) and list(table) == ["badnets"]
    own = rows[(rows["rate"] == 0.1) & (rows["defense_name"] == "none")]["asr"]
    assert len(own) == 2 and table.loc["none", "badnets"] == pytest.approx(own.mean())
    wide = rows.pivot(["asr", "ca"], index="defense", columns=["attack", "rate"])
    assert wide["asr"]["badnets"][0.1].tolist() == table["badnets"].tolist()
    assert wide.columns.nlevels == 3


def test_pivot_keeps_what_has_no_number(storage: str) -> None:
    lost = raysweep.load("lost", storage).pivot("tpr", columns="rate")
    assert lost.shape == (1, 2) and lost.isna().all(axis=None)


def test_pivot_averages_nothing_but_seeds(rows: Trials) -> None:
    with pytest.raises(SpecError, match=r"by defense, attack hold trials that differ in rate; add"):
        rows.pivot("asr")
    with pytest.raises(SpecError, match="differ in defense"):
        rows.query("rate == 0.1").pivot("asr", index="model")
    other = rows.assign(**{"recipe.epochs": rows["seed"]})
    with pytest.raises(SpecError, match=r"differ in recipe\.epochs"):
        other.query("rate == 0.1").pivot("asr")
    with pytest.raises(SpecError, match="no column 'defence'; the nearest: defense"):
        rows.pivot("asr", index="defence")
    with pytest.raises(SpecError, match="columns of numbers, 'status' is of type string"):
        rows.pivot("status")


# What trials have stored


def test_scores_tell_what_the_records_tell(rows: Trials) -> None:
    own = rows.set_index("trial").loc[trial(rows, "spectral_signatures")]
    scores = rows.scores(trial(rows, "spectral_signatures"))
    assert set(scores["set"]) == {"train"} and len(scores) == own["n_train"]
    assert scores["sample"].is_unique and scores["poison"].sum() == own["poison_count"]
    flagged = ~scores["kept"]
    assert flagged.sum() == own["removed"]
    assert (flagged & scores["poison"]).sum() / scores["poison"].sum() == own["tpr"]
    truth = scores["poison"].to_numpy(bool)
    assert ranking(scores["score"].to_numpy(float), truth).auroc == pytest.approx(own["auroc"])
    assert (scores["label"][scores["poison"]] == own["target"]).all()


def test_scores_of_a_detector_are_of_inputs(rows: Trials) -> None:
    name = trial(rows, "strip")
    own = rows.set_index("trial").loc[name]
    scores = rows.scores(name[:10])
    assert scores["set"].unique().tolist() == ["clean", "triggered"]
    assert (scores["poison"] == (scores["set"] == "triggered")).all()
    assert scores["poison"].sum() == own["input_tpr_n"]
    assert (~scores["kept"])[scores["poison"]].mean() == pytest.approx(own["input_tpr"])
    values, truth = scores["score"].to_numpy(float), scores["poison"].to_numpy(bool)
    assert ranking(values, truth).auroc == pytest.approx(own["input_auroc"])


def test_a_defense_that_gives_no_scores_has_none(rows: Trials) -> None:
    scores = rows.scores(trial(rows, "none"))
    assert scores.empty
    assert scores.dtypes.equals(rows.scores(trial(rows, "strip")).dtypes)
    assert rows.curves(trial(rows, "none")).empty


def test_curves_name_their_axes(rows: Trials) -> None:
    curves = rows.curves(trial(rows, "strip"))
    assert curves["curve"].unique().tolist() == ["ROC of input scores"]
    assert curves[["x", "y"]].iloc[0].tolist() == [0, 0]
    assert curves[["x", "y"]].iloc[-1].tolist() == [1, 1]
    assert curves[["x_title", "y_title"]].iloc[0].tolist() == ["FPR", "TPR"]
    drawn = rows.curves(trial(rows, "abl")).groupby("curve").size()
    assert {"loss of poison, median", "loss of rest, median", "AUROC of low losses"} <= {
        *drawn.index
    }
    assert rows.curves(trial(rows, "none")).dtypes.equals(curves.dtypes)


def test_images_show_the_trigger(rows: Trials) -> None:
    clean, triggered = rows.images(trial(rows, "none"))
    assert clean.shape == triggered.shape == (6, 1, 16, 16) and clean.dtype == np.uint8
    changed = (clean != triggered).reshape(6, -1).sum(axis=1)
    assert (changed > 0).all() and (changed <= 16).all(), "a patch of a few pixels"


def test_an_unknown_trial_is_named_beside_those_that_there_are(rows: Trials, storage: str) -> None:
    with pytest.raises(
        StoreError, match=r"no trial 'xyz' among these 16.* the nearest: \w{16} \(badnets · "
    ):
        rows.scores("xyz")
    with pytest.raises(StoreError, match="16 trials begin with '' among"):
        rows.curves("")
    lost = raysweep.load("lost", storage)
    with pytest.raises(StoreError, match="is failed: ValueError: no scores today; it stored no"):
        lost.images(str(lost["trial"].iloc[0]))
    both = pd.concat([rows, lost])
    with pytest.raises(
        StoreError, match=r"do not say where they are stored.*raysweep\.load\(NAME\)"
    ):
        Trials(both).scores(trial(rows, "none"))


def test_an_artifact_that_is_gone_is_named(storage: str, rows: Trials) -> None:
    name = trial(rows, "strip", 0.0)
    key = str(rows.set_index("trial").loc[name, "key_tested"])
    Store(storage).discard(key)
    with pytest.raises(StoreError, match=f"{key} of trial '{name}' is not in .* launch the sweep"):
        rows.images(name)
