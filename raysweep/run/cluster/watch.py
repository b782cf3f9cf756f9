"""A thread of a worker that watches the stage at work: tells the driver of it, ends it in time.

What it tells lies in Ray's key-value store, below the prefix of the run: `running/<key>` says how
far a stage is, `output/<key>` holds what it wrote last, and `death/<trial>` why a process ended
itself. A stage that ends within a second, and writes nothing, costs no request.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import NoReturn

from ray.experimental import internal_kv

from raysweep.run.cluster.batch import Batch
from raysweep.run.cluster.output import Output, file_of
from raysweep.stages.current import CurrentStage, current
from raysweep.store.heartbeat import RunningStage

LOOK_SECONDS = 0.25
TELL_SECONDS = 1.0
BEAT_SECONDS = 5.0
TOLD_BYTES = 16 << 10
_exit = os._exit


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """News of the stage at work: the end of what it has written, or why its process ends.

    Attributes:
        key: of the stage; empty if there is none.
        text: the output, or the cause.
        lasting: whether the stage is to blame for the end, so that trying again is pointless.
    """

    key: str
    text: str
    lasting: bool = False


class Watch:
    """Watches the stages that the thread which makes it performs."""

    def __init__(self) -> None:
        self._thread, self._pid = threading.get_ident(), os.getpid()
        self._lock = threading.Lock()  # The file of a batch is not closed while it is looked at.
        self._batch: Batch | None = None
        self._output: Output | None = None
        self._of: CurrentStage | None = None  # the stage that the rest of this was told of
        self._told: dict[str, tuple[tuple[str | float, ...], float]] = {}  # name → what, and when
        threading.Thread(target=self._watch, daemon=True, name="raysweep-watch").start()

    @contextmanager
    def over(self, batch: Batch) -> Iterator[Output]:
        """Watch the stages of a batch inside the block; give what takes their output."""
        output = Output(file_of(batch.ticket))
        with self._lock:
            self._batch, self._output = batch, output
        try:
            yield output
        finally:
            with self._lock:
                self._batch = self._output = None
                output.close()

    @property
    def at_work(self) -> bool:
        """Whether this very process, and no fork of it, performs a stage."""
        return os.getpid() == self._pid and current(self._thread) is not None

    def end(self, code: int, error: str, *, lasting: bool) -> NoReturn:
        """End this process, and let the driver know why.

        Args:
            code: the exit code.
            error: the cause, as it is told to the user.
            lasting: whether the stage at work is to blame, so that trying again is pointless.
        """
        batch, now = self._batch, current(self._thread)
        if batch is not None:
            self._tell_death(batch, now.key if now else "", error, lasting)
        _exit(code)

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_SECONDS)
            with contextlib.suppress(Exception):  # Ray's store is away: the stage goes on.
                self._look()

    def _look(self) -> None:
        with self._lock:
            batch, output, now = self._batch, self._output, current(self._thread)
            size, text = 0, ""
            if output is not None:
                output.bound()
                size, text = output.size, output.last()
        if now is not self._of or batch is None:
            self._take_back()
            self._of = now
        if batch is None or now is None:
            return
        limit = batch.limits.get(now.key)
        if limit is not None and now.seconds > limit.seconds:
            self._tell_death(batch, now.key, limit.exceeded, lasting=True)
            if current(self._thread) is now:
                _exit(1)
        if text:
            told = News(key=now.key, text=text[-TOLD_BYTES:])
            self._tell(f"{batch.prefix}output/{now.key}", told, (size,))
        self._tell_state(batch, now)

    def _tell_state(self, batch: Batch, now: CurrentStage) -> None:
        if now.seconds >= TELL_SECONDS:
            state = now.state()
            beat = int(now.seconds / BEAT_SECONDS)  # told again now and then, whatever it does
            name = f"{batch.prefix}running/{now.key}"
            self._tell(name, state, (state.fraction, state.doing, beat))

    def _tell(self, name: str, news: News | RunningStage, what: tuple[str | float, ...]) -> None:
        """Tell news unless they are known, or others of the name were told a moment ago."""
        now = time.monotonic()
        before, at = self._told.get(name, ((), -TELL_SECONDS))
        if before != what and now - at >= TELL_SECONDS:
            self._told[name] = what, now  # first, so that it is taken back in any case
            _put(name, news)

    def _take_back(self) -> None:
        """Take back what was told of a stage that has ended."""
        while self._told:
            name, _ = self._told.popitem()
            internal_kv._internal_kv_del(name)

    def _tell_death(self, batch: Batch, key: str, error: str, lasting: bool) -> None:
        name = f"{batch.prefix}death/{batch.trial}"
        with contextlib.suppress(Exception):  # the process ends, whatever becomes of the news
            _put(name, News(key=key, text=error, lasting=lasting))


def running_stages(prefix: str, keys: Iterable[str]) -> tuple[RunningStage, ...]:
    """Return the state of the stages of a run, of those that run for longer than a moment.

    Args:
        prefix: of the run.
        keys: of the stages that are handed out; what is left of others is old.
    """
    above, found = f"{prefix}running/", []
    names = {name.decode() for name in internal_kv._internal_kv_list(above)}
    for name in sorted(names & {f"{above}{key}" for key in keys}):
        if raw := internal_kv._internal_kv_get(name):
            found.append(RunningStage(**json.loads(raw)))
    return tuple(found)


def taken_news(name: str) -> News | None:
    """Return the news that a worker put under a name, and remove it; None if there is none."""
    raw = internal_kv._internal_kv_get(name)
    if not raw:
        return None
    internal_kv._internal_kv_del(name)
    return News(**json.loads(raw))


def _put(name: str, news: News | RunningStage) -> None:
    internal_kv._internal_kv_put(name, json.dumps(asdict(news)).encode(), overwrite=True)
