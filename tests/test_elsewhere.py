"""Stages that another driver works on: the schedule without them, and real drivers side by side."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysweep.identity import kind_of
from raysweep.jobs.launch import Conclusion, launch
from raysweep.jobs.publish import Page
from raysweep.jobs.tune import tune
from raysweep.results.records import load
from raysweep.run import pauses
from raysweep.run.run import Run
from raysweep.run.schedule import Schedule
from raysweep.run.stored import StoredStages
from raysweep.stages.perform import perform
from raysweep.stages.stage import Result
from raysweep.store import Manifest, Store, heartbeat, ledger
from raysweep.store.bucket import Bucket
from raysweep.store.events import Dispatch, Done, Event, Kept
from raysweep.store.heartbeat import heartbeats, stop_path_of
from raysweep.store.sweepfolder import SweepFolder, names
from raysweep.sweep.loading import from_text
from raysweep.sweep.yaml import parse
from tests.test_schedule import SLOTS, Graph, drain, manifest, random_graph, schedule_of

# The schedule


def pair() -> tuple[Graph, str, str]:
    graph = Graph()
    above = graph.add("poison", "above")
    below = graph.add("evaluate", "below", above)
    graph.trial(below)
    return graph, above, below


def taken(schedule: Schedule) -> list[str]:
    return [stage.key for stage in schedule.take(SLOTS)]


def test_what_is_set_aside_is_neither_ready_nor_out_and_the_schedule_goes_on() -> None:
    graph, above, below = pair()
    told: list[Event] = []
    schedule = schedule_of(graph, log=told.append)
    assert taken(schedule) == [above]
    schedule.set_aside([above])
    assert (schedule.ready, schedule.out, schedule.elsewhere) == (0, frozenset(), {above})
    assert taken(schedule) == [] and not schedule.finished_all
    schedule.stored_elsewhere([above])
    assert schedule.done == {above} and not schedule.elsewhere and told == [Kept(key=above)]
    assert drain(schedule) == [below]
    assert set(schedule.ran) == {below}, "another driver ran the first"


def test_what_comes_back_is_ready_again_and_what_is_stored_at_dispatch_is_done() -> None:
    graph, above, below = pair()
    schedule = schedule_of(graph)
    assert taken(schedule) == [above]
    schedule.set_aside([above])
    schedule.came_back([above, below])
    assert taken(schedule) == [above], "and only what was set aside"
    schedule.stored_elsewhere([above])
    assert taken(schedule) == [below] and schedule.out == {below}


def test_a_run_that_stops_waits_for_no_other() -> None:
    graph, above, _ = pair()
    schedule = schedule_of(graph)
    schedule.take(SLOTS)
    schedule.set_aside([above])
    schedule.stopping = True
    assert schedule.finished_all


def test_a_damaged_input_that_is_made_elsewhere_is_not_made_here() -> None:
    graph = Graph()
    above = graph.add("poison", "above")
    readers = [graph.add("evaluate", name, above) for name in "ab"]
    for reader in readers:
        graph.trial(reader)
    schedule = schedule_of(graph, {above}, expected=lambda stage: 10.0)
    first, second = taken(schedule) + taken(schedule)
    schedule.finished([Result(key=first, status="damaged", damaged=above)])
    assert taken(schedule) == [above]
    schedule.set_aside([above])
    schedule.finished([Result(key=second, status="damaged", damaged=above)])
    schedule.recompute(above)
    assert taken(schedule) == [] and schedule.elsewhere == {above}
    schedule.stored_elsewhere([above])
    assert sorted(drain(schedule)) == sorted(readers)


def test_a_decision_that_is_stored_elsewhere_grows() -> None:
    graph = Graph()
    decided = graph.add("decide", "x")
    graph.trial(decided)
    schedule = schedule_of(graph)
    assert taken(schedule) == [decided]
    schedule.set_aside([decided])
    schedule.stored_elsewhere([decided])
    assert [kind_of(key) for key in drain(schedule)] == ["train"]


@pytest.mark.parametrize("seed", range(10))
def test_two_schedules_that_know_of_each_other_do_every_stage_once(seed: int) -> None:
    """Each claims what it takes; looks at the other's now and then, in any order."""
    rng = np.random.default_rng(seed)
    graphs = [random_graph(seed) for _ in range(2)]
    schedules = [schedule_of(graph) for graph in graphs]
    stored: set[str] = set()
    held: list[list[str]] = [[], []]
    begun: Counter[str] = Counter()
    while not all(schedule.finished_all for schedule in schedules):
        me = int(rng.integers(2))
        mine, others = schedules[me], held[1 - me]
        match int(rng.integers(3)):
            case 0:
                keys = taken(mine)
                aside = {key for key in keys if key in others}
                mine.set_aside(aside)
                mine.stored_elsewhere(stored.intersection(keys) - aside)
                ours = [key for key in keys if key not in aside | stored]
                held[me] += ours
                begun.update(ours)
            case 1 if held[me]:
                key = held[me].pop(int(rng.integers(len(held[me]))))
                stored.add(key)
                mine.finished([Result(key=key, status="done")])
            case 2:
                free = mine.elsewhere - set(others)
                mine.stored_elsewhere(free & stored)
                mine.came_back(free - stored)
    assert set(begun.values()) == {1} and set(begun) == set(graphs[0].stages)
    assert all(schedule.done == set(begun) for schedule in schedules)


