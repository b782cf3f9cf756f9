"""Idle workers: kept warm while the sweep goes on, and dropped where others need their room.

Tune keeps a finished worker only for a batch that waits at that moment, so where stages become
ready one by one each would pay for the start of a process, which on a GPU is seconds. Here a worker
stays for a while, unless a batch of another kind waits for room.

It also keeps Tune from writing down each trial, which nobody reads: what is done is what is stored.

It also keeps the error by which Tune hears that a batch's worker has died: Tune tells a searcher
that there was one, and not which.

Tune also gives a batch whose worker is starting to one that becomes free before, and then ends the
one that starts; where stages are shorter than a start, a second worker would never come up. Here it
starts, and is idle then.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.utils.object_cache import _ObjectCache

IDLE_SECONDS = 60.0
ROOM_SECONDS = 0.3  # what Ray takes to find room that there is
FRESH_SECONDS = 1.0
ANSWER_SECONDS = 2.0
_ERRORS: dict[str, BaseException] = {}  # by trial of Tune


def error_of(trial_id: str) -> BaseException | None:
    """Return the error that a trial of Tune ended by, once; None if it had none."""
    return _ERRORS.pop(trial_id, None)


class KeepingIdle(FIFOScheduler):  # type: ignore[misc]
    """Tune's first-in-first-out scheduler, with `IdleWorkers` in place of Tune's own cache."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take over the cache of workers before Tune puts anything in."""
        del trial
        controller = tune_controller._tune_controller
        if not isinstance(controller._actor_cache, IdleWorkers):
            controller._actor_cache = IdleWorkers(controller)
            controller._remove_actor = controller._actor_cache.removed
            controller._process_trial_failure = _noting(controller._process_trial_failure)
            controller._get_trial_checkpoints = dict  # what Tune writes of its trials: nothing

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Leave the order to Tune's queue; to look through all trials would take ever longer."""
        del tune_controller


def _noting(process: Callable[..., None]) -> Callable[..., None]:
    """Return Tune's reaction to a failure, which notes the error before."""

    def processed(trial: Trial, exception: BaseException) -> None:
        _ERRORS[trial.trial_id] = exception
        process(trial, exception=exception)

    return processed


class IdleWorkers(_ObjectCache):  # type: ignore[misc]
    """Workers without a batch, by the resources that they hold.

    It stands on parts of Tune that are not public: `tests/test_idle.py` tells where they changed.
    """

    def __init__(self, controller: Any) -> None:
        super().__init__()
        self._manager = controller._actor_manager
        self._started = controller._started_actors
        self._remove = controller._remove_actor
        self._starting: set[Any] = set()
        self._since: dict[Any, float] = {}
        self._heard: dict[Any, float] = {}  # when each has given a sign of life
        self._dead: list[Any] = []
        self._crowded: float | None = None

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Leave nothing in the state that Tune writes now and then: it is thrown away."""
        return _ObjectCache, ()

    def cache_object(self, key: Any, obj: Any) -> bool:
        """Keep a worker that has finished its batch, whatever waits now."""
        self._cached_objects[key].append(obj)
        self._num_cached_objects += 1
        self._since[obj] = self._heard[obj] = time.monotonic()
        return True

    def has_cached_object(self, key: Any) -> bool:
        """Return whether a worker with these resources is idle, and alive; the first is, then."""
        idle = self._cached_objects[key]
        alive = self._alive(idle)
        if alive is None:
            return False
        idle.remove(alive)
        idle.insert(0, alive)
        return True

    def pop_cached_object(self, key: Any) -> Any:
        """Return an idle worker with these resources, or None."""
        if not self.has_cached_object(key):
            return None
        worker = self._cached_objects[key].pop(0)
        self._forget(worker)
        return worker

    def flush_cached_objects(self, force_all: bool = False) -> Iterator[Any]:
        """Drop the workers that died, were idle for long, or hold room that a batch waits for."""
        yield from self._dead
        self._dead.clear()
        if force_all:
            yield from list(self._starting)
        wanted = len(self._since) if force_all else self._wanted()
        now = time.monotonic()
        for worker, key in self._longest_idle_first():
            if wanted <= 0 and now - self._since[worker] < IDLE_SECONDS:
                return
            wanted -= 1
            self._cached_objects[key].remove(worker)
            self._forget(worker)
            yield worker

    def removed(self, tracked_actor: Any) -> None:
        """Remove a worker, as Tune asks; one whose process is starting for nobody becomes idle."""
        live = self._manager._live_actors_to_ray_actors_resources
        known = tracked_actor in self._started or tracked_actor in self._starting
        if known or not self._manager.is_actor_started(tracked_actor):
            self._starting.discard(tracked_actor)
            self._remove(tracked_actor)
            return
        key = live[tracked_actor][1].resource_request

        def up(worker: Any) -> None:
            self._starting.discard(worker)
            self._started.add(worker)
            self.cache_object(key, worker)

        self._starting.add(tracked_actor)
        tracked_actor.set_on_start(up)
        tracked_actor.set_on_error(lambda worker, error: self._starting.discard(worker))

    def _wanted(self) -> int:
        """Return the number of workers that others wait for longer than Ray needs to find room.

        Then Ray is given time again, to find the room of those that are dropped now.
        """
        waiting: int = self._manager.num_pending_actors
        now = time.monotonic()
        if not waiting or not self._since:
            self._crowded = None
            return 0
        self._crowded = self._crowded or now
        if now - self._crowded <= ROOM_SECONDS:
            return 0
        self._crowded = now
        return waiting

    def _longest_idle_first(self) -> list[tuple[Any, Any]]:
        idle = [(worker, key) for key, all_ in self._cached_objects.items() for worker in all_]
        return sorted(idle, key=lambda one: self._since[one[0]])

    def _forget(self, worker: Any) -> None:
        del self._since[worker], self._heard[worker]
        self._num_cached_objects -= 1

    def _alive(self, idle: list[Any]) -> Any:
        """Return one of some idle workers that is alive, or None; drop those that are not.

        Tune does not hear of their deaths. They are asked together, and the first answer is taken:
        those of a lost host are silent, and the loop of the driver waits here.
        """
        end = time.monotonic() + ANSWER_SECONDS
        for worker in idle:
            if time.monotonic() - self._heard[worker] < FRESH_SECONDS:
                return worker
        live = self._manager._live_actors_to_ray_actors_resources
        asked = {live[worker][0].__ray_ready__.remote(): worker for worker in idle}
        while asked:
            answers, _ = ray.wait(list(asked), timeout=max(end - time.monotonic(), 0))
            for answer in answers:
                with contextlib.suppress(RayError):
                    ray.get(answer)
                    self._heard[asked[answer]] = time.monotonic()
                    return asked[answer]
            for silent in answers or list(asked):
                worker = asked.pop(silent)
                idle.remove(worker)
                self._forget(worker)
                self._dead.append(worker)
        return None
