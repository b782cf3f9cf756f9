"""A sweep on separated hosts, with a storage that can be filled and broken; a tool for tests.

The storage is a small file system of its own, in memory. Nodes see it where the driver does; we see
it in a second place, too, which stays whole while the first one is broken.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from raysweep.store import Store
from tests import hosts
from tests.chaos_launch import WAIT, Launch, Stuck, wait

NAMES = ("north", "east")
BYTES = 64 << 20  # of the file system that holds the storage
PATIENCE = 0.2
BLOCK = 1 << 16
LOOK_SECONDS = 0.5  # between two looks at the hosts
WORKER = "ray::StageWorker"
SWEEP = """
name: chaos
dataset: {digits: {size: 300}}
model: {patient: {width: 4}}
recipe: {epochs: 1, batch_size: 100}
attacks:
  - none
  - badnets: {rate: [0.05, 0.1]}
  - blend: {rate: 0.1}
defenses:
  - none
  - strip: {overlays: 2}
  - spectral_signatures
  - fine_tuning: {epochs: 1}
seeds: %d
track: {wandb: disabled}
"""
# As little as a few faults can strike one after the other.
SHORT = """
name: chaos
dataset: {digits: {size: 200}}
model: {patient: {width: 4}}
recipe: {epochs: 1, batch_size: 100}
attacks:
  - badnets: {rate: 0.1}
  - blend: {rate: 0.1}