def test_stages_are_counted_by_kind_as_they_stand() -> None:
    graph = random_graph(3)
    keys = sorted(graph.stages)
    bad = next(key for key in keys[8:] if any(key in graph.stages[k].needs for k in keys))
    schedule = schedule_of(graph, set(keys[:8]))
    failing = Result(key=bad, status="failed", error="no")
    drain(schedule, lambda r: failing if r.key == bad else replace(r, seconds=0.5))
    counts = schedule.tally.by_kind(["train-x"])
    for kind, count in counts.items():
        of_kind = {key for key in schedule.wanted if kind_of(key) == kind}
        assert count.wanted == len(of_kind)
        assert count.stored == len(of_kind & schedule.done)
        assert count.failed == len(of_kind & (schedule.failed.keys() | schedule.upstream_failed))
        assert count.ran == len(of_kind & schedule.ran.keys())
        assert count.seconds == 0.5 * count.ran and count.out == (kind == "train")
    assert sum(count.failed for count in counts.values()) > 1
    assert sum(count.wanted for count in counts.values()) == len(schedule.wanted)


# Results that count


def made(key: str, run: str, read: Mapping[str, str] | None = None, kept: str = "") -> Manifest:
    one = manifest(key, kept, dict(read or {}))
    return Manifest(
        kind=one.kind, key=key, outcome=one.outcome,
        info={**one.info, "run": run, "finished_at": float(len(run))},
    )  # fmt: skip


def test_a_result_of_before_does_not_count_for_a_stage_that_is_done_again() -> None:
    graph, above, below = pair()
    store = {above: made(above, "old"), below: made(below, "old", {above: made(above, "").content})}

    def read(keys: Sequence[str]) -> dict[str, Manifest]:
        return {key: store[key] for key in keys if key in store}

    stored = StoredStages(graph.stages, set(store), read, lambda stage: stage.key == above)
    stored.look([above, below])
    assert stored.forced == {above} and below in stored.held
    assert stored.counting(read([above])) == set()
    store[above] = made(above, "another", kept="other")
    assert stored.counting(read([above])) == {above}
    assert not stored.settled(below), "its input is another now"
    assert stored.counting(read([below])) == set()
    store[below] = made(below, "another", {above: "what nobody has"})
    assert stored.counting(read([below])) == set()
    store[below] = made(below, "another", {above: store[above].content})
    assert stored.counting(read([below])) == {below}
    store[above] = made(above, "a third", kept="once more")
    store[below] = made(below, "a third", {above: store[above].content})
    assert stored.counting(read([below])) == {below}, "inputs are looked at again"


# Drivers side by side

SWEEP = """
name: %s
dataset: {digits: {size: 300, test_size: 100}}
model: linear
recipe: {epochs: 1, batch_size: 32, precision: float32}
attacks: [{badnets: {rate: [0.05, 0.1]}}, {blend: {rate: 0.1}}]
defenses: [%s]
seeds: 2
track: {wandb: disabled}
"""
SWEEPS = {
    "one": SWEEP % ("one", "none, spectral_signatures"),
    "two": SWEEP % ("two", "none, strip: {overlays: 2}"),
    "three": SWEEP % ("three", "spectral_signatures, strip: {overlays: 4}"),
}

