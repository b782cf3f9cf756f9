"""Ray hosts on one machine that share one folder and nothing else; a tool for tests.

Each node of a cluster runs in mount and UTS namespaces of its own: it has another host name, and in
place of the driver's temporary folder, home and working directory it sees its own, which are empty.
The first is the head, on the driver's own host.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
# A frozen host is given up after some four seconds, in place of half a minute.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    # And a lost head after two, in place of a minute.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "2",
}
BEGIN = """
set -e
hostname "$NAME"
mount -t tmpfs tmpfs "$PRIVATE"
mkdir "$PRIVATE/tmp" "$PRIVATE/home" "$PRIVATE/work"
cd "$PRIVATE/work"
exec "$@"
"""
# What is mounted in a shared place of the driver's host is mounted on every other host, too.
SEPARATED = ["unshare", "-m", "--propagation", "slave", "-u", "sh", "-c", BEGIN, "sh"]
PORTS = range(27000, 29900)  # below those that the system gives away by itself


@functools.cache
def lacking() -> str:
    """Return why separated hosts cannot be made here; empty if they can."""
    if shutil.which("unshare") is None:
        return "separated hosts need unshare, of util-linux"
    command = ["unshare", "-m", "-u", "sh", "-c", "hostname own && mount -t tmpfs tmpfs /mnt"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"separated hosts need root: {tried.stderr.strip()}"
    return ""


class Node:
    """One `ray start --block` and everything below it; `number` is its name in the cluster."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, number: str) -> None:
        self.process, self.log, self.number = process, log, number

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself: Ray gives a start half a minute, however busy we are."""
        if self.process.poll() is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # what it has begun
        return True

    @property
    def joined(self) -> bool:
        """Whether it is part of the cluster."""
        return "Ray runtime started" in self.log.read_text()

    @property
    def works(self) -> bool:
        """Whether it is neither lost nor frozen."""
        raylets = self.pids("/raylet/raylet ")
        return self.process.poll() is None and bool(raylets) and not any(map(_stopped, raylets))

    def pids(self, command: str = "") -> list[int]:
        """Return the processes of this node whose command holds a text."""
        found, stack = [], [self.process.pid]
        while stack:
            pid = stack.pop()
            with contextlib.suppress(OSError):
                if command in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "):
                    found.append(pid)
                for task in Path(f"/proc/{pid}/task").iterdir():
                    stack += map(int, (task / "children").read_text().split())
        return found

    @property
    def raylet(self) -> int:
        """The process that is this node to the cluster."""
        (pid,) = self.pids("/raylet/raylet ")
        return pid

    def sees(self, path: Path) -> bool:
        """Return whether a path is there for the processes of this node."""
        return Path(f"/proc/{self.raylet}/root{path}").exists()

    @property
    def stopped(self) -> bool:
        """Whether the raylet is stopped."""
        return _stopped(self.raylet)

    def freeze(self) -> None:
        """Stop every process of this node at once, as if the host were out of reach."""
        stopping = self._send(signal.SIGSTOP)
        until(lambda: all(map(_stopped, stopping)))

    def thaw(self) -> None:
        """Let every process go on."""
        self._send(signal.SIGCONT)

    def kill(self) -> None:
        """End every process of this node at once, as if the host were lost."""
        self._send(signal.SIGKILL)
        self.process.wait()

    def _send(self, what: int) -> list[int]:
        pids = self.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, what)
        return pids


def _stopped(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it has ended
        return True
    return stat.rpartition(")")[2].split()[0] == "T"


def free_port(*taken: int) -> int:
    """Return a port that nobody listens at, and that no connection takes by chance."""
    first = os.getpid() % len(PORTS)
    for port in [*PORTS[first:], *PORTS[:first]]:
        if port in taken:
            continue
        with socket.socket() as free, contextlib.suppress(OSError):
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def until(holds: Callable[[], bool]) -> None:
    """Wait for what comes within a minute, or within three on a busy machine."""
    end = time.monotonic() + 180
    while time.monotonic() < end:
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("three minutes have passed in vain")


def environment(root: Path) -> dict[str, str]:
    """Return what differs between the environment of a driver, or node, and this process's.

    Args:
        root: of a cluster; folders are made there that no host shares with another.
    """
    private = root / "own"
    for name in ("tmp", "home", "work"):
        (private / name).mkdir(parents=True, exist_ok=True)
    own = {"TMPDIR": "tmp", "HOME": "home"}
    return {
        **{name: str(private / folder) for name, folder in own.items()},
        "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(REPOSITORY), **HEALTH,
    }  # fmt: skip


class Cluster:
    """A head without CPUs on the driver's host, and separated hosts of one CPU each."""

    def __init__(self, root: Path, **settings: str) -> None:
        self.root = root
        self.settings = settings  # what all nodes have in their environment, and drivers have not
        self.private = root / "own"  # what no host shares with another
        self.store = root / "store"  # what all of them share
        self.store.mkdir(parents=True, exist_ok=True)
        self._environment = environment(root)
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.hosts: dict[str, Node] = {}
        self.head = self._start_head()

    def _start_head(self) -> Node:
        words = ["--head", "--port", str(self.port), "--include-dashboard", "false"]
        words += ["--ray-client-server-port", str(free_port(self.port))]
        head = self._start("head", words, [], 0)

        def joined() -> bool:
            nonlocal head
            if head.ended:
                head = self._start("head", words, [], 0)
            return self._listens() and head.joined

        until(joined)
        return head

    def renew(self) -> None:
        """Start a head where the lost one listened; the hosts that it had are given up."""
        self.close()
        self.head = self._start_head()

    def hold(self, **hosts: Path) -> None:
        """Have these hosts and no others.

        Args:
            hosts: name → where the host's Python finds packages first.
        """

        def joined() -> bool:
            self.begin(**hosts)
            return all(node.joined for node in self.hosts.values())

        until(joined)

    def begin(self, **hosts: Path) -> None:
        """Let these hosts and no others join, those that are lost anew; wait for none."""
        for name, node in list(self.hosts.items()):
            lost = node.ended or (node.joined and not node.works)
            if name not in hosts or lost:
                self.hosts.pop(name).kill()
        for name, path in hosts.items():
            if name not in self.hosts:
                self._join(name, path)

    def _join(self, name: str, path: Path) -> None:
        words = ["--address", self.address]
        self.hosts[name] = self._start(name, words, SEPARATED, 1, PYTHONPATH=str(path))

    def working(self, *names: str) -> str:
        """Return one of these hosts that is up, else the first of them."""
        up = [name for name in names if name in self.hosts and self.hosts[name].works]
        return [*up, names[0]][0]

    def environment(self) -> dict[str, str]:
        """Return what differs between the environment of a driver, or node, and this process's."""
        return dict(self._environment)

    def _start(
        self, name: str, words: list[str], before: list[str], cpus: int, **more: str
    ) -> Node:
        ray = str(Path(sys.executable).with_name("ray"))
        command = [
            *before, ray, "start", "--block", *words, "--num-cpus", str(cpus), "--num-gpus", "0",
            "--node-ip-address", "127.0.0.1", "--disable-usage-stats",
            "--include-log-monitor", "false",  # no driver is sent what its workers print
            "--object-store-memory", "100000000", "--temp-dir", str(self.root / name),
        ]  # fmt: skip
        log = self.root / f"{name}.log"
        environment = {**os.environ, **self.environment(), **self.settings, **more}
        environment |= {"NAME": name, "PRIVATE": str(self.private)}
        number = environment["RAY_OVERRIDE_NODE_ID_FOR_TESTING"] = secrets.token_hex(28)
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=environment,
                cwd=self.private / "work", start_new_session=True,
            )  # fmt: skip
        return Node(process, log, number)

    def _listens(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        return False

    def close(self) -> None:
        """End every process of every node."""
        self.hold()
        self.head.kill()
