"""What the engine could do wrong without a word: order, counting, sharing, memory of the past."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysweep import training
from raysweep.defenses.spectral_signatures import SpectralSignatures
from raysweep.identity import kind_of
from raysweep.jobs.launch import Conclusion, launch
from raysweep.methods import checkpoints
from raysweep.plan.planner import Planner
from raysweep.reports.material import gather
from raysweep.run import pauses
from raysweep.run.cluster.nodes import slots_of
from raysweep.run.ready import FIRST, MOST_PER_BATCH
from raysweep.stages.perform import perform
from raysweep.stages.stage import Result
from raysweep.store import Store, ledger
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.loading import from_text
from raysweep.sweep.yaml import parse
from raysweep.training import device, resident
from tests.test_schedule import SLOTS, Graph, drain, schedule_of

# Handing out


def taken(schedule: Any, slots: Any = SLOTS) -> list[str]:
    return [stage.key for stage in schedule.take(slots)]


def kinds(events: list[Any]) -> list[tuple[str, str]]:
    """Return kind and key of what a schedule logged."""
    words = [
        re.findall(r"upstream_?failed|failed|retry|damaged|grow", repr(one).lower())[0]
        for one in events
    ]
    keys = [re.findall(r"[a-z]+-[0-9a-f]{32}", repr(one))[0] for one in events]
    return list(zip((word.replace("_", "") for word in words), keys, strict=True))


def test_a_stages_own_seconds_count_in_its_path() -> None:
    graph = Graph()
    brief, lengthy = graph.add("poison", "brief"), graph.add("poison", "lengthy")
    after_brief = graph.add("evaluate", "after brief", brief)
    after_lengthy = graph.add("evaluate", "after lengthy", lengthy)
    graph.trial(after_brief)
    graph.trial(after_lengthy)
    seconds = {brief: 10.0, after_brief: 50.0, lengthy: 100.0, after_lengthy: 2.0}
    schedule = schedule_of(graph, expected=lambda stage: seconds[stage.key])
    assert taken(schedule) == [lengthy], "102 s are ahead of it, 60 s of the other"


def test_a_stage_that_must_run_alone_joins_no_batch_and_takes_none_along() -> None:
    graph = Graph()
    for name in "abc":
        graph.trial(graph.add("evaluate", name))
    schedule = schedule_of(graph, expected=lambda stage: 0.02)
    suspects = taken(schedule, {"cpu": 1})
    assert len(suspects) == 3
    schedule.lost(suspects, published=[], reason="died")
    first = graph.add("poison", "first")
    longer = [graph.add("evaluate", f"after {n}", first) for n in range(2)]
    shorter = graph.add("evaluate", "short")
    for key in (*longer, shorter):
        graph.trial(key)
    schedule.extend()
    batches = []
    while batch := taken(schedule, {"cpu": 1}):
        batches.append(batch)
        schedule.finished([Result(key=key, status="done") for key in batch])
    with_suspects = [batch for batch in batches if set(batch) & set(suspects)]
    assert batches[0] == [first]
    assert sorted(with_suspects) == sorted([key] for key in suspects)
    assert sorted(key for batch in batches for key in batch) == sorted(graph.stages)


def test_a_batch_is_as_long_as_is_fair_to_other_workers() -> None:
    graph = Graph()
    for number in range(200):
        graph.trial(graph.add("evaluate", str(number)))
    schedule = schedule_of(graph, expected=lambda stage: 0.01)
    assert len(taken(schedule, {"cpu": 2})) == MOST_PER_BATCH == 64
    assert len(taken(schedule, {"cpu": 10})) == 14, "136 among 10, rounded up"
    timed = schedule_of(graph, expected=lambda stage: 0.4)
    assert len(taken(timed, {"cpu": 1})) == FIRST, "the first of a kind and method stay together"
    assert len(taken(timed, {"cpu": 1})) == 2, "0.8 s; a third would make it more than one second"
    exact = schedule_of(graph, expected=lambda stage: 0.25)
    assert len(taken(exact, {"cpu": 1})) == 4, "one second is allowed"
    seen = schedule_of(graph, expected=lambda stage: 0.5, batched=lambda stage: 0.1)
    assert len(taken(seen, {"cpu": 1})) == 10, "what this run has seen counts, not the guess"


def test_a_class_without_a_slot_waits_and_what_was_not_begun_comes_back() -> None:
    graph = Graph()
    training = graph.add("train", "t", resource="gpu")
    graph.trial(training)
    schedule = schedule_of(graph, attempts=1)
    assert taken(schedule, {"cpu": 1}) == taken(schedule, {"cpu": 1, "gpu": 0}) == []
    for _ in range(5):
        assert schedule.ready == 1 and schedule.out == frozenset()
        assert taken(schedule) == [training]
        assert schedule.ready == 0 and schedule.out == {training} and not schedule.finished_all
        schedule.returned([training])
    assert drain(schedule) == [training] and not schedule.failed


def test_trials_that_come_later_are_taken_in_and_counted() -> None:
    graph = Graph()
    graph.trial(graph.add("evaluate", "a"))
    schedule = schedule_of(graph)
    assert schedule.extend() == 0
    graph.trial(graph.add("evaluate", "b", graph.add("poison", "above b")))
    assert schedule.extend() == 2 and schedule.extend() == 0
    assert len(drain(schedule)) == 3


def test_a_passing_failure_is_tried_as_often_as_asked_and_a_lasting_one_once() -> None:
    for lasting, times in ((False, 3), (True, 1)):
        graph = Graph()
        bad = graph.add("evaluate", "bad")
        below = graph.add("evaluate", "below", bad)
        graph.trial(below)
        events: list[Any] = []
        schedule = schedule_of(graph, attempts=3, log=events.append)
        failure = Result(key=bad, status="failed", error="the host", lasting=lasting)
        assert drain(schedule, lambda result, failure=failure: failure) == [bad] * times
        assert schedule.failed == {bad: failure} and schedule.upstream_failed == {below: bad}
        retries = [("retry", bad)] * (0 if lasting else 3)
        assert kinds(events) == [*retries, ("failed", bad), ("upstreamfailed", below)]


def test_what_is_damaged_is_discarded_and_logged_by_its_key() -> None:
    graph = Graph()
    above = graph.add("train", "above", resource="gpu")
    reader = graph.add("evaluate", "reader", above)
    graph.trial(reader)
    events: list[Any] = []
    gone: list[str] = []
    schedule = schedule_of(graph, {above}, discard=gone.append, log=events.append)
    assert taken(schedule) == [reader]
    schedule.finished([Result(key=reader, status="damaged", damaged=above)])
    assert drain(schedule) == [above, reader] and gone == [above]
    assert ("damaged", above) in kinds(events)


def test_a_lone_death_counts_until_it_is_a_failure() -> None:
    graph = Graph()
    deadly = graph.add("evaluate", "deadly")
    graph.trial(deadly)
    schedule = schedule_of(graph, attempts=3)
    for _ in range(3):
        assert taken(schedule) == [deadly] and not schedule.failed
        schedule.lost([deadly], published=[], reason="out of memory")
    assert taken(schedule) == [] and schedule.failed[deadly].error == "out of memory"


# A run


SWEEP = """
name: engine
dataset: {digits: {size: 300}}
model: linear
recipe: {epochs: 1}
attacks: [{badnets: {rate: 0.1}}]
defenses: [none, perfect_filter, spectral_signatures]
resources: {gpu: {gpu: 0.25}}
seeds: 1
track: {wandb: disabled}
"""


def standing(store: Store, sweep: str) -> ledger.Standing:
    return ledger.standing(SweepFolder(store, sweep))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Conclusion]:
    """A sweep whose stages hold a quarter of a GPU; they are given the CPU in its place."""
    folder = tmp_path_factory.mktemp("engine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "claim", lambda gpus: "cpu")
        sweep = from_text(parse("s.yaml", SWEEP))
        conclusion = launch(sweep, SWEEP, str(folder), inline=True)
    assert (conclusion.rows["status"] == "ok").all(), conclusion.rows["error"].tolist()
    return Store(str(folder)), conclusion


def test_gpu_seconds_are_seconds_times_the_share_that_was_held(
    ran: tuple[Store, Conclusion],
) -> None:
    store, conclusion = ran
    stages = gather("engine", store.uri).stages.set_index("key")
    on_gpu = stages["kind"].isin(["train", "features"])
    assert on_gpu.any() and not on_gpu.all()
    expected = stages["seconds"].where(on_gpu, 0.0) * 0.25
    np.testing.assert_allclose(stages["gpu_seconds"][on_gpu], expected[on_gpu], atol=1e-4)
    assert (stages["gpu_seconds"][stages["kind"].isin(["poison", "decide", "evaluate"])] == 0).all()
    # Among trials they are shared like seconds: a trial's parts add up to what was spent.
    assert conclusion.rows["gpu_seconds"].sum() == pytest.approx(stages["gpu_seconds"].sum())
    own = conclusion.rows["own_seconds"] + conclusion.rows["shared_seconds"]
    assert own.sum() == pytest.approx(stages["seconds"].sum())
    assert (conclusion.rows["standalone_seconds"] > own).all()


def test_a_filter_is_retrained_on_what_it_kept(ran: tuple[Store, Conclusion]) -> None:
    store, conclusion = ran
    row = conclusion.rows.set_index("defense_name").loc["perfect_filter"]
    outcome = store.outcome(row["key_model"])
    assert outcome is not None and row["poison_count"] == 30
    assert outcome["images"] == row["n_train"] - row["poison_count"] == 270


def test_nothing_is_left_of_a_run_but_what_it_stored(ran: tuple[Store, Conclusion]) -> None:
    store, conclusion = ran
    assert store.list("scratch") == []
    assert {kind_of(key) for key in store.done()} >= {"train", "decide", "evaluate"}
    assert len(store.done()) == conclusion.ran and conclusion.cached == 0
    now = standing(store, "engine")
    assert now.done == store.done() and now.out == set() and now.ended
    assert now.stages == conclusion.ran and now.trials == 3


def test_a_failure_is_told_in_rows_and_stages(
    ran: tuple[Store, Conclusion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, before = ran
    gone = before.rows.set_index("defense_name").loc["spectral_signatures"]
    shutil.copytree(store.uri, tmp_path / "store")
    copy = Store(str(tmp_path / "store"))
    for role in ("defend", "decide", "model", "tested", "evaluate"):
        copy.discard(gone[f"key_{role}"])

    def broken(self: Any, *given: Any) -> Any:
        raise ValueError("no scores of \udcff today")

    monkeypatch.setattr(SpectralSignatures, "run", broken)
    monkeypatch.setattr(device, "claim", lambda gpus: "cpu")
    sweep = from_text(parse("s.yaml", SWEEP.replace("name: engine", "name: failing")))
    after = launch(sweep, SWEEP, copy.uri, inline=True)
    rows = after.rows.set_index("defense_name")
    failed = rows.loc["spectral_signatures"]
    assert rows["status"].to_dict() == {
        "none": "ok", "perfect_filter": "ok", "spectral_signatures": "failed",
    }  # fmt: skip
    assert failed["error"] == "ValueError: no scores of \\udcff today" and after.unfinished == 1
    assert failed["error_stage"] == gone["key_defend"] and gone["key_defend"] in failed["log"]
    assert "broken" in Path(failed["log"]).read_text()
    assert (rows.loc[["none", "perfect_filter"], ["error", "error_stage", "log"]] == "").all(None)
    stages = gather("failing", copy.uri).stages.set_index("key")
    assert stages.loc[gone["key_defend"], ["status", "error", "trials", "seconds"]].tolist() == [
        "failed", "ValueError: no scores of \\udcff today", 1, 0.0,
    ]  # fmt: skip
    assert stages.loc[gone["key_decide"], "status"] == "upstream_failed"
    shared = stages.loc[[gone["key_data"], gone["key_victim"]]]
    assert (shared["status"] == "cached").all() and (shared["trials"] == 3).all()
    assert (shared["host"] != "").all() and (shared["seconds"] > 0).all()
    assert copy.done() == store.done() - {gone[f"key_{r}"] for r in (
        "defend", "decide", "model", "tested", "evaluate",
    )}  # fmt: skip


@pytest.mark.parametrize(("error", "times"), [(OSError("no route to host"), 3), (ValueError, 1)])
def test_a_failure_of_the_host_is_tried_again_and_one_of_the_method_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, times: int
) -> None:
    calls: list[int] = []

    def broken(self: Any, *given: Any) -> Any:
        calls.append(1)
        raise error

    monkeypatch.setattr(SpectralSignatures, "run", broken)
    monkeypatch.setattr(pauses, "SECONDS", (0.0, 0.1))
    text = SWEEP.replace("resources: {gpu: {gpu: 0.25}}\n", "")
    text = text.replace("[none, perfect_filter, spectral_signatures]", "[spectral_signatures]")
    after = launch(from_text(parse("s.yaml", text)), text, str(tmp_path), inline=True)
    assert len(calls) == times and after.rows["status"].tolist() == ["failed"]


class Lost(BaseException):
    """The process is gone in the middle of a training."""


def test_a_training_that_was_killed_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SWEEP.replace("epochs: 1", "epochs: 4").replace("{gpu: {gpu: 0.25}}", "{cpu: {cpu: 1}}")
    text = text.replace("[none, perfect_filter, spectral_signatures]", "[none]")
    sweep = from_text(parse("s.yaml", text))
    written: list[str] = []
    last, write = 0, Store.checkpoint

    def watched(self: Store, key: str, arrays: Any) -> None:
        write(self, key, arrays)
        written.append(key)
        if len(written) == last:
            raise Lost

    monkeypatch.setattr(checkpoints, "_pause", lambda cost: 0.0)
    monkeypatch.setattr(Store, "checkpoint", watched)
    whole = launch(sweep, text, str(tmp_path / "whole"), inline=True)
    victim, every = whole.rows["key_victim"][0], list(written)
    written.clear()
    last = len(every) // 2
    store = Store(str(tmp_path / "store"))
    lost = launch(sweep, text, store.uri, inline=True)
    assert lost.rows["error"].tolist() == ["Lost: "]
    assert last >= 4 and written == [victim] * last and len(store.list("scratch")) == 1
    assert victim not in store.done()
    again = launch(sweep, text, store.uri, inline=True)
    assert (again.rows["status"] == "ok").all() and store.list("scratch") == []
    assert written == every, "what was left"
    assert store.outcome(victim) == Store(str(tmp_path / "whole")).outcome(victim)


def test_a_stage_computes_on_as_many_threads_as_its_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen, fit = torch.get_num_threads(), [], training.fit

    def watched(*given: Any, **more: Any) -> Any:
        seen.append(torch.get_num_threads())
        return fit(*given, **more)

    monkeypatch.setattr(training, "fit", watched)
    text = SWEEP.replace("epochs: 1", "epochs: 1, threads: [2, 3]")
    text = text.replace("resources: {gpu: {gpu: 0.25}}\n", "")
    text = text.replace("[none, perfect_filter, spectral_signatures]", "[none]")
    launch(from_text(parse("s.yaml", text)), text, str(tmp_path), inline=True)
    torch.set_num_threads(before)
    assert sorted(seen) == [2, 3]


def test_no_images_stay_on_the_device_after_a_stage(tmp_path: Path) -> None:
    images = torch.zeros(4, 1, 3, 3, dtype=torch.uint8)
    resident.resident(images, "meta")
    assert resident.known(images, "meta") is not None
    planner = Planner(from_text(parse("s.yaml", SWEEP)))
    planner.route(planner.trials[0], {})
    stage = next(iter(planner.stages.values()))
    assert perform(stage.packed(), Store(str(tmp_path)), {}, 0).status == "done"
    assert resident.known(images, "meta") is None


def test_labels_are_identity_where_a_share_of_them_was_changed() -> None:
    changed = ["{size: 300}", "{size: 300, imbalance: 2}", "{size: 300, label_noise: 0.1}"]
    found = []
    for given in changed:
        sweep = from_text(parse("s.yaml", SWEEP.replace("{size: 300}", given)))
        planner = Planner(sweep)
        data = planner.setting(planner.trials[0]).data
        found.append("labels" in planner.stages[data].params)
    assert found == [False, True, True]


def test_slots_are_what_fits_at_least_one_and_at_most_what_is_wanted() -> None:
    sweep = from_text(
        parse("s.yaml", SWEEP.replace("{gpu: {gpu: 0.25}}", "{gpu: {gpu: 0.5, cpu: 2}}"))
    )
    assert slots_of(8, 2, sweep, None) == {"cpu": 8, "gpu": 4}
    assert slots_of(6, 2, sweep, None) == {"cpu": 6, "gpu": 3}, "two CPUs each"
    assert slots_of(8, 2, sweep, 3) == {"cpu": 3, "gpu": 3}
    assert slots_of(8, 0, sweep, None) == {"cpu": 8, "gpu": 1}
    assert slots_of(0.5, 0, sweep, 2) == {"cpu": 1, "gpu": 1}


# The ledger


def test_a_ledger_tells_how_the_last_run_stands(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    start = {"event": "start", "trials": 4, "stages": 9, "cached": 2}
    done = {"event": "done", "seconds": 1.5, "host": "h", "pid": 7}
    lines: list[dict[str, Any]] = [
        {**start, "trials": 100},
        {"event": "dispatch", "keys": ["train-z"], "ready": 0},
        {**start},
        {"event": "dispatch", "keys": ["train-a", "train-b", "train-c", "train-d"], "ready": 3},
        {"event": "failed", "key": "train-a", "error": "no"},
        {"event": "failed", "key": "train-b", "error": "never"},
        {"event": "upstream_failed", "key": "evaluate-b", "cause": "train-b"},
        {**done, "key": "train-a"},
        {**done, "key": "train-c"},
        {"event": "damaged", "key": "train-c"},
        {"event": "grow", "key": "decide-x", "stages": 3},
        {"event": "grow", "key": "", "stages": 2, "cached": 1, "trials": 5},
    ]
    text = "".join(json.dumps({"t": 1e9 + n, **line}) + "\n" for n, line in enumerate(lines))
    store.write("sweeps/s/ledger/20260101-000000-1.jsonl", text.encode())
    now = standing(store, "s")
    assert now.start and not now.ended
    assert (now.trials, now.stages, now.cached) == (4 + 5, 9 + 3 + 2, 2 + 1)
    assert now.done == {"train-a"} and now.failed == {"train-b": "never"}
    assert now.upstream == {"evaluate-b": "train-b"} and now.out == {"train-d"}
    store.write("sweeps/s/ledger/20260102-000000-1.jsonl", json.dumps({"t": 2e9, **start}).encode())
    never = standing(store, "never launched")
    assert (never.trials, never.stages, never.cached, never.ended) == (0, 0, 0, False)
    assert not never.start and not never.done
    later = standing(store, "s")
    assert (later.trials, later.stages, later.out, later.failed) == (4, 9, set(), {})
