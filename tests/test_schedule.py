"""The schedule: dependencies, failures, deaths, damage and growth, on random graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from raysweep.identity import kind_of
from raysweep.run import pauses
from raysweep.run.ready import FIRST
from raysweep.run.schedule import Schedule
from raysweep.stages.stage import Result, Stage
from raysweep.store import Manifest
from raysweep.store.events import Damaged, Event, Failed, Grow, Retry, UpstreamFailed
from tests import graphs
from tests.graphs import Line


class Graph:
    """A planner of hand-made or random graphs; a trial with a decision grows `below` stages."""

    def __init__(self) -> None:
        self.trials: tuple[Any, ...] = ()
        self.stages: dict[str, Stage] = {}
        self.routes: list[list[str]] = []
        self.below: dict[str, str] = {}

    def add(self, kind: str, name: str, *needs: str, resource: str = "cpu") -> str:
        inputs = {str(n): need for n, need in enumerate(needs)}
        added = graphs.stage(kind, name, inputs, resource)
        self.stages[added.key] = added
        return added.key

    def trial(self, *keys: str) -> None:
        self.trials = (*self.trials, len(self.trials))
        self.routes.append(list(keys))

    def route(self, trial: int, outcomes: Mapping[str, Any]) -> Line:
        keys = tuple(self.routes[trial])
        last = keys[-1]
        if last.startswith("decide"):
            if last not in outcomes:
                return Line(keys, waiting=last)
            grown = self.add("train", f"kept {outcomes[last]['kept']}")
            return Line((*keys, grown), evaluate=grown)
        return Line(keys, evaluate=last)


def random_graph(seed: int, size: int = 60) -> Graph:
    rng = np.random.default_rng(seed)
    graph = Graph()
    keys: list[str] = []
    for number in range(size):
        wanted = rng.choice(len(keys), size=min(len(keys), int(rng.integers(0, 4))), replace=False)
        kind = ("train", "poison", "evaluate")[int(rng.integers(3))]
        resource = "gpu" if kind == "train" else "cpu"
        keys.append(graph.add(kind, str(number), *(keys[i] for i in wanted), resource=resource))
    for key in keys:
        graph.trial(key)
    return graph


def manifest(key: str, kept: str = "", read: dict[str, str] | None = None) -> Manifest:
    outcome = {"kept": kept or key[-1]}
    info = {} if read is None else {"read": read}
    return Manifest(kind=kind_of(key), key=key, outcome=outcome, info=info)


def manifests(keys: Sequence[str]) -> dict[str, Manifest]:
    return {key: manifest(key) for key in keys}


def schedule_of(graph: Graph, done: set[str] | None = None, **options: Any) -> Schedule:
    options.setdefault("expected", lambda stage: 10.0 if stage.kind == "train" else 0.02)
    return Schedule(graph, done or set(), manifests, **options)


SLOTS = {"cpu": 2, "gpu": 1}


def drain(schedule: Schedule, report: Any = None) -> list[str]:
    """Work everything off; check that inputs are stored before a stage is handed out."""
    order: list[str] = []
    while batch := schedule.take(SLOTS):
        assert len({stage.resource for stage in batch}) == 1
        assert len(batch) <= 16
        for stage in batch:
            assert set(stage.needs) <= schedule.done
            order.append(stage.key)
        results = [Result(key=stage.key, status="done") for stage in batch]
        schedule.finished(results if report is None else [report(r) for r in results])
        schedule.came_back(list(schedule.elsewhere))
    assert schedule.finished_all
    return order


@pytest.mark.parametrize("seed", range(20))
def test_every_stage_runs_once_after_its_inputs(seed: int) -> None:
    graph = random_graph(seed)
    schedule = schedule_of(graph)
    order = drain(schedule)
    assert sorted(order) == sorted(graph.stages)
    assert schedule.done == set(graph.stages)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_stored_does_not_run_again(seed: int) -> None:
    graph = random_graph(seed)
    stored = set(np.random.default_rng(seed).choice(sorted(graph.stages), 30, replace=False))
    assert set(drain(schedule_of(graph, set(stored)))) == set(graph.stages) - stored


@pytest.mark.parametrize("seed", range(20))
def test_a_failure_costs_what_depends_on_it_and_nothing_else(seed: int) -> None:
    graph = random_graph(seed)
    bad = sorted(graph.stages)[seed]

    def report(result: Result) -> Result:
        failed = Result(key=result.key, status="failed", error="no")
        return failed if result.key == bad else result

    schedule = schedule_of(graph)
    drain(schedule, report)
    below = {bad}
    for _ in graph.stages:
        below |= {key for key, stage in graph.stages.items() if set(stage.needs) & below}
    assert set(schedule.failed) == {bad}
    assert set(schedule.upstream_failed) == below - {bad}
    assert set(schedule.upstream_failed.values()) <= {bad}
    assert schedule.done == set(graph.stages) - below


def test_trials_that_the_planner_gains_are_taken_in_once() -> None:
    graph = Graph()
    graph.trial(graph.add("train", "first"))
    schedule = schedule_of(graph)
    assert not schedule.has_new_trials
    graph.trial(graph.add("train", "second"))
    assert schedule.has_new_trials
    assert schedule.extend() == 1 and not schedule.has_new_trials and schedule.extend() == 0


def test_the_longest_remaining_path_goes_first() -> None:
    graph = Graph()
    short = graph.add("train", "short", resource="gpu")
    long = graph.add("train", "long", resource="gpu")
    below = graph.add("train", "below", long, resource="gpu")
    graph.trial(short)
    graph.trial(below)
    schedule = schedule_of(graph)
    assert schedule.ready == 2, "the inputs of both trainings are stored"
    assert [s.key for s in schedule.take({"cpu": 1, "gpu": 1})] == [long]


def test_the_longest_of_each_kind_and_method_go_before_all_others() -> None:
    """From then on is known how long those like them take, and whether the method can work."""
    graph = Graph()
    seconds, keys = dict[str, float](), dict[str, list[str]]()
    for kind, least in (("defend", 0.4), ("evaluate", 0.2)):
        keys[kind] = [graph.add(kind, f"{kind}{n}") for n in range(9)]
        for n, key in enumerate(keys[kind]):
            seconds[key] = least + n / 1000
            graph.trial(key)
    schedule = schedule_of(graph, expected=lambda stage: seconds[stage.key])
    batches = [[s.key for s in schedule.take({"cpu": 1, "gpu": 1})] for _ in range(5)]
    slow, quick = (keys[kind][::-1] for kind in ("defend", "evaluate"))
    assert batches[:2] == [slow[:FIRST], quick[:FIRST]], "together, as one process imports once"
    assert [key for batch in batches[2:] for key in batch][:6] == slow[FIRST:]


def test_long_stages_share_no_batch_though_they_are_the_first_of_their_kind() -> None:
    graph = Graph()
    for n in range(FIRST):
        graph.trial(graph.add("train", f"t{n}"))
    schedule = schedule_of(graph)
    assert [len(schedule.take({"cpu": 1, "gpu": 1})) for _ in range(FIRST)] == [1] * FIRST


def test_a_decision_goes_before_trainings_since_it_may_grow_the_longest() -> None:
    graph = Graph()
    short, long, decide = (
        graph.add(*name) for name in (("train", "s"), ("train", "l"), ("decide", "d"))
    )
    for key in (short, long, decide):
        graph.trial(key)
    seconds = {short: 10.0, long: 100.0, decide: 0.02}
    schedule = schedule_of(graph, expected=lambda stage: seconds[stage.key])
    assert [schedule.take({"cpu": 1, "gpu": 1})[0].key for _ in range(3)] == [decide, long, short]


def test_a_lone_death_counts_and_a_shared_one_does_not() -> None:
    graph = Graph()
    for name in "abc":
        graph.trial(graph.add("evaluate", name))
    schedule = schedule_of(graph, attempts=2)
    batch = [s.key for s in schedule.take({"cpu": 1, "gpu": 1})]
    assert len(batch) == 3
    schedule.lost(batch, published=batch[:1], reason="died")
    assert schedule.done == {batch[0]}
    for expected_failures in (0, 0, 1, 2):
        alone = [s.key for s in schedule.take({"cpu": 1, "gpu": 1})]
        assert len(schedule.failed) <= expected_failures or not alone
        if alone:
            assert len(alone) == 1
            schedule.lost(alone, published=[], reason="died")
    assert set(schedule.failed) == set(batch[1:])
    assert schedule.finished_all


def test_a_damaged_input_is_recomputed_before_its_reader() -> None:
    graph = Graph()
    above = graph.add("train", "above", resource="gpu")
    reader = graph.add("evaluate", "reader", above)
    graph.trial(reader)
    gone: list[str] = []
    schedule = schedule_of(graph, {above}, discard=gone.append)
    assert [s.key for s in schedule.take(SLOTS)] == [reader]
    schedule.finished([Result(key=reader, status="damaged", damaged=above)])
    assert gone == [above]
    assert drain(schedule) == [above, reader]


def test_two_readers_of_one_damaged_input_recompute_it_once() -> None:
    graph = Graph()
    above = graph.add("train", "above", resource="gpu")
    readers = [graph.add("evaluate", name, above) for name in "ab"]
    for reader in readers:
        graph.trial(reader)
    schedule = schedule_of(graph, {above})
    for batch in (schedule.take(SLOTS), schedule.take(SLOTS)):
        for stage in batch:
            result = Result(key=stage.key, status="damaged", damaged=above)
            schedule.finished([result])
    assert sorted(drain(schedule)) == sorted([above, *readers])


@pytest.mark.parametrize("bad", ["above", "decide", "reader"])
def test_what_is_stored_and_cannot_be_read_is_discarded_and_recomputed(bad: str) -> None:
    graph = Graph()
    keys = {"above": graph.add("train", "above", resource="gpu")}
    keys["decide"] = graph.add("decide", "x", keys["above"])
    keys["reader"] = graph.add("evaluate", "reader", keys["above"])
    graph.trial(keys["decide"])
    graph.trial(keys["reader"])
    gone: list[str] = []

    def whole(asked: Sequence[str]) -> dict[str, Manifest]:
        return manifests([key for key in asked if key != keys[bad] or key in gone])

    schedule = Schedule(graph, set(keys.values()), whole, discard=gone.append)
    order = drain(schedule)
    assert gone == [keys[bad]] and order[0] == keys[bad]
    assert len(order) == 2, "and what the decision grows"


def test_an_outcome_that_can_never_be_read_back_fails_in_the_end() -> None:
    graph = Graph()
    decided = graph.add("decide", "x")
    graph.trial(decided)
    schedule = Schedule(graph, set(), lambda keys: {}, attempts=3)
    assert drain(schedule) == [decided] * 3
    assert "cannot be read back" in schedule.failed[decided].error


def test_a_reader_of_many_damaged_inputs_gets_them_all() -> None:
    graph = Graph()
    above = [graph.add("train", str(number), resource="gpu") for number in range(5)]
    reader = graph.add("evaluate", "reader", *above)
    graph.trial(reader)
    damaged = set(above)

    def report(result: Result) -> Result:
        damaged.discard(result.key)
        if result.key == reader and damaged:
            return Result(key=reader, status="damaged", damaged=min(damaged))
        return result

    schedule = schedule_of(graph, set(above), attempts=3)
    drain(schedule, report)
    assert not schedule.failed and reader in schedule.done


def test_an_input_that_is_damaged_every_time_is_a_failure_with_its_reason() -> None:
    graph = Graph()
    above = graph.add("train", "above", resource="gpu")
    reader = graph.add("evaluate", "reader", above)
    graph.trial(reader)
    schedule = schedule_of(graph, {above})
    drain(
        schedule,
        lambda r: Result(key=r.key, status="damaged", damaged=above) if r.key == reader else r,
    )
    assert schedule.failed[reader].error == f"its input {above} is damaged every time"


@pytest.mark.parametrize("seed", range(6))
def test_growth_does_not_depend_on_the_order_in_which_stages_finish(seed: int) -> None:
    def grown(order_seed: int) -> set[str]:
        graph = Graph()
        for number in range(12):
            above = graph.add("defend", f"{seed} {number % 5}")
            graph.trial(graph.add("decide", f"{seed} {number}", above))
        schedule = schedule_of(graph)
        rng = np.random.default_rng(order_seed)
        held: list[str] = []
        while not schedule.finished_all:
            held += [s.key for s in schedule.take({"cpu": 8, "gpu": 8})]
            rng.shuffle(held)
            schedule.finished([Result(key=held.pop(), status="done")])
        return schedule.done

    first = grown(0)
    assert any(key.startswith("train") for key in first)
    assert all(grown(order) == first for order in range(1, 5))


def test_decisions_that_keep_the_same_share_one_training() -> None:
    graph = Graph()
    for number in range(4):
        graph.trial(graph.add("decide", str(number)))
    schedule = Schedule(graph, set(), lambda keys: {k: manifest(k, "same") for k in keys})
    order = drain(schedule)
    assert sum(key.startswith("train") for key in order) == 1


def test_a_decision_that_another_sweep_stored_grows_at_once() -> None:
    graph = Graph()
    decided = graph.add("decide", "x")
    graph.trial(decided)
    order = drain(schedule_of(graph, {decided}))
    assert [kind_of(key) for key in order] == ["train"]


def test_what_happens_is_logged_as_events() -> None:
    graph = Graph()
    above = graph.add("poison", "above")
    reader = graph.add("evaluate", "reader", above)
    decided = graph.add("decide", "x")
    graph.trial(reader)
    graph.trial(decided)
    told: list[Event] = []
    schedule = schedule_of(graph, {above}, attempts=2, log=told.append)
    bad = {above: Result(key=above, status="failed", error="no")}
    bad[reader] = Result(key=reader, status="damaged", damaged=above)
    drain(schedule, lambda result: bad.get(result.key, result))
    assert sorted(told, key=lambda event: event.event) == [
        Damaged(key=above), Failed(key=above, error="no"), Grow(key=decided, stages=1),
        Retry(key=reader, error=above), UpstreamFailed(key=reader, cause=above),
    ]  # fmt: skip


def test_a_stored_outcome_is_read_once_and_kept_where_a_trial_waits_for_it() -> None:
    graph = Graph()
    above = graph.add("train", "above")
    decided = graph.add("decide", "x", above)
    graph.trial(decided)
    asked: list[str] = []

    def read(keys: Sequence[str]) -> dict[str, Manifest]:
        asked.extend(keys)
        return manifests(keys)

    schedule = Schedule(graph, {above, decided}, read)
    assert set(schedule.outcomes) == {decided}
    assert sorted(asked) == sorted([above, decided])


def test_what_failed_for_a_passing_reason_waits_until_it_comes_back() -> None:
    graph = Graph()
    key = graph.add("train", "a")
    graph.trial(key)
    schedule = Schedule(graph, set(), lambda keys: {}, attempts=3)
    for attempt in range(3):
        assert [stage.key for stage in schedule.take({"cpu": 1})] == [key]
        full = Result(key=key, status="failed", error="no space left", lasting=False)
        schedule.finished([full])
        if attempt < 2:
            assert not schedule.take({"cpu": 1}) and not schedule.finished_all
            schedule.came_back([key])
    assert schedule.failed[key].error == "no space left" and schedule.finished_all


def test_pauses_grow_and_end_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(pauses.time, "monotonic", lambda: now[0])
    waiting = pauses.Pauses()
    for pause in (*pauses.SECONDS, pauses.SECONDS[-1]):
        waiting.add("a")
        now[0] += pause - 0.1
        assert waiting.over() == []
        now[0] += 0.2
        assert waiting.over() == ["a"] and waiting.over() == []
