"""The kinds of faults that a sweep must survive, a class each; a tool for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from random import Random
from typing import ClassVar

from tests.chaos_launch import Stuck, wait
from tests.chaos_world import World


class Fault(ABC):
    """One kind of fault; an instance strikes once.

    Attributes:
        NAME: of the kind.
        SHARE: how many of fifty faults are of this kind.
        SHUT: whether stages wait at the gate while it lasts, so that the sweep is not over before
            all faults are; not where stages must go on to feel it.
        LOSES: whether processes are killed, whose files may stay unfinished.
        FELT: seconds after it in which a driver may still hand stages to what it has broken: Ray
            finds out that a host is lost after some seconds.
        hit: keys of the stages whose artifacts it damages.
    """

    NAME: ClassVar[str]
    SHARE: ClassVar[int]
    SHUT: ClassVar[bool] = True
    LOSES: ClassVar[bool] = False
    FELT: ClassVar[float] = 0.0

    def __init__(self) -> None:
        self.hit: set[str] = set()

    @abstractmethod
    def strike(self, world: World, draw: Random) -> str:
        """Do the damage, undo what a user or an operator would undo; return what was done."""


def kinds() -> dict[str, type[Fault]]:
    """Return all kinds of faults by name."""
    return {kind.NAME: kind for kind in Fault.__subclasses__()}


class WorkerKilled(Fault):
    NAME, SHARE, LOSES = "worker", 7, True

    def strike(self, world: World, draw: Random) -> str:
        pids: list[int] = []

        def found() -> bool:
            world.go_on()
            pids[:] = world.workers()
            return bool(pids)

        wait(found, "a worker")
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(pids), signal.SIGKILL)
        return "a worker is killed"


class NodeLost(Fault):
    NAME, SHARE, LOSES = "node", 5, True
    FELT = 20.0

    def strike(self, world: World, draw: Random) -> str:
        name = draw.choice(world.busy_hosts())
        world.cluster.hosts[name].kill()
        return f"host {name} is lost"


class NodeFrozen(Fault):
    NAME, SHARE, LOSES = "frozen-node", 4, True
    FELT = 20.0

    def strike(self, world: World, draw: Random) -> str:
        name = draw.choice(world.busy_hosts())
        node, seconds = world.cluster.hosts[name], draw.choice([0.5, 6.0])
        node.freeze()
        time.sleep(seconds)
        node.thaw()
        if seconds > 1:  # the cluster has given it up, so that it ends
            with contextlib.suppress(Stuck):
                wait(lambda: not node.pids("/raylet/raylet "), "its end", 10)
            node.kill()
        return f"host {name} is frozen for {seconds:g} s"


class NodeDrained(Fault):
    NAME, SHARE, LOSES = "drained-node", 4, True
    FELT = 20.0

    def strike(self, world: World, draw: Random) -> str:
        name, seconds = draw.choice(world.busy_hosts()), draw.choice([1, 3])
        node = world.cluster.hosts[name]
        command = [
            str(Path(sys.executable).with_name("ray")), "drain-node",
            "--address", world.cluster.address, "--node-id", node.number,
            "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice",
            "--deadline-remaining-seconds", str(seconds),
        ]  # fmt: skip
        own = {**os.environ, **world.cluster.environment()}
        done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stdout + done.stderr
        time.sleep(seconds)
        node.kill()
        return f"host {name} is drained, and gone {seconds} s later"


class DriverKilled(Fault):
    NAME, SHARE, LOSES = "driver", 5, True

    def strike(self, world: World, draw: Random) -> str:
        driver = world.go_on()
        driver.allow(-signal.SIGKILL)
        driver.send(signal.SIGKILL)
        driver.process.wait()
        return "the driver is killed"


class DriverStopped(Fault):
    NAME, SHARE = "stopped-driver", 4

    def strike(self, world: World, draw: Random) -> str:
        driver = world.go_on()
        number = draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        driver.allow(128 + number)
        if not driver.said:  # It does not listen yet: the signal itself ends it.
            driver.allow(-number)
        driver.send(number)
        took = world.end_of(driver)
        return f"the driver is sent {signal.Signals(number).name}, and ends in {took:.1f} s"


class DriverFrozen(Fault):
    NAME, SHARE = "frozen-driver", 3

    def strike(self, world: World, draw: Random) -> str:
        driver, seconds = world.go_on(), draw.choice([1.0, 4.0])
        driver.send(signal.SIGSTOP)
        time.sleep(seconds)
        driver.send(signal.SIGCONT)
        return f"the driver is frozen for {seconds:g} s"


class DriverReplaced(Fault):
    """A driver is frozen, a second one takes over for a while, and the first one wakes up.

    Without leases between drivers, stages are done twice: the judge then counts them alone.
    """

    NAME, SHARE, SHUT = "second-driver", 2, False

    def strike(self, world: World, draw: Random) -> str:
        driver, before = world.go_on(), set(world.ledgers())
        driver.send(signal.SIGSTOP)
        second = world.start_inline(
            f"second-{len(world.launches) + 1}", world.store, CHAOS_GATE=str(world.gate)
        )
        second.allow(128 + signal.SIGTERM)
        more = draw.choice([3, 5])

        def stored() -> int:
            own = (path for path in world.ledgers() if path not in before)
            return sum(path.read_bytes().count(b'"event":"done"') for path in own)

        try:
            wait(lambda: second.ended or stored() >= more, "stages of a second driver")
        finally:
            second.send(signal.SIGTERM)
            world.gate.touch()  # while the second one ends, the first one would do all that is left
            driver.send(signal.SIGCONT)
        world.end_of(second)
        return f"the driver is frozen until a second one has stored {more} stages"


class HeadLost(Fault):
    NAME, SHARE, LOSES = "head", 3, True

    def strike(self, world: World, draw: Random) -> str:
        wait(lambda: not world.go_on().ended and bool(world.workers()), "a worker")
        driver = world.go_on()
        driver.allow(1)
        world.cluster.head.kill()
        took = world.end_of(driver)
        told = ("does not answer since", "then run the same again: raysweep launch chaos.yaml")
        assert all(text in driver.said for text in told), driver.said
        world.cluster.renew()
        return f"the head is lost, the driver ends in {took:.1f} s, and a head starts anew"


class DiskFull(Fault):
    NAME, SHARE, SHUT = "full-disk", 5, False
    FELT = 15.0

    def strike(self, world: World, draw: Random) -> str:
        driver, seconds = world.go_on(), draw.choice([0.5, 2.0, 4.0])
        driver.allow(1)
        world.fill()
        try:
            time.sleep(seconds)
        finally:
            world.empty()
        return f"the storage is full for {seconds:g} s"


class StorageBroken(Fault):
    NAME, SHARE, SHUT = "broken-storage", 3, False
    FELT = 15.0

    def strike(self, world: World, draw: Random) -> str:
        driver, seconds = world.go_on(), draw.choice([0.5, 2.0, 4.0])
        driver.allow(1)
        world.disconnect()
        try:
            time.sleep(seconds)
        finally:
            world.connect()
        return f"the storage is not connected for {seconds:g} s"


class StorageSealed(Fault):
    NAME, SHARE, SHUT = "sealed-storage", 2, False
    FELT = 15.0

    def strike(self, world: World, draw: Random) -> str:
        driver, seconds = world.go_on(), draw.choice([0.5, 2.0, 4.0])
        driver.allow(1)
        world.seal("+i")
        try:
            time.sleep(seconds)
        finally:
            world.seal("-i")
        return f"the storage is read-only for {seconds:g} s"


class ArtifactDamaged(Fault):
    NAME, SHARE = "damage", 3

    def strike(self, world: World, draw: Random) -> str:
        world.go_on().allow(1)  # a trial counts as missing whose last artifact is damaged
        ways = ("flipped", "truncated", "removed")
        objects = draw.random() < 0.6
        files = world.read_again() if objects else world.manifests()
        key, path = draw.choice(sorted(files or world.manifests()))
        self.hit.add(key)
        way, data = draw.choice(ways), path.read_bytes()
        if way == "removed":
            path.unlink()
        elif way == "truncated":
            path.write_bytes(data[: draw.randrange(len(data))])
        else:
            place = draw.randrange(len(data))
            flipped = bytes([data[place] ^ (1 << draw.randrange(8))])
            path.write_bytes(data[:place] + flipped + data[place + 1 :])
        return f"{path.relative_to(world.whole).parts[0]}/…/{path.name} is {way}"