WAIT_SECONDS = 90.0  # for what takes some seconds, on a busy machine too


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page, which takes longer than a small sweep."""
    for job in ("launch", "tune"):
        monkeypatch.setattr(
            f"raysweep.jobs.{job}.write_page", lambda folder: Page(where="", notes=[])
        )


def launched(name: str, storage: Path, **more: Any) -> Conclusion:
    sweep = from_text(parse(f"{name}.yaml", SWEEPS[name]))
    return launch(sweep, SWEEPS[name], str(storage), inline=True, **more)


def drive(storage: Path, sweeps: Sequence[str], pause: Path | None, beat: float) -> None:
    """Launch sweeps one after another, as a process of its own; leave their ends in files.

    With `pause`: stop in the midst of a batch until that file is there.
    """
    heartbeat.BEAT_SECONDS = beat

    def watch(run: Run) -> None:
        if pause and len(run.schedule.ran) >= 5 and run.schedule.out:
            pause.with_suffix(".reached").touch()
            wait_until(pause.exists, threading.main_thread())

    for name in sweeps:
        done = launched(name, storage, watch=watch)
        told = {"status": sorted(set(done.rows["status"])), "ran": done.ran, "notes": done.notes}
        (storage.parent / f"{name} {os.getpid()}.json").write_text(json.dumps(told))


class Side:
    """Drivers that are processes of their own, on one storage below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = folder / "store"
        self.store = Store(str(self.storage))
        self.processes: list[Any] = []

    def start(self, *sweeps: str, pause: Path | None = None, beat: float = 0.05) -> Any:
        process = multiprocessing.get_context("fork").Process(
            target=drive, args=(self.storage, sweeps, pause, beat)
        )
        process.start()
        self.processes.append(process)
        return process

    def ended(self) -> list[dict[str, Any]]:
        """Wait for all drivers; return what each launch told."""
        for process in self.processes:
            process.join(WAIT_SECONDS)
            assert not process.is_alive(), "a driver does not come to its end"
        return [json.loads(file.read_text()) for file in sorted(self.folder.glob("*.json"))]

    def runs(self) -> list[list[Event]]:
        """Return the events of each run."""
        folders = [SweepFolder(self.store, name) for name in names(self.store)]
        return [
            list(ledger._events(folder, path))
            for folder in folders
            for path in self.store.list(folder.ledger)
        ]

    def done(self) -> Counter[str]:
        """Return how often each stage was done."""
        return Counter(e.key for run in self.runs() for e in run if isinstance(e, Done))

    def litter(self) -> list[str]:
        """Return all files that no finished driver should leave."""
        manifests = self.store.manifests(self.store.done())[0].values()
        named = {path for one in manifests for path in one.files}
        left = [path for path in self.store.list("objects") if path not in named]
        hidden = [str(path) for path in self.storage.rglob("*.tmp")]
        return (
            left
            + hidden
            + [p for f in ("drivers", "leases", "scratch") for p in self.store.list(f)]
        )


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Side]:
    side = Side(tmp_path)
    yield side
    for process in side.processes:
        if process.is_alive():
            process.kill()
            process.join()


def wait_until(true: Callable[[], Any], process: Any) -> None:
    limit = time.monotonic() + WAIT_SECONDS
    while not true():
        assert process.is_alive() and time.monotonic() < limit
        time.sleep(0.01)


def test_two_drivers_and_three_sweeps_that_share_victims_do_every_stage_once(side: Side) -> None:
    for sweeps in (("one", "two"), ("one", "three")):
        side.start(*sweeps, beat=0.5)  # on a busy machine none may be taken for dead
    ends = side.ended()
    assert len(ends) == 4 and all(end["status"] == ["ok"] for end in ends), ends
    done = side.done()
    assert set(done.values()) == {1} and set(done) == side.store.done()
    assert sum(end["ran"] for end in ends) == len(done)
    assert side.litter() == []
    runs = side.runs()
    assert sum(any(isinstance(event, Kept) for event in run) for run in runs), "they did meet"
    notes = [note for end in ends for note in end["notes"] if "another driver works" in note]
    assert notes and "waited for, not computed again" in notes[0] and "sweep " in notes[0]
    for name in SWEEPS:
        assert launched(name, side.storage).ran == 0
        assert (load(name, str(side.storage))["status"] == "ok").all()


