"""Stages that are done anew, what becomes of all that was made from them, and why stages run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from raysweep.attacks.badnets import BadNets
from raysweep.datasets.digits import Digits
from raysweep.errors import SpecError
from raysweep.identity import kind_of
from raysweep.jobs.launch import Conclusion, launch
from raysweep.methods import Context
from raysweep.results.records import load
from raysweep.run.force import forcing
from raysweep.run.preview import Preview, preview
from raysweep.run.run import Run
from raysweep.run.schedule import Schedule
from raysweep.stages.inputs import Inputs
from raysweep.stages.stage import Result, kinds
from raysweep.store import Manifest, Store, ledger
from raysweep.store.events import Kept
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.loading import from_text
from raysweep.sweep.spec import Sweep
from raysweep.sweep.yaml import parse
from tests.test_schedule import Graph, drain, manifest

TEXT = """
name: force
dataset: {digits: {size: 200, test_size: 100}}
model: linear
recipe: {epochs: 1, batch_size: 32, precision: float32}
attacks: [{badnets: {rate: 0.1}}, {blend: {rate: 0.1}}]
defenses: [none, spectral_signatures]
track: {wandb: disabled}
"""


def sweep(**changed: str) -> Sweep:
    text = TEXT
    for old, new in changed.items():
        assert old in text
        text = text.replace(old, new)
    return from_text(parse("force.yaml", text))


def run(store: Store, given: Sweep | None = None, force: Sequence[str] = (), **more: Any) -> Any:
    return launch(given or sweep(), TEXT, store.uri, inline=True, force=force, **more)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("force")
    done = run(Store(str(folder)))
    assert (done.rows["status"] == "ok").all(), done.rows["error"].tolist()
    return folder


@pytest.fixture
def store(launched: Path, tmp_path: Path) -> Store:
    """A copy of a store in which the sweep was launched."""
    shutil.copytree(launched, tmp_path / "store")
    return Store(str(tmp_path / "store"))


def results(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what a trial came to, without the seconds that it took."""
    columns = [c for c in rows.columns if c in ("trial", "status", "ca", "asr", "tpr", "fpr")]
    return rows[columns].reset_index(drop=True)


def ran(conclusion: Conclusion, store: Store) -> set[str]:
    """Return the kinds of the stages that the last launch of the sweep ran."""
    now = ledger.standing(SweepFolder(store, conclusion.rows["sweep"][0]))
    kept = {e.key for e in ledger.read(SweepFolder(store, "force")) if isinstance(e, Kept)}
    return {kind_of(key) for key in now.done - kept}


def edited(patch: pytest.MonkeyPatch) -> None:
    """Change what an attack does without raising its VERSION, as its author may while at work."""
    stamp = BadNets.stamp

    def darker(self: BadNets, images_BCHW: torch.Tensor, **more: Any) -> torch.Tensor:
        return stamp(self, images_BCHW, **more) // 2

    patch.setattr(BadNets, "stamp", darker)


def edited_data(patch: pytest.MonkeyPatch) -> None:
    decode = Digits.decode

    def inverted(self: Digits) -> Any:
        train, test = decode(self)
        for part in (train, test):
            part.images.sub_(255).neg_()
        return train, test

    patch.setattr(Digits, "decode", inverted)


# Force


def test_what_comes_out_the_same_leaves_everything_below_as_it_is(store: Store) -> None:
    objects, before = set(store.list("objects")), load("force", store.uri)
    again = run(store, force=["train"])
    assert ran(again, store) == {"train"} and again.cached > again.ran == 4
    pd.testing.assert_frame_equal(results(again.rows), results(before))
    left = set(store.list("objects"))
    assert len(left) == len(objects) and {kind_of(Path(p).name) for p in objects - left} == {
        "train"
    }, "each new object is in the place of an old one"
    assert ledger.standing(SweepFolder(store, "force")).ended
    assert run(store).ran == 0