defenses: [none, spectral_signatures, fine_tuning: {epochs: 1}]
seeds: 1
track: {wandb: disabled}
"""
# Progress is ours: while the gate is shut, a stage that makes a network waits at it, for a while.
MODEL = '''
"""Patient: the tiny network, whose making takes its time; for tests."""

import os
import time
from pathlib import Path

from raysweep.models.tiny_cnn import TinyCNN


class Patient(TinyCNN):
    def build(self, shape):
        if gate := os.environ.get("CHAOS_GATE"):
            time.sleep(%s)
            for _ in range(1200):
                if not Path(gate).exists():
                    break
                time.sleep(0.05)
        return super().build(shape)
'''


class World:
    """Hosts, a storage that can be broken, and launches of one sweep, one after the other.

    Attributes:
        names: of its hosts.
        gate: while this file is there, stages wait.
        disk: where the storage is seen whole.
        calm: the storage of the undisturbed sweep.
        launches: all of them, the one that counts last among those that are no `others`.
    """

    def __init__(self, root: Path, sweep: str, names: Sequence[str]) -> None:
        self.root, self.names = root, names
        self.gate, self.disk, self.calm = root / "gate", root / "disk", root / "calm"
        self.launches: list[Launch] = []
        self.driver: Launch | None = None
        self._broken = False
        self._looked = float("-inf")
        (root / "sweep").mkdir()
        (root / "sweep" / "chaos.yaml").write_text(sweep)
        self._install(root / "methods")
        self.python = f"{root / 'methods'}{os.pathsep}{hosts.REPOSITORY}"
        self.whole = self.disk / "data"
        self._cluster: hosts.Cluster | None = None

    def begin(self) -> None:
        """Mount the storage and start the cluster; meanwhile, launch the sweep undisturbed."""
        for folder in (self.disk, self.store):
            folder.mkdir()
        mount("-t", "tmpfs", "-o", f"size={BYTES}", "chaos", str(self.disk))
        self.whole.mkdir()
        mount("--bind", str(self.whole), str(self.store))
        mount("--make-shared", str(self.store))
        self.start_inline("undisturbed", self.calm)
        self._cluster = hosts.Cluster(self.root, CHAOS_GATE=str(self.gate), OMP_NUM_THREADS="1")

    @staticmethod
    def _install(folder: Path) -> None:
        """Make a distribution that brings the model."""
        facts, package = folder / "chaotic-1.0.dist-info", folder / "chaotic"
        for made in (facts, package):
            made.mkdir(parents=True)
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: chaotic\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text("[raysweep.models]\npatient = chaotic.patient\n")
        (package / "__init__.py").write_text("")
        (package / "patient.py").write_text(MODEL % PATIENCE)

    @property
    def store(self) -> Path:
        """The storage, as drivers and nodes see it."""
        return self.root / "store"

    # The cluster

    @property
    def cluster(self) -> hosts.Cluster:
        assert self._cluster is not None, "begin first"
        return self._cluster

    def nodes(self) -> list[hosts.Node]:
        """Return the hosts that are up."""
        return [node for _, node in sorted(self.cluster.hosts.items()) if node.works]

    def workers(self) -> list[int]:
        """Return the processes that perform stages."""
        return [pid for node in self.nodes() for pid in node.pids(WORKER)]

    def busy_hosts(self) -> list[str]:
        """Return the hosts that perform stages, as soon as there is one."""
        found: list[str] = []

        def look() -> bool:
            self.go_on()
            found[:] = [n for n, node in sorted(self.cluster.hosts.items()) if node.pids(WORKER)]
            return bool(found)

        wait(look, "a host with a worker")
        return found

    # Launches

    def start(self, name: str = "", **environment: str) -> Launch:
        """Launch the sweep over the cluster."""
        where = ["--address", self.cluster.address]
        return self._start(name or f"launch-{len(self.launches) + 1}", self.store, where)

    def start_inline(self, name: str, store: Path, **environment: str) -> Launch:
        """Launch the sweep inline."""
        return self._start(name, store, ["--inline"], **environment)

    def _start(self, name: str, store: Path, where: list[str], **environment: str) -> Launch:
        command = [sys.executable, "-m", "raysweep", "launch", "chaos.yaml"]
        own = {**hosts.environment(self.root), "OMP_NUM_THREADS": "1", "PYTHONPATH": self.python}
        own["PYTHONFAULTHANDLER"] = "1"  # one that is stuck tells where
        made = Launch(
            [*command, "--storage", str(store), *where],
            own | environment,
            self.root / "sweep",
            self.root / f"{name}.log",
        )
        self.launches.append(made)
        return made

    def go_on(self) -> Launch:
        """Return the driver that runs; one that has ended is launched again, as a user does.

        Hosts that are lost join again.
        """
        if self.driver is None or self.driver.ended:
            self.driver = self.start()
        self.mend()
        return self.driver

    def mend(self) -> None:
        """Let lost hosts join again, and wait for none; looked at now and then."""
        if time.monotonic() >= self._looked + LOOK_SECONDS:
            self.cluster.begin(**dict.fromkeys(self.names, Path(self.python)))
            self._looked = time.monotonic()

    def progress(self) -> int:
        """Return how many stages are stored."""
        return len(list((self.whole / "manifests").rglob("*.json")))

    def ledgers(self) -> list[Path]:
        """Return the ledgers of all launches."""
        return sorted((self.whole / "sweeps" / "chaos" / "ledger").glob("*.jsonl"))

    def reach(self, stages: int) -> None:
        """Wait until so many stages are stored."""
        self.gate.unlink(missing_ok=True)
        last, since = -1, time.monotonic()
        while (now := self.progress()) < stages:
            if now != last:
                last, since = now, time.monotonic()
            if time.monotonic() > since + WAIT:
                raise self.stuck(
                    self.driver, f"{now} of {stages} stages are stored for {WAIT:.0f} s"
                )
            self.go_on()
            time.sleep(0.05)

    def end_of(self, driver: Launch, meanwhile: Callable[[], None] = lambda: None) -> float:
        """Wait until a launch ends, and do something meanwhile; return the seconds that it took.

        Raises:
            Stuck: if it does not in time; tells where its threads are.
        """
        began = time.monotonic()
        while not driver.ended:
            if time.monotonic() > began + WAIT:
                raise self.stuck(driver, f"{driver.log} does not end in {WAIT:.0f} s")
            meanwhile()
            time.sleep(0.05)
        return time.monotonic() - began

    def stuck(self, driver: Launch | None, what: str) -> Stuck:
        """Return the error of a driver that does nothing, with the places where its threads are."""
        if driver is not None and not driver.ended:
            driver.send(signal.SIGABRT)
            driver.process.wait()
        return Stuck(f"{what}\n{self._said()}")

    def _said(self) -> str:
        return "\n".join(f"--- {one.log.name}\n{one.said[-6000:]}" for one in self.launches[-2:])

    # The storage

    def fill(self) -> None:
        """Leave no byte free on the storage."""
        with (self.disk / "filler").open("wb", buffering=0) as file:
            for size in (BLOCK, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def empty(self) -> None:
        """Give the room back."""
        (self.disk / "filler").unlink(missing_ok=True)

    def disconnect(self) -> None:
        """Break the storage for all hosts: whatever is asked of it, it is not connected.

        It is what is left of a network file system whose server has gone.
        """
        server = os.open("/dev/fuse", os.O_RDWR)
        try:
            how = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
            place = os.fsencode(self.store)
            if ctypes.CDLL(None, use_errno=True).mount(b"chaos", place, b"fuse", 0, how):
                raise OSError(ctypes.get_errno(), "mount")
        finally:
            os.close(server)
        self._broken = True

    def connect(self) -> None:
        """Bring the storage back."""
        if self._broken:
            subprocess.run(["umount", "--lazy", str(self.store)], check=True)
            self._broken = False

    def seal(self, flag: str) -> None:
        """Let nobody write into the folders of the storage (`+i`), or everybody (`-i`)."""
        subprocess.run(
            ["find", self.whole, "-type", "d", "-exec", "chattr", flag, "{}", "+"], check=True
        )

    def manifests(self) -> list[tuple[str, Path]]:
        """Return the manifests of all stored stages, by key."""
        return [(file.stem, file) for file in (self.whole / "manifests").rglob("*.json")]

    def read_again(self) -> list[tuple[str, Path]]:
        """Return the objects that a stage reads which is not stored yet, by key."""
        calm, stored = Store(str(self.calm)), {key for key, _ in self.manifests()}
        missing = calm.manifests(calm.done() - stored)[0]
        wanted = {key for manifest in missing.values() for key in manifest.read}
        files = (self.whole / "objects").rglob("[!.]*.safetensors")
        return [(key, file) for file in files if (key := file.stem.rpartition("-")[0]) in wanted]

    def settle(self, most: int, *, again: bool) -> None:
        """Let the sweep end.

        Args:
            most: launches within which it must.
            again: whether one more launch is to find nothing to do, as it must where artifacts are
                damaged that the launch before had read already.

        Raises:
            Stuck: if so many launches are not enough.
        """
        self.gate.unlink(missing_ok=True)
        for _ in range(most):
            driver = self.go_on()
            self.end_of(driver, lambda: None if self.nodes() else self.mend())
            if "\n0 stages ran, " in driver.said or not (again or driver.process.returncode):
                return
        raise self.stuck(self.driver, f"{most} launches after the last fault have something to do")

    def close(self) -> None:
        """End every process and take every mount back."""
        for launch in self.launches:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(launch.process.pid, 9)
            launch.process.wait()
        if self._cluster is not None:
            self._cluster.close()
        self.connect()
        for place in (self.store, self.disk):
            subprocess.run(["umount", "--lazy", str(place)], check=False)


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)
