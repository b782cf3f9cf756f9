"""What W&B is told of a real sweep: trials, victims, artifacts, charts, the sweep, a tuning."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raysweep.defenses.activation_clustering import ActivationClustering
from raysweep.jobs.launch import launch
from raysweep.metrics.curves import Roc
from raysweep.metrics.intervals import wilson
from raysweep.results import entries, records
from raysweep.results.entries import Entry, media
from raysweep.results.entries.media import precision_recall
from raysweep.results.entries.sweep import failures, headline, matrix
from raysweep.results.entries.trial import config_of, summary_of
from raysweep.results.text import cell, fenced, markdown_table, visible
from raysweep.store import Store
from raysweep.sweep.loading import from_text
from raysweep.sweep.spec import Track
from raysweep.sweep.yaml import parse
from tests.material import generated, row

TEXT = """
name: told
question: "Which <script>alert(1)</script> holds?"
dataset: {digits: {size: 300}}
model: linear
attack: {badnets: {rate: 0.1}}
defense: [none, {spectral_signatures: {fraction: 0.15}}, strip, activation_clustering]
recipe: {epochs: 2}
seeds: 2
track: {wandb: disabled}
"""
ONLINE = Track(wandb="online", project="p")
# The package has a function of the same name.
shared = importlib.import_module("raysweep.results.entries.shared")


@dataclass(frozen=True)
class Launched:
    """A sweep of which one defense fails, as it is stored."""

    store: Store
    records: records.Records

    def of(self, **track: Any) -> list[Entry]:
        changed = ONLINE.model_copy(update=track)
        rows = self.records.rows.to_dict("records")
        told = [{str(name): value for name, value in one.items()} for one in rows]
        return list(entries.of_trials(told, "told", changed, self.store))

    def one(self, found: list[Entry], job: str) -> Entry:
        """Return the finished trial of the first seed whose defense is of a kind."""
        mine = [e for e in found if (e.job, e.config.get("seed"), e.state) == (job, 0, "finished")]
        (only,) = mine
        return only


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    store = Store(str(tmp_path_factory.mktemp("told")))
    sweep = from_text(parse("told.yaml", TEXT))
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(ActivationClustering, "run", None)
        launch(sweep, TEXT, store.uri, inline=True)
    return Launched(store, records.read(store, "told"))


def test_every_trial_is_told_with_numbers_n_and_intervals(told: Launched) -> None:
    found = [e for e in told.of() if "trial" in e.config]
    assert len(found) == len(told.records.rows) == 8
    rows = told.records.rows.set_index("trial")
    for entry in found:
        own = rows.loc[str(entry.config["trial"])]
        assert entry.config["sweep_name"] == "told" and "." not in entry.job
        if own["status"] != "ok":
            continue
        for metric in ("asr", "ca", "ra"):
            low, high = wilson(round(own[metric] * own[f"{metric}_n"]), int(own[f"{metric}_n"]))
            assert entry.summary[metric] == own[metric]
            assert entry.summary[f"{metric}_n"] == own[f"{metric}_n"]
            assert (entry.summary[f"{metric}_low"], entry.summary[f"{metric}_high"]) == (low, high)
        assert entry.state == "finished" and entry.notes == "" and "failed" not in entry.tags


def test_a_failed_trial_is_told_with_its_error(told: Launched) -> None:
    failed = [e for e in told.of() if "failed" in e.tags]
    assert len(failed) == 2 and {e.state for e in failed} == {"failed"}
    for entry in failed:
        assert "TypeError" in entry.notes and not entry.summary
        assert entry.media is None and not entry.reads and not entry.writes
        assert entry.config["defense_name"] == "activation_clustering"


def test_a_victim_is_one_run_with_its_losses_by_epoch(told: Launched) -> None:
    found = told.of()
    victims = [e for e in found if e.job == "train"]
    assert len(victims) == 2, "one of each seed"
    for victim in victims:
        stored = told.store.manifest(str(victim.config["stage"]))
        assert stored is not None
        losses = stored.outcome["losses"]
        assert [step["loss"] for step in victim.history] == losses
        accuracies = [step["accuracy"] for step in victim.history]
        assert accuracies == stored.info["accuracies"] and accuracies[0] < accuracies[1] <= 1
        assert [step["epoch"] for step in victim.history] == [1, 2]
        assert "loss" not in victim.summary, "W&B takes it from the last step"
        assert victim.summary["images"] == stored.outcome["images"]
        assert victim.config["recipe.epochs"] == 2
    assert len({e.run for e in found}) == len(found)
    seen: set[str] = set()
    frame = told.records.rows[told.records.rows["seed"] == 0]
    rows = [{str(k): v for k, v in one.items()} for one in frame.to_dict("records")]
    list(entries.of_trials(rows[:1], "told", ONLINE, told.store, told=seen))
    again = list(entries.of_trials(rows[1:2], "told", ONLINE, told.store, told=seen))
    assert [e.job for e in again if e.job in ("data", "poison", "train")] == []


WITHOUT_TORCH = """
import sys
from raysweep.results import entries, records
from raysweep.results.arrivals import Arrivals
from raysweep.store import Store
from raysweep.sweep.spec import Track

