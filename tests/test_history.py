"""A name that is used again, a launch that fails or dies: no result is lost, none is hidden."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import raysweep
from raysweep.cli.app import app
from raysweep.cli.terminal import print_status
from raysweep.defenses.spectral_signatures import SpectralSignatures
from raysweep.errors import SpecError, StoreError
from raysweep.identity import digest
from raysweep.jobs.launch import Conclusion, launch
from raysweep.plan import planner
from raysweep.reports.html import render
from raysweep.reports.material import gather
from raysweep.results import history
from raysweep.results import status as states
from raysweep.run.run import Run
from raysweep.store import Store
from raysweep.sweep.differences import differences
from raysweep.sweep.loading import from_text, load_sweep
from raysweep.sweep.spec import Sweep, restored, to_plain
from raysweep.sweep.yaml import parse
from raysweep.tuning.summary import tuned_name
from tests.contracts.test_datasets import write_npz

SWEEP = """
name: mine
dataset: {digits: {size: 200}}
model: linear
recipe: {epochs: 1}
attacks: [{badnets: {rate: %s}}]
defenses: [none, %s]
seeds: %s
track: {wandb: disabled}
"""
FILTER = "spectral_signatures"


def sweep(rate: str = "0.1", other: str = FILTER, seeds: Any = 1) -> str:
    return SWEEP % (rate, other, seeds)


def run(text: str, store: Path, **more: Any) -> Conclusion:
    return launch(from_text(parse("s.yaml", text)), text, str(store), inline=True, **more)


def status(store: Path, name: str = "mine") -> str:
    said = io.StringIO()
    print_status(Console(file=said, width=400), states.status(Store(str(store)), name))
    return said.getvalue()


def keys(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(rows["trial"], rows["key_evaluate"], strict=True))


class Lost(BaseException):
    """The driver is gone in the middle of a run."""


def dying(kind: str = "") -> Any:
    """Return a watcher that dies after the first stage of a kind; before any, if none is named."""

    def watch(run: Run) -> None:
        if not kind or any(key.startswith(kind) for key in run.schedule.ran):
            raise Lost

    return watch


def test_another_sweep_of_a_name_keeps_the_records_that_were_there(tmp_path: Path) -> None:
    first, second = sweep(seeds=2), sweep(rate="0.2")
    before = run(first, tmp_path)
    assert before.notes == []
    after = run(second, tmp_path)
    said = "\n".join(after.notes)
    assert f"load('mine', version=1, storage={str(tmp_path)!r})" in said
    assert "attacks: gained badnets(rate=0.2), lost badnets(rate=0.1)" in said
    assert "seeds: lost 1" in said and len(after.notes) == 3
    assert keys(raysweep.load("mine", str(tmp_path), version=1)) == keys(before.rows)
    assert keys(raysweep.load("mine", str(tmp_path))) == keys(after.rows)
    assert keys(raysweep.load("mine", str(tmp_path), version=2)) == keys(after.rows)
    assert raysweep.load("mine", str(tmp_path), version=1).attrs["sweep"]["text"] == first
    assert (tmp_path / "sweeps/mine/versions/1/report.html").is_file()
    shown = status(tmp_path)
    assert "1 (launched" in shown and "4 of 4 trials ok); 2 (launched" in shown
    with pytest.raises(StoreError, match="no version 3; there are: 1, 2"):
        raysweep.load("mine", str(tmp_path), version=3)
    # To and fro, nothing is kept twice.
    for text in (first, second):
        assert run(text, tmp_path).ran == 0
    assert [one.number for one in history.versions(Store(str(tmp_path)), "mine")] == [1, 2, 3]
    assert keys(raysweep.load("mine", str(tmp_path), version=2)) == keys(after.rows)


def test_what_changes_no_row_makes_no_version(tmp_path: Path) -> None:
    run(sweep(), tmp_path)
    again = run(sweep() + "question: why?\nresources: {cpu: {cpu: 2}}\n", tmp_path)
    assert again.notes == [] and not (tmp_path / "sweeps/mine/versions").exists()


@pytest.mark.further
def test_a_project_that_was_moved_is_the_same_sweep(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    write_npz(old / "data.npz")
    text = sweep(seeds="[0]").replace("{digits: {size: 200}}", "{npz: {path: data.npz}}")
    (old / "s.yaml").write_text(text)
    before = launch(load_sweep(old / "s.yaml"), text, str(tmp_path / "store"), inline=True)
    assert (before.rows["status"] == "ok").all() and str(old) in before.rows["dataset.path"][0]
    old.rename(new)
    again = launch(load_sweep(new / "s.yaml"), text, str(tmp_path / "store"), inline=True)
    assert again.ran == 0 and keys(again.rows) == keys(before.rows)
    assert again.notes == ["npz(path=data.npz): target 0 is class 'ant'"]
    assert [one.number for one in history.versions(Store(str(tmp_path / "store")), "mine")] == [1]
    # Other files at the same path are other trials: what was there is kept.
    with np.load(new / "data.npz") as held:
        arrays = dict(held)
    np.savez(new / "data.npz", **{**arrays, "train_images": arrays["train_images"][::-1]})
    other = launch(load_sweep(new / "s.yaml"), text, str(tmp_path / "store"), inline=True)
    said = " ".join(other.notes)
    assert other.ran and "version=1, storage=" in said and "other data or code made them" in said
    kept = raysweep.load("mine", str(tmp_path / "store"), version=1)
    assert keys(kept) == keys(before.rows) != keys(other.rows)


@pytest.mark.further
def test_a_launch_that_fails_keeps_the_rows_that_succeeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: SpectralSignatures, *given: Any) -> Any:
        raise ValueError("the disk of features is gone")

    before = run(sweep(), tmp_path)
    lost = before.rows.set_index("defense_name").loc[FILTER]
    store = Store(str(tmp_path))
    for key in (lost["key_evaluate"], lost["key_decide"], lost["key_defend"]):
        store.discard(key)
    monkeypatch.setattr(SpectralSignatures, "run", broken)
    failed = run(sweep(), tmp_path)
    assert failed.unfinished == 1 and "1 trials did not succeed" in " ".join(failed.notes)
    assert keys(raysweep.load("mine", str(tmp_path))) == keys(before.rows)
    assert (raysweep.load("mine", str(tmp_path))["status"] == "ok").all()
    assert "the disk of features is gone" in status(tmp_path)
    # Another file of the name, in which the same trial fails: so it does there.
    wider = run(sweep(seeds=2), tmp_path)
    assert wider.unfinished == 2
    rows = raysweep.load("mine", str(tmp_path))
    assert rows["status"].tolist().count("ok") == 3
    assert set(keys(before.rows)) < set(keys(rows))
    assert keys(raysweep.load("mine", str(tmp_path), version=1)) == keys(before.rows)


@pytest.mark.further
def test_the_command_says_that_a_launch_failed_though_earlier_rows_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(sweep())
    before = run(sweep(), tmp_path / "store").rows.set_index("defense_name").loc[FILTER]
    for key in (before["key_evaluate"], before["key_decide"], before["key_defend"]):
        Store(str(tmp_path / "store")).discard(key)
    monkeypatch.setattr(SpectralSignatures, "run", None)
    words = ["launch", str(file), "--inline", "--storage", str(tmp_path / "store")]
    assert app(words, standalone_mode=False) == 1
    assert "1 trials failed" in capsys.readouterr().out


def test_only_a_row_of_the_same_trial_and_keys_is_kept() -> None:
    def rows(**columns: Any) -> pd.DataFrame:
        return pd.DataFrame({"trial": ["a", "b"], "status": "ok", "ca": [0.1, 0.2], **columns})

    earlier = rows(key_data="d", key_evaluate=["e1", "e2"])
    failed = rows(key_data="d", key_evaluate=[None, None], status=["failed", "ok"], ca=[None, 0.3])
    merged, kept = history.with_succeeded(failed, earlier)
    assert kept == 1 and merged["ca"].tolist() == [0.1, 0.3]
    assert merged["key_evaluate"].tolist()[0] == "e1" and merged["status"].tolist() == ["ok", "ok"]
    other, kept = history.with_succeeded(failed.assign(key_data="another"), earlier)
    assert kept == 0 and other["status"].tolist() == ["failed", "ok"]
    assert history.with_succeeded(failed, None)[1] == 0
    assert history.with_succeeded(failed, earlier.assign(status="failed"))[1] == 0


@pytest.mark.further
def test_rows_of_other_code_are_kept_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run(sweep(), tmp_path)
    monkeypatch.setattr(SpectralSignatures, "VERSION", SpectralSignatures.VERSION + 1)
    after = run(sweep(), tmp_path)
    assert "other data or code made them" in " ".join(after.notes)
    assert keys(raysweep.load("mine", str(tmp_path), version=1)) == keys(before.rows)
    assert keys(raysweep.load("mine", str(tmp_path))) == keys(after.rows) != keys(before.rows)


# Tuning


@pytest.mark.further
def test_tuning_leaves_the_sweep_of_its_name_alone(tmp_path: Path) -> None:
    file, better = tmp_path / "s.yaml", tmp_path / "better.yaml"
    file.write_text(sweep() + "tune: {labels: oracle}\n")
    store = tmp_path / "store"
    before = run(sweep(), store)
    (line,) = status(store).splitlines()
    words = ["tune", str(file), "--inline", "--storage", str(store), "--write", str(better)]
    app(words, standalone_mode=False)
    after = status(store).splitlines()
    assert after[0] == line and after[1].startswith("tuning of mine: ") and len(after) == 2
    tuned = load_sweep(better)
    assert tuned.name == "mine-tuned"
    launch(tuned, better.read_text(), str(store), inline=True)
    assert keys(raysweep.load("mine", str(store))) == keys(before.rows)
    assert len(raysweep.load("mine-tuned", str(store))) == 2


def test_names_of_tuned_sweeps_fit_and_differ() -> None:
    assert tuned_name("mine") == "mine-tuned" and tuned_name("x" * 58) == "x" * 58 + "-tuned"
    long = ["y" * 63 + end for end in "ab"]
    assert tuned_name(long[0]) == "y" * 49 + "-" + digest(long[0])[:8] + "-tuned"
    assert len({tuned_name(name) for name in long}) == 2
    given = from_text(parse("s.yaml", sweep()))
    for name in (*long, "x" * 64):
        Sweep.model_validate({**dict(given), "name": tuned_name(name)})


def test_a_note_of_a_tuning_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def close(self: Run) -> None:
        self.note("host south is given no work")
        closed(self)

    closed = Run.close
    monkeypatch.setattr(Run, "close", close)
    file = tmp_path / "s.yaml"
    file.write_text(sweep(rate="[0.05, 0.1]") + "tune: {trials: 2, hold_out: rate}\n")
    words = ["tune", str(file), "--inline", "--storage", str(tmp_path / "store")]
    app(words, standalone_mode=False)
    said = capsys.readouterr()
    assert "table: " in said.out and (said.out + said.err).count("host south") == 1


# Rows derived from manifests


def test_a_killed_launch_has_rows_and_a_report(tmp_path: Path) -> None:
    whole = run(sweep(), tmp_path / "whole").rows
    store = tmp_path / "store"
    with pytest.raises(Lost):
        run(sweep(), store, watch=dying("evaluate"))
    rows = raysweep.load("mine", str(store))
    assert sorted(rows["status"]) == ["ok", "pending"], "none is done, the filter is not"
    assert len(rows.attrs["notes"]) == 1 and "1 of 2 trials are finished" in rows.attrs["notes"][0]
    done = rows[rows["status"] == "ok"].iloc[0]
    assert (done["trial"], done["key_evaluate"]) in keys(whole) and done["ca"] >= 0
    app(["report", "mine", "--storage", str(store)], standalone_mode=False)
    page = (store / "sweeps/mine/report.html").read_text()
    assert "derived from what is stored: 1 of 2 trials are finished" in page
    assert keys(run(sweep(), store).rows) == keys(whole)
    assert raysweep.load("mine", str(store)).attrs["notes"] == []


def test_a_killed_launch_before_the_first_stage_has_rows_too(tmp_path: Path) -> None:
    with pytest.raises(Lost):
        run(sweep(), tmp_path, watch=dying())
    assert set(raysweep.load("mine", str(tmp_path))["status"]) == {"pending"}
    render(gather("mine", str(tmp_path)))


def test_failures_of_a_killed_launch_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpectralSignatures, "run", None)

    def watch(run: Run) -> None:
        if run.schedule.failed:
            raise Lost

    with pytest.raises(Lost):
        run(sweep(), tmp_path, watch=watch)
    rows = raysweep.load("mine", str(tmp_path)).set_index("defense_name")
    assert rows.loc[FILTER, "status"] == "failed" and "TypeError" in rows.loc[FILTER, "error"]


def test_a_killed_launch_of_another_sweep_has_its_own_rows(tmp_path: Path) -> None:
    before = run(sweep(), tmp_path)
    with pytest.raises(Lost):
        run(sweep(rate="0.2"), tmp_path, watch=dying("poison"))
    assert set(raysweep.load("mine", str(tmp_path))["status"]) == {"pending"}
    assert keys(raysweep.load("mine", str(tmp_path), version=1)) == keys(before.rows)


def test_derived_rows_are_of_the_machine_that_launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`precision: auto` is another one on another processor; what was launched is looked up."""
    before = run(sweep(), tmp_path)
    fast = set(before.rows["recipe.precision"]) == {"bfloat16"}
    (tmp_path / "sweeps/mine/records.parquet").unlink()
    monkeypatch.setattr(planner, "bfloat16_is_fast", lambda resources: not fast)
    assert keys(raysweep.load("mine", str(tmp_path))) == keys(before.rows)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"spectral_signatures"', '"no_such"', "unknown defense 'no_such'"),
        ('"fraction"', '"no_such"', "no_such"),
        ('"seeds": [', '"seed": [', "Extra inputs are not permitted"),
    ],
)
def test_a_sweep_that_cannot_be_planned_any_more_is_one_message(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    with pytest.raises(Lost):
        run(sweep(other="{spectral_signatures: {fraction: 0.2}}"), tmp_path, watch=dying())
    file = tmp_path / "sweeps/mine/sweep.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(StoreError, match="none can be derived") as error:
        raysweep.load("mine", str(tmp_path))
    assert said in str(error.value) and "launch its file again" in str(error.value)


def test_records_of_an_earlier_launch_are_better_than_none(tmp_path: Path) -> None:
    before = run(sweep(), tmp_path)
    with pytest.raises(Lost):
        run(sweep(), tmp_path, watch=dying())
    assert "derived" in raysweep.load("mine", str(tmp_path)).attrs["notes"][0]
    file = tmp_path / "sweeps/mine/sweep.json"
    file.write_text(file.read_text().replace('"spectral_signatures"', '"no_such"'))
    rows = raysweep.load("mine", str(tmp_path))
    assert keys(rows) == keys(before.rows)
    assert "records of an earlier launch" in rows.attrs["notes"][0]
    assert "unknown defense 'no_such'" in rows.attrs["notes"][0]


def test_a_written_sweep_is_restored() -> None:
    text = sweep(rate="[0, 0.1]") + (
        "exclude: [{rate: 0, defense: spectral_signatures}]\n"
        "tune: {trials: 3, parameters: {spectral_signatures: {fraction: {min: 0.1, max: 0.2}}}}\n"
        "resources: {gpu: {gpu: 0.5, memory: 1GiB}}\n"
    )
    given = from_text(parse("s.yaml", text))
    written = json.loads(json.dumps(to_plain(given)))
    assert restored(written) == given and differences(written, given) == []
    with pytest.raises(SpecError, match="cannot read the sweep as launched"):
        restored({"name": "x", "datasets": 5})