def test_what_a_killed_driver_held_is_done_by_another(side: Side, tmp_path: Path) -> None:
    pause = tmp_path / "go"
    killed = side.start("one", pause=pause)
    wait_until(pause.with_suffix(".reached").exists, killed)
    held = set(side.store.list("leases"))
    other = side.start("two")
    wait_until(lambda: len(side.store.list("drivers")) > 1, other)
    killed.kill()
    ends = side.ended()
    assert held and [end["status"] for end in ends] == [["ok"]]
    assert launched("one", side.storage).ran
    # The last lines of a ledger are lost with its writer: manifests say what was stored before.
    assert set(side.done().values()) == {1} and side.litter() == []
    by = Counter(m.info["run"] for m in side.store.manifests(side.store.done())[0].values())
    assert len(by) == 3


def test_a_frozen_driver_loses_its_stages_and_does_no_harm_when_it_wakes(
    side: Side, tmp_path: Path
) -> None:
    pause = tmp_path / "go"
    frozen = side.start("one", pause=pause)
    wait_until(pause.with_suffix(".reached").exists, frozen)
    os.kill(frozen.pid, signal.SIGSTOP)
    held = {Path(path).name for path in side.store.list("leases")}
    other = side.start("one")
    other.join(WAIT_SECONDS)
    assert held and side.store.list("leases") == []
    pause.touch()
    os.kill(frozen.pid, signal.SIGCONT)
    ends = side.ended()
    assert [end["status"] for end in ends] == [["ok"], ["ok"]]
    done = side.done()
    assert set(done) == side.store.done() and side.litter() == []
    assert {key for key, times in done.items() if times > 1} <= held


def test_where_no_file_decides_drivers_share_what_was_begun_before_the_last_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs in turn, on a store without conditional writes; heartbeats only when we say so."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 1e6)
    store = Store(str(tmp_path / "store"))
    store._opened = Bucket((tmp_path / "store").as_uri())
    texts = {name: from_text(parse(f"{name}.yaml", SWEEPS[name])) for name in ("one", "two")}
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(Run(texts[name], store, "")) for name in ("one", "two")]
        dispatched: list[list[str]] = [[], []]
        together = turn = 0
        while not all(run.over for run in runs):
            batches = []
            for run, keys in zip(runs, dispatched, strict=True):
                if turn % 4:
                    for beating in (*runs, *runs):
                        beating.leases.beat()
                batches.append(run.take({"cpu": 1, "gpu": 1}))
                keys += [stage.key for stage in batches[-1]]
            first, second = ({stage.key for stage in batch} for batch in batches)
            assert turn % 4 == 0 or not first & second
            together += len(first & second)
            for run, batch in zip(runs, batches, strict=True):
                run.finished([perform(one.packed(), store, run.provenance, 0.0) for one in batch])
            for run in runs:
                run.leases.beat()
            turn += 1
        for run in runs:
            run.close()
    counts = Counter(dispatched[0] + dispatched[1])
    assert sum(times - 1 for times in counts.values()) == together
    assert 0 < together < len(counts) / 2 and set(counts) == store.done()
    assert all(len(set(keys)) == len(keys) for keys in dispatched)
    assert not store.list("drivers") and not store.list("leases")


def test_a_stop_file_ends_a_run_with_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)

    def ask(run: Run) -> None:
        if len(run.schedule.ran) == 5:
            run.store.write(stop_path_of(run.ledger.run), b"")
            wait_until(lambda: run.schedule.stopping, threading.main_thread())

    stopped = launched("one", tmp_path, watch=ask)
    assert stopped.interrupted == signal.SIGTERM and stopped.ran == 5 and stopped.unfinished
    store = Store(str(tmp_path))
    assert set(load("one", str(tmp_path))["status"]) == {"pending"}
    assert store.list("drivers") == [] == store.list("leases")
    ends: list[Conclusion] = []
    thread = threading.Thread(target=lambda: ends.append(launched("two", tmp_path, watch=ask)))
    thread.start()
    thread.join()
    assert ends[0].interrupted == signal.SIGINT and ends[0].unfinished, "no signal, and it stops"
    assert store.list("drivers") == [] == store.list("leases")