store = Store(sys.argv[1])
assert Arrivals(store, "told", lambda trial: False).take(1)
rows = records.read(store, "told").rows.to_dict("records")
found = list(entries.of_trials(rows, "told", Track(wandb="online", project="p"), store))
print(sum(len(one.media()) for one in found if one.media), "torch" in sys.modules)
"""


def test_what_trials_share_is_made_once_and_not_for_each_of_them(
    told: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight of a thousand trials share a victim: to make its run for each was a third of all."""
    made, whole = list[str](), shared._told

    def counted(role: str, *given: Any) -> Entry:
        made.append(role)
        return whole(role, *given)

    monkeypatch.setattr(shared, "_told", counted)
    found = told.of(details="all")
    assert len(made) == len([e for e in found if "trial" not in e.config]) == 5
    assert len({e.run for e in found}) == len(found)


@pytest.mark.further
def test_the_publisher_draws_charts_without_torch(told: Launched) -> None:
    """Torch takes 2 s of CPU and 450 MB, beside a sweep that needs both."""
    command = [sys.executable, "-c", WITHOUT_TORCH, told.store.uri]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    drawn, imported = said.split()
    assert int(drawn) > 5 and imported == "False"


def test_artifacts_lead_from_the_data_to_the_result(told: Launched) -> None:
    found = told.of()
    written = {one.name: (entry, one) for entry in found for one in entry.writes}
    result = told.one(found, "filter")
    (final,) = (one for one in result.writes if one.type == "result")
    chain, entry = [final.type], result
    while entry.reads:
        entry, source = written[entry.reads[-1].removesuffix(":latest")]
        chain.append(source.type)
    assert chain == ["result", "model", "poison", "dataset"]
    assert {one.type for one in result.writes} == {"scores", "result"}
    place = {e.run: n for n, e in enumerate(found)}
    for reader in found:
        for read in reader.reads:
            made = written[read.removesuffix(":latest")][0]
            assert place[made.run] < place[reader.run], "what is read was logged before"
    for name, (_, one) in written.items():
        stored = told.store.manifest(name)
        assert stored is not None
        body = json.loads(one.files["manifest.json"])
        assert body["key"] == name and body["content"] == stored.content
        digests = {facts["sha256"] for facts in body["files"].values()}
        assert digests == {facts["sha256"] for facts in stored.files.values()}
        assert len(one.files["manifest.json"]) < 20_000


def test_details_are_told_of_the_first_seed_of_all_or_of_none(told: Launched) -> None:
    def detailed(found: list[Entry]) -> set[Any]:
        told = [e for e in found if e.media or e.reads or e.writes]
        return {e.config["seed"] for e in told if "seed" in e.config}

    some, every, none = (told.of(details=level) for level in ("some", "all", "none"))
    assert detailed(some) == {0} and detailed(every) == {0, 1} and detailed(none) == set()
    assert [e.job for e in none if e.job in ("data", "poison", "train")] == ["train", "train"]
    marks = [{e.run: e.mark for e in found if "trial" in e.config} for found in (some, every)]
    changed = {run for run in marks[0] if marks[0][run] != marks[1][run]}
    assert len(changed) == 3, "the finished trials of seed 1 say more"
    pictured = {e.run: e.mark for e in told.of(images=True)}
    changed = {e.run for e in some if pictured[e.run] != e.mark}
    assert changed == {e.run for e in some if e.media}, "no other run is written again"


def test_marks_tell_what_changed_and_nothing_else(told: Launched) -> None:
    assert [e.mark for e in told.of()] == [e.mark for e in told.of()]
    first = {str(k): v for k, v in told.records.rows.to_dict("records")[0].items()}
    entry = entries.trial(first, "told", ONLINE)
    costs = {"own_seconds": 99.0, "shared_seconds": 99.0, "finished_at": 1.0}
    assert entries.trial({**first, **costs}, "told", ONLINE) == entry
    whole = {**first, "recipe.epochs": float(first["recipe.epochs"])}
    assert entries.trial(whole, "told", ONLINE).mark == entry.mark, "as a column with gaps has it"
    for name, value in (("asr", 0.123), ("recipe.epochs", 7), ("status", "failed")):
        other = entries.trial({**first, name: value}, "told", ONLINE)
        assert other.run == entry.run and other.mark != entry.mark, name
    elsewhere = Track(wandb="online", project="q")
    assert entries.trial(first, "told", elsewhere).mark != entry.mark


