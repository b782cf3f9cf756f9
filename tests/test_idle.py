"""Idle workers: kept while stages come one by one, dropped for others, and never trusted dead."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import tune
from ray.exceptions import ActorDiedError
from ray.tune.search import Searcher

from raysweep.run.cluster import idle
from raysweep.run.cluster.idle import KeepingIdle


class OneByOne:
    """Hands out a batch when the one before it has ended, as in a chain of stages."""

    def __init__(self, kinds: str, between: Callable[[list[int]], None]) -> None:
        self.left, self.out = list(kinds), False
        self.pids: list[int] = []
        self.errors: list[BaseException | None] = []
        self.between = between

    def suggest(self, trial_id: str) -> Any:
        """Return the next batch, None while one is out."""
        if self.out or not self.left:
            return None if self.out else Searcher.FINISHED
        self.between(self.pids)
        self.out = True
        return {"kind": self.left.pop(0)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Note which process did the batch; -1: it died."""
        self.out = False
        self.pids.append(-1 if error or not result else result["pid"])
        self.errors.append(idle.error_of(trial_id))


RUNNING: dict[str, OneByOne] = {}


class Passed(Searcher):  # type: ignore[misc]
    """The searcher that this process holds: Tune copies the one that it is given."""

    def suggest(self, trial_id: str) -> Any:
        """Return what it suggests."""
        return RUNNING["now"].suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Tell it."""
        RUNNING["now"].on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing."""

    restore = save


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def pids_of(
    kinds: str,
    cpus: int,
    between: Callable[[list[int]], None] = lambda pids: None,
    storage: Path | None = None,
) -> list[int]:
    """Return the process of each batch of a chain; kinds ask for different resources, d dies."""

    class Worker(tune.Trainable):  # type: ignore[misc]  # by value: a worker has no tests
        def setup(self, config: Any) -> None:
            self.kind = config["kind"]

        def step(self) -> dict[str, Any]:
            if self.kind == "d":
                os.kill(os.getpid(), signal.SIGKILL)
            return {"done": True, "pid": os.getpid()}

        def reset_config(self, new_config: Any) -> bool:
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            pass

    def asked(config: Any) -> Any:
        memory = {"a": 1e6, "b": 2e6, "c": 3e6, "d": 4e6}[config["kind"]]
        return tune.PlacementGroupFactory([{"CPU": cpus, "memory": memory}])

    RUNNING["now"] = chain = OneByOne(kinds, between)
    tune.Tuner(
        tune.with_resources(Worker, asked),
        tune_config=tune.TuneConfig(
            search_alg=Passed(metric="pid", mode="max"), num_samples=-1, reuse_actors=True,
            scheduler=KeepingIdle(),
        ),
        run_config=tune.RunConfig(
            verbose=0, failure_config=tune.FailureConfig(max_failures=0),
            storage_path=storage and str(storage),
        ),
    ).fit()  # fmt: skip
    return chain.pids


@pytest.mark.long
def test_a_worker_of_each_kind_serves_a_whole_chain(two_cpus: None) -> None:
    pids = pids_of("abababaabb", cpus=1)
    assert len(pids) == 10
    assert len(set(pids[0::2][:4])) == 1
    assert len(set(pids)) == 2
    assert -1 not in pids


@pytest.mark.long
def test_a_worker_of_another_kind_gives_up_its_room(two_cpus: None) -> None:
    pids = pids_of("abba", cpus=2)
    assert pids[1] == pids[2]
    assert len(set(pids)) == 3


@pytest.mark.long
def test_no_more_room_is_given_up_than_is_waited_for(
    two_cpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "ROOM_SECONDS", 3.0)
    pids = pids_of("abcb", cpus=1)
    assert pids[3] == pids[1] and len(set(pids)) == 3


@pytest.mark.further
def test_nothing_is_written_down_of_each_trial(two_cpus: None, tmp_path: Path) -> None:
    assert len(pids_of("aa", cpus=1, storage=tmp_path)) == 2
    (state,) = tmp_path.rglob("experiment_state-*.json")
    assert json.loads(state.read_text())["trial_data"] == []


@pytest.mark.further
def test_a_batch_never_goes_to_an_idle_worker_that_died(
    two_cpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "FRESH_SECONDS", 0.0)

    def kill(pids: list[int]) -> None:
        if len(pids) == 2:
            os.kill(pids[-1], signal.SIGKILL)
            time.sleep(0.5)

    pids = pids_of("aaaa", cpus=1, between=kill)
    assert -1 not in pids
    assert pids[0] == pids[1] != pids[2] == pids[3]


@pytest.mark.further
def test_idle_workers_are_asked_together_and_silent_ones_dropped_when_none_answers(
    two_cpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    @ray.remote(num_cpus=0)
    class Worker:  # by value
        def pid(self) -> int:
            return os.getpid()

    actors = [Worker.remote() for _ in "abc"]
    pids = ray.get([actor.pid.remote() for actor in actors])
    live = {name: (actor, None) for name, actor in zip("abc", actors, strict=True)}
    manager = SimpleNamespace(_live_actors_to_ray_actors_resources=live, num_pending_actors=0)
    kept = idle.IdleWorkers(
        SimpleNamespace(_actor_manager=manager, _started_actors=set(), _remove_actor=None)
    )
    monkeypatch.setattr(idle, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(idle, "ANSWER_SECONDS", 10.0)
    for name in "abc":
        kept.cache_object("cpu", name)
    os.kill(pids[0], signal.SIGSTOP)  # as on a host that is lost, and not known to be
    os.kill(pids[1], signal.SIGKILL)
    assert kept.pop_cached_object("cpu") == "c"
    assert set(kept.flush_cached_objects()) <= {"b"}, "a silent one may answer yet"
    monkeypatch.setattr(idle, "ANSWER_SECONDS", 0.5)
    assert not kept.has_cached_object("cpu") and kept.num_cached_objects == 0
    assert "a" in set(kept.flush_cached_objects())
    os.kill(pids[0], signal.SIGKILL)


@pytest.mark.long
def test_a_worker_that_was_idle_for_long_is_dropped(
    two_cpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "IDLE_SECONDS", 0.0)
    pids = pids_of("aba", cpus=1)
    assert len(set(pids)) == 3


@pytest.mark.further
def test_the_error_of_a_worker_that_died_is_known_when_the_searcher_is_told(
    two_cpus: None,
) -> None:
    assert pids_of("ad", cpus=1)[1] == -1
    before, error = RUNNING["now"].errors
    assert before is None and isinstance(error, ActorDiedError)