def test_a_forced_stage_is_done_once_by_two_who_force_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 1e6)
    launched("one", tmp_path)
    store = Store(str(tmp_path))
    sweep = from_text(parse("one.yaml", SWEEPS["one"]))
    with (
        Run(sweep, store, "", force=["train"]) as first,
        Run(sweep, store, "", force=["train"]) as second,
    ):
        ours, theirs = first.take({"cpu": 1, "gpu": 1}), second.take({"cpu": 1, "gpu": 1})
        keys = {stage.key for stage in ours}
        assert keys and keys.isdisjoint(stage.key for stage in theirs)
        assert second.schedule.elsewhere == keys, "what is stored is not what was asked for"
        first.finished([perform(one.packed(), store, first.provenance, 0.0) for one in ours])
        second.finished([perform(one.packed(), store, second.provenance, 0.0) for one in theirs])
        second.leases.beat()
        second.take({"cpu": 1, "gpu": 1})
        assert keys <= second.schedule.done and keys.isdisjoint(second.schedule.ran)


def test_a_tuning_waits_for_what_a_launch_has_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
    store, text = Store(str(tmp_path)), SWEEPS["one"].replace("none, ", "")
    text = text.replace("seeds: 2", "seeds: 1")
    with Run(from_text(parse("one.yaml", text)), store, "") as run:
        batch = run.take({"cpu": 1, "gpu": 1})
        handed = {event.keys for event in _events(run) if isinstance(event, Dispatch)}
        assert handed == {tuple(stage.key for stage in batch)}

        def watch(tuning: Run) -> None:
            if tuning.schedule.elsewhere and not run.schedule.ran:
                run.finished([perform(one.packed(), store, run.provenance, 0.0) for one in batch])

        found = tune(
            from_text(parse("one.yaml", text)), text, str(tmp_path), inline=True, watch=watch
        )
        assert found.tuned is not None and run.schedule.ran
        assert not {
            e.key for e in ledger.read(SweepFolder(store, "one").tuning) if isinstance(e, Done)
        } & (run.schedule.ran.keys())


def _events(run: Run) -> list[Event]:
    return list(ledger.read(run.folder))


@pytest.mark.long
@pytest.mark.ray
def test_workers_have_nothing_to_do_while_the_last_stage_is_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
    store = Store(str(tmp_path))
    text = SWEEP.replace("seeds: 2", "seeds: 1") % ("one", "none")
    sweep = from_text(parse("one.yaml", text))
    with Run(sweep, store, text) as run:
        batch = run.take({"cpu": 1, "gpu": 1})

        def watch(other: Run) -> None:
            if other.schedule.elsewhere and not run.schedule.ran:
                assert not other.schedule.out, "nobody waits with a slot"
                run.finished([perform(one.packed(), store, run.provenance, 0.0) for one in batch])

        done = launch(sweep, text, str(tmp_path), max_concurrent=1, watch=watch)
        assert (done.rows["status"] == "ok").all() and run.schedule.ran
        assert done.cached == len(batch) and done.ran == len(store.done()) - len(batch)


def test_what_fails_for_good_here_may_be_tried_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "SECONDS", (0.0,))
    store = Store(str(tmp_path))
    sweep = from_text(parse("one.yaml", SWEEPS["one"]))
    with Run(sweep, store, "") as run:
        (stage,) = run.take({"cpu": 1, "gpu": 1})
        again = Result(key=stage.key, status="failed", error="a full disk", lasting=False)
        run.finished([again])
        assert store.list("leases") == [f"leases/{stage.key}"], "it is tried again here"
        (stage,) = run.take({"cpu": 1, "gpu": 1})
        run.finished([replace(again, lasting=True)])
        assert run.over and store.list("leases") == []


def test_the_heartbeat_of_a_run_tells_how_it_stands(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with Run(from_text(parse("one.yaml", SWEEPS["one"])), store, "") as run:
        batch = run.take({"cpu": 1, "gpu": 1})
        run.leases.beat()
        (told,) = heartbeats(store).values()
        assert told.run == run.ledger.run and told.folder == "one" and told.state == "running"
        assert set(told.held) == {stage.key for stage in batch}
        assert sum(count.out for count in told.kinds.values()) == len(batch)
        assert sum(count.wanted for count in told.kinds.values()) == len(run.schedule.wanted)
        run.schedule.stopping = True
        run.leases.beat()
        assert heartbeats(store)[run.ledger.run].state == "stopping"
        run.close()
        assert heartbeats(store)[run.ledger.run].state == "ended" and not store.list("leases")
    assert not store.list("drivers")


def test_runs_have_ids_of_their_own_that_sort_by_time(tmp_path: Path) -> None:
    folder = SweepFolder(Store(str(tmp_path)), "first")
    ids = [ledger.Ledger(folder).run for _ in range(50)]
    assert len(set(ids)) == 50 and sorted(ids) == ids