def drawn(entry: Entry) -> Mapping[str, Any]:
    assert entry.media is not None
    return entry.media()


def lines(chart: Any) -> dict[str, list[tuple[float, float]]]:
    """Return the lines of a chart as W&B is sent them."""
    assert chart.spec.spec_name == "wandb/lineseries/v0"
    found: dict[str, list[tuple[float, float]]] = {}
    for x, name, y in chart.table.data:
        found.setdefault(name, []).append((x, y))
    return found


def test_charts_are_the_curves_and_scores_that_are_stored(told: Launched) -> None:
    found = told.of()
    filtered = drawn(told.one(found, "filter"))
    assert set(filtered) == {"roc", "precision_recall", "scores_of_training_samples"}
    roc = lines(filtered["roc"])["training samples"]
    assert roc[0] == (0, 0) and roc[-1] == (1, 1)
    row = told.records.rows[told.records.rows["trial"] == told.one(found, "filter").config["trial"]]
    x, y = np.array(roc).T
    assert np.trapezoid(y, x) == pytest.approx(row["auroc"].item(), abs=0.01)
    precise = lines(filtered["precision_recall"])["training samples"]
    share = (row["poison_count"] / row["n_train"]).item()
    assert precise[-1] == (1, pytest.approx(share)), "at full recall all are flagged"
    histogram = lines(filtered["scores_of_training_samples"])
    assert set(histogram) == {"poison", "rest"}
    for points in histogram.values():
        assert sum(y for _, y in points) == pytest.approx(1)
    detected = drawn(told.one(found, "detector"))
    assert set(detected) == {"roc", "precision_recall", "scores_of_inputs"}
    assert set(lines(detected["scores_of_inputs"])) == {"clean", "triggered"}
    assert drawn(told.one(found, "control")) == {}, "no defense has no scores"


def test_a_chart_is_that_which_wandb_makes_of_its_lines() -> None:
    import wandb

    ys = [np.array([0.5, np.nan, 2.0]), np.array([3.0])]
    ours = media._chart("title", "x", {"a": (np.arange(3), ys[0]), "b": (ys[1], ys[1])})
    theirs = wandb.plot.line_series(
        xs=[[0.0, 2.0], [3.0]], ys=[[0.5, 2.0], [3.0]], keys=["a", "b"], title="title", xname="x"
    )
    assert ours.spec == theirs.spec and ours.table.data == theirs.table.data
    assert ours.table.columns == theirs.table.columns
    assert ours.table._column_types == theirs.table._column_types
    assert media._chart("title", "x", {"none": (ys[1][:0], ys[1][:0])}).table.data == []