@pytest.mark.further
@pytest.mark.parametrize(("word", "edit"), [("badnets", edited), ("prepare", edited_data)])
def test_what_comes_out_different_is_followed_to_the_end(
    word: str, edit: Any, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load("force", store.uri)
    edit(monkeypatch)
    fresh = run(Store(str(tmp_path / "fresh")))
    again = run(store, force=[word])
    pd.testing.assert_frame_equal(results(again.rows), results(fresh.rows))
    assert not results(again.rows).equals(results(before))
    blended = again.rows["attack_name"] == "blend"
    same = results(again.rows[blended]).equals(results(before[blended]))
    assert same == (word == "badnets"), "another attack is as it was"
    for key in ("key_data", "key_poison", "key_victim", "key_defend"):
        assert again.rows[key].equals(before[key]), "keys stay"
    assert run(store).ran == 0


def test_data_that_another_driver_replaced_are_read_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = {"data": load("force", store.uri)["key_data"][0]}
    before = Inputs(key, store, Context(seed=0)).data.train.images
    edited_data(monkeypatch)
    run(Store(store.uri), sweep(**{"none, spectral_signatures": "none"}), force=["prepare"])
    assert not torch.equal(Inputs(key, store, Context(seed=0)).data.train.images, before)


def test_a_kill_loses_nothing_and_mixes_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, stored = load("force", store.uri), store.done()
    edited(monkeypatch)

    def stopped(now: Run) -> None:
        now.schedule.stopping = any(key.startswith("poison") for key in now.schedule.ran)

    half = run(store, force=["badnets"], watch=stopped)
    assert half.interrupted and store.done() >= stored
    assert half.unfinished == 2, "the trials of what is replaced"
    for shown in (half.rows, load("force", store.uri)):
        pd.testing.assert_frame_equal(results(shown), results(before))
    whole = run(store)  # without force: goes on from what is there
    assert whole.ran and (whole.rows["status"] == "ok").all()
    fresh = run(Store(str(tmp_path / "fresh")))
    pd.testing.assert_frame_equal(results(whole.rows), results(fresh.rows))


@pytest.mark.further
def test_another_sweep_that_shares_a_replaced_result_makes_its_own_anew(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sweep(**{"name: force": "name: other"})
    assert run(store, other).ran == 0
    edited(monkeypatch)
    filtered = sweep(**{"defenses: [none, spectral_signatures]": "defenses: [none]"})
    run(store, filtered, force=["badnets"])
    planned = {kind.kind: kind for kind in preview(other, store).kinds}
    assert planned["features"].why == {"made from an input that was replaced": 1}
    assert planned["defend"].why == {"again if an input changes": 1} and not planned["train"].run
    again = run(store, other)
    fresh = run(Store(str(tmp_path / "fresh")), other)
    pd.testing.assert_frame_equal(results(again.rows), results(fresh.rows))


@pytest.mark.further
def test_a_forced_stage_that_fails_is_told_and_its_old_result_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: BadNets, images_BCHW: torch.Tensor, **more: Any) -> torch.Tensor:
        raise RuntimeError("half written")

    stored = store.done()
    with monkeypatch.context() as patch:
        patch.setattr(BadNets, "stamp", broken)
        failed = run(store, force=["badnets"])
    assert failed.unfinished == 2 and store.done() == stored
    assert any("keep the rows of an earlier one" in note for note in failed.notes)
    again = run(store)
    assert again.ran == 0 and (again.rows["status"] == "ok").all()


def test_a_worker_that_dies_at_a_forced_stage_has_not_done_it(store: Store) -> None:
    begun = Run(sweep(), store, TEXT, force=["train"])
    batch = [stage.key for stage in begun.take({"cpu": 1, "gpu": 1})]
    assert {kind_of(key) for key in batch} == {"train"}
    begun.lost(batch, "died")
    assert not begun.schedule.ran and not begun.schedule.done & set(batch)
    begun.close()


def test_a_word_that_names_nothing_is_refused_with_what_there_is() -> None:
    with pytest.raises(SpecError, match="did you mean 'train'") as refused:
        forcing(["trian"], sweep())
    for word in ("--force trian", "poison, visibility, train", "sweep force"):
        assert word in str(refused.value)
    with pytest.raises(SpecError, match="method of sweep force"):
        forcing(["wanet"], sweep())
    assert set(kinds()) >= {"prepare", "poison", "train", "evaluate"}


@pytest.mark.long
@pytest.mark.ray
def test_stages_are_done_anew_on_ray(store: Store) -> None:
    again = launch(sweep(), TEXT, store.uri, max_concurrent=1, force=["train"])
    assert ran(again, store) == {"train"} and (again.rows["status"] == "ok").all()


# Held results, on hand-made plans


def line() -> tuple[Graph, str, str, str]:
    graph = Graph()
    above = graph.add("train", "above")
    middle = graph.add("poison", "middle", above)
    below = graph.add("evaluate", "below", middle)
    graph.trial(below)
    return graph, above, middle, below


@pytest.mark.parametrize("told", [True, False], ids=["told", "older"])
@pytest.mark.parametrize("changes", [0, 1, 2])
def test_a_held_result_is_kept_or_replaced_by_what_its_input_became(
    changes: int, told: bool
) -> None:
    graph, above, middle, below = line()
    ran: list[str] = []

    def stored(keys: Sequence[str]) -> dict[str, Manifest]:
        changed = ran[:changes]
        now = {k: manifest(k, f"new {k}" if k in changed else "") for k in graph.stages}
        old = {k: manifest(k) for k in graph.stages}
        read = {k: {n: old[n].content for n in graph.stages[k].needs} for k in keys}
        return {k: manifest(k, now[k].outcome["kept"], read[k] if told else None) for k in keys}

    schedule = Schedule(graph, set(graph.stages), stored, force=lambda stage: stage.key == above)

    def report(result: Result) -> Result:
        ran.append(result.key)
        return result

    drain(schedule, report)
    assert ran == [above, middle, below][: changes + 1]
    assert schedule.done == set(graph.stages)


def test_what_was_made_from_a_replaced_input_runs_again() -> None:
    graph, above, middle, below = line()

    def stored(keys: Sequence[str]) -> dict[str, Manifest]:
        read = {middle: {above: "another content"}, below: {middle: manifest(middle).content}}
        return {key: manifest(key, read=read.get(key)) for key in keys}

    schedule = Schedule(graph, set(graph.stages), stored)
    assert schedule.done == {above}
    assert drain(schedule) == [middle], "and came out as it was, so the last one is kept"


def test_a_result_that_is_replaced_while_it_is_read_is_read_anew(tmp_path: Path) -> None:
    store, other = Store(str(tmp_path)), Store(str(tmp_path))
    store.put("train-1", arrays={"a": torch.zeros(2).numpy()})
    first = store.manifest("train-1")
    other.put("train-1", arrays={"a": torch.ones(2).numpy()})
    assert len(store.list("objects")) == 1
    looks = iter([first])
    whole = store.manifest
    store.manifest = lambda key: next(looks, None) or whole(key)  # type: ignore[method-assign]
    assert store.arrays("train-1")["a"].tolist() == [1, 1]


# Why


def near(found: Preview) -> dict[str, str]:
    return {kind.kind: str(kind.nearest) for kind in found.kinds if kind.nearest}


@pytest.mark.parametrize(
    ("old", "new", "kind", "said"),
    [
        ("epochs: 1", "epochs: 2", "train", "recipe.epochs 1 → 2"),
        ("[{badnets: {rate: 0.1}}, ", "[{badnets: {rate: 0.2}}, ", "poison", "poison 20 → 40"),
        ("model: linear", "model: {tiny_cnn: {width: 4}}", "train", "model.name linear → tiny_cnn"),
        ("defenses: [none, ", "seeds: [1]\ndefenses: [", "poison", "seed 0 → 1"),
    ],
)
def test_a_plan_names_the_field_that_makes_stages_run_again(
    old: str, new: str, kind: str, said: str, store: Store
) -> None:
    found = preview(sweep(**{old: new}), store)
    assert near(found)[kind] == said
    assert "prepare" not in near(found), "it does not run"
    packed = {entry["kind"]: entry["nearest"] for entry in found.pack()["kinds"]}  # type: ignore
    assert packed[kind]["field"] == said.split()[0]


def test_a_raised_version_and_an_input_are_named(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert near(preview(sweep(), store)) == {}
    monkeypatch.setattr(BadNets, "VERSION", BadNets.VERSION + 1)
    told = near(preview(sweep(), store))
    assert told["poison"] == f"attack.version {BadNets.VERSION - 1} → {BadNets.VERSION}"
    assert told["train"] == "input poison is another"


def test_forced_and_held_stages_are_counted_apart(store: Store) -> None:
    planned = {kind.kind: kind for kind in preview(sweep(), store, ["train"]).kinds}
    assert planned["train"].why == {"forced": 2} and planned["train"].run == 2
    assert planned["evaluate"].run == 0
    assert planned["evaluate"].why == {"again if an input changes": planned["evaluate"].cached}
