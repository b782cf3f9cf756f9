"""The head of a cluster, watched while a run goes on: one that is lost ends the run properly.

A call into Ray may wait for a lost head without end, and Ray itself ends a driver whose head has
been silent for a minute, in the midst of whatever it does. So Ray is given longer here, a thread
knocks at the head, and what drives Ray runs in another thread, which is left behind with its call.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ray._raylet import Config  # type: ignore[attr-defined]

from raysweep.errors import HeadLost
from raysweep.run.cluster.address import answers, listens, nodes_alive

SETTING = "RAY_gcs_rpc_server_reconnect_timeout_s"
PATIENCE = 60.0  # Ray's own, in seconds, where the setting is not given
LONGER = "86400"
LOOK_SECONDS = 1.0
NODE_SECONDS = 5.0  # between two looks whether this driver's own node is alive
TAKE_SECONDS = 0.2  # until a signal or a lost head is noticed
_KEPT, _AGAIN = "what finished is stored, and in the records", "run the same again"
END_SECONDS, LATEST_SECONDS = 3.0, 15.0  # for Tune to end: without an answer of the head, and with


class Ended(BaseException):
    """The run has ended: whatever drives Ray must ask it and tell it nothing more."""


@contextmanager
def waiting_longer() -> Iterator[float]:
    """Let Ray wait for a silent head for long inside the block; yield the seconds that we wait."""
    own = os.environ.get(SETTING)
    os.environ[SETTING] = LONGER
    try:
        Config.initialize("")  # Ray has read its settings already, and reads them anew
        yield float(own or PATIENCE)
    finally:
        del os.environ[SETTING]
        if own is not None:
            os.environ[SETTING] = own


class Head:
    """The head of a cluster, as a driver sees it.

    Attributes:
        lost: why it is held to be lost; empty while it is not.
    """

    def __init__(self, place: str, node: str, patience: float, *, local: bool = False) -> None:
        """Take the head for present.

        Args:
            place: its HOST:PORT.
            node: id of the node that this driver runs on.
            patience: seconds of silence after which it is lost.
            local: whether it was started on this machine, for this run alone.
        """
        self.place = place
        self.lost = ""
        self._node, self._patience, self._local = node, patience, local
        self._answered = self._looked = self._asked = time.monotonic()
        self._at = time.time()

    @property
    def seconds_without_answer(self) -> float:
        """The seconds since its last answer; 0 if it has answered when it was last asked."""
        return self._looked - self._answered

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Knock at the head inside the block, in a thread."""
        closing = threading.Event()

        def watch() -> None:
            while not (self.lost or closing.wait(LOOK_SECONDS)):
                self.look()

        threading.Thread(target=watch, daemon=True, name=f"head {self.place}").start()
        try:
            yield
        finally:
            closing.set()

    def look(self) -> None:
        """Knock at the head, and note what follows."""
        there = answers(self.place)
        if there and (self.seconds_without_answer or time.monotonic() - self._asked > NODE_SECONDS):
            with contextlib.suppress(Exception):  # it may be just about to start
                self.lost = self._lost_by(nodes_alive(self.place))
                self._asked = time.monotonic()
            there = not self.lost
        self._looked = time.monotonic()
        if there:
            self._answered, self._at = self._looked, time.time()
        elif not self.lost and self._local and not listens(self.place):
            self.lost = self._told("its head has ended")  # which nobody starts again
        elif not self.lost and self.seconds_without_answer >= self._patience:
            self.lost = self._told(f"{self.seconds_without_answer:.0f} s")

    def _lost_by(self, alive: Mapping[str, bool]) -> str:
        """Return why this driver cannot go on, by the nodes that the head knows; else nothing."""
        if self._node not in alive:
            return self._told("another one has been started there")
        if alive[self._node]:
            return ""
        if self._local:
            return f"Ray, started on this machine, has lost its raylet; {_KEPT}; {_AGAIN}"
        return (
            f"this driver's own node of the cluster at {self.place} is lost; {_KEPT}; start Ray on "
            f"this host again, then {_AGAIN}"
        )

    def _told(self, what: str) -> str:
        since = time.strftime("%H:%M:%S", time.localtime(self._at))
        named, remedy = f"the head of the cluster at {self.place}", "start it again, then "
        if self._local:
            named, remedy = "Ray, started on this machine,", ""
        return (
            f"{named} does not answer since {since} ({what}); {_KEPT}; {remedy}run the same again"
        )


def run_until_lost(call: Callable[[], None], head: Head, end: Callable[[], None]) -> None:
    """Do what drives Ray in a thread; leave it behind if it waits for a lost head.

    Args:
        call: what drives Ray.
        head: watched meanwhile; what else is raised here, such as by a signal, ends the call, too.
        end: lets the call raise `Ended` as soon as it asks for anything.

    Raises:
        HeadLost: if the head is lost.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except Ended:
            pass
        except BaseException as error:  # noqa: BLE001  raised where the call is waited for
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True, name="tune")
    thread.start()
    try:
        while thread.is_alive() and not head.lost:
            thread.join(TAKE_SECONDS)
    finally:
        end()
        limit = time.monotonic() + LATEST_SECONDS
        thread.join(END_SECONDS)
        while thread.is_alive() and not head.seconds_without_answer and time.monotonic() < limit:
            thread.join(TAKE_SECONDS)
    if head.lost:
        raise HeadLost(head.lost)
    if raised:
        raise raised[0]