def test_images_of_a_dataset_are_shown_only_where_they_are_asked_for(told: Launched) -> None:
    control = drawn(told.one(told.of(images=True), "control"))
    assert set(control) == {"examples"}
    captions = [image._caption for image in control["examples"]]
    assert captions == ["clean", "triggered"] * (len(captions) // 2) and captions
    filtered = drawn(told.one(told.of(images=True), "filter"))
    highest = filtered["highest_scored"]
    scores = [float(re.findall(r"[-+.\de]+(?=,)", image._caption)[0]) for image in highest]
    assert len(highest) == 16 and scores == sorted(scores, reverse=True)
    assert {image._caption.split()[0] for image in highest} <= {"poison", "rest"}
    for entry in told.of(images=False):
        assert entry.media is None or not {"examples", "highest_scored"} & set(drawn(entry))


def test_precision_and_recall_follow_from_the_roc_curve() -> None:
    roc = Roc(fpr=np.array([0, 0, 0.5, 1.0]), tpr=np.array([0, 0.5, 0.5, 1.0]))
    recall, precision = precision_recall(roc, 2, 4)
    assert recall.tolist() == [0.5, 0.5, 1] and precision.tolist() == [1, 1 / 3, 2 / 6]


def test_the_sweep_is_one_run_that_grows(told: Launched) -> None:
    about, rows, stages = told.records.sweep, told.records.rows, told.records.stages
    entry = entries.whole(about, rows, stages, "told", ONLINE)
    assert (entry.job, entry.tags, entry.state) == ("sweep", ("sweep",), "finished")
    counts = {name: entry.summary[name] for name in ("trials", "finished", "failed", "pending")}
    assert counts == {"trials": 8, "finished": 6, "failed": 2, "pending": 0}
    assert entry.summary["seconds"] == pytest.approx(stages["seconds"].sum())
    assert "<script>alert(1)</script>" in entry.notes.split("```")[1], "code, never markup"
    assert set(entry.tables) == {"headline", "attack_by_defense", "cost", "failures"}
    table = entry.tables["attack_by_defense"]
    assert set(table["defense"]) == set(rows["defense"]) and len(table) == 4
    under_way = rows.assign(status=["pending", *rows["status"][1:]])
    earlier = entries.whole(about, under_way, stages, "told", ONLINE)
    assert earlier.run == entry.run and earlier.mark != entry.mark
    assert earlier.state == "running" and earlier.summary["pending"] == 1
    nothing = entries.whole(about, rows.head(0), stages.head(0), "told", ONLINE)
    assert nothing.summary["trials"] == 0 and not nothing.tables


def test_tables_of_a_sweep_name_causes_and_findings() -> None:
    rows = generated().rows
    (cause,) = failures(rows).to_dict("records")
    assert cause["error"] == "NonFiniteLoss: step 7" and cause["trials"] == 2
    assert set(headline(rows)["attack"]) == {"badnets", "blend", "sig"}
    found = matrix(rows)
    assert "badnets @ 5 %" in set(found["attack_at_rate"])
    assert not [column for column in found if column.endswith("_values")]


def test_a_tuning_and_its_searches_are_runs(tmp_path: Path) -> None:
    tuned = generated().tuned
    assert tuned is not None
    first, *searches = entries.of_tuning(tuned, "s", ONLINE)
    assert first.job == "tune" and set(first.tables) == {"tuned", "candidates"}
    assert len(first.tables["candidates"]) == 27
    assert len(searches) == 3 and len({one.run for one in searches}) == 3
    one = searches[0]
    assert one.job == "search" and one.config["parameter_overlays"] == 12
    assert one.summary["tuned_tpr"] == 0.8 and one.summary["importance/overlays"] == 0.75
    assert [step["candidate"] for step in one.history] == [0, 1, 3, 4, 6, 7]
    assert one.history[0] == {
        "candidate": 0, "parameter_overlays": 4, "parameter_fpr": 0.01,
        "candidate_tpr": 0.5, "candidate_seconds": 1,
    }  # fmt: skip


def test_config_and_summary_are_flat_and_defined() -> None:
    first = row(ca=0.9, tpr=np.nan, verdict=None, anomaly=np.inf, **{"attack.alpha": None})
    typed = {"tpr": np.float32(1), "verdict": np.bool_(True), "attack.alpha": np.float64(0.2)}
    second = row(ca=0.8, **typed)
    assert summary_of({**first, "found.models": 250.0})["found.models"] == 250
    assert "found.models" not in config_of({**first, "found.models": 250.0})
    assert config_of(second)["attack.alpha"] == 0.2 and "attack.alpha" not in config_of(first)
    low, high = wilson(90, 100)
    found = summary_of(first)
    assert {name: found[name] for name in ("ca", "ca_low", "ca_high")} == {
        "ca": 0.9, "ca_low": low, "ca_high": high,
    }  # fmt: skip
    assert not {"tpr", "verdict", "anomaly"} & set(found)
    assert summary_of(second)["tpr"] == 1 and summary_of(second)["verdict"] == 1


def test_hostile_text_stays_text() -> None:
    evil = "\x1b[31m<script>alert(1)</script>\u202e ``` | **x**"
    entry = entries.trial(row(attack=evil, attack_name=evil, defense=evil, kind=evil), "s", ONLINE)
    told = [entry.name, entry.job, *entry.tags, *map(str, entry.config.values())]
    assert not any(re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", text) for text in told)
    assert "<script>" in entry.name and len(entry.name) <= 128
    assert all(len(tag) <= 64 for tag in entry.tags)
    failed = entries.trial(row(status="failed", error=evil), "s", ONLINE)
    fence, text, end = failed.notes.split("\n")
    assert fence == end == "````" and "\x1b" not in text and "```" in text
    assert visible(evil).startswith("\\x1b[31m") and fenced("a") == "```\na\n```"
    assert cell("a|b\n<i>*c*") == r"a\|b \<i\>\*c\*"
    table = markdown_table(["x"], [[evil], [pd.NA]])
    assert "<script>" not in table and all(line.count(" | ") == 0 for line in table.split("\n"))
