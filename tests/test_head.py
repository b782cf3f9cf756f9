"""A cluster whose head is killed while a sweep runs: what is left of it, and how it goes on."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from raysweep.errors import HeadLost, HostError
from raysweep.jobs.launch import launch
from raysweep.jobs.tune import tune
from raysweep.results import records
from raysweep.results.tuned import TunedRow
from raysweep.run.cluster import address
from raysweep.run.cluster import head as head_module
from raysweep.run.cluster.head import Head, run_until_lost
from raysweep.run.cluster.nodes import connect
from raysweep.store import Store, ledger
from raysweep.store.events import Dispatch
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.loading import load_sweep
from raysweep.sweep.spec import Sweep
from tests import hosts
from tests.test_execute import assert_same

SWEEP = """
name: headless
dataset: {digits: {size: 300}}
model: {tiny_cnn: {width: 4}}
recipe: {epochs: 20, batch_size: 10}
attacks: [badnets: {rate: 0.1}, blend: {rate: 0.1}]
defenses: [none, strip: {overlays: 4}, spectral_signatures]
seeds: 1
tune: {trials: 2, parameters: {strip: {overlays: {values: [2, 3, 4]}}}}
track: {wandb: disabled}
"""


@pytest.fixture
def cluster() -> Iterator[hosts.Cluster]:
    if reason := hosts.lacking():
        pytest.skip(reason)
    root = Path(tempfile.mkdtemp(prefix="l", dir="/tmp"))  # short: sockets lie below it
    made = hosts.Cluster(root)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(root, ignore_errors=True)


def started(cluster: hosts.Cluster, verb: str, file: Path) -> subprocess.Popen[str]:
    """Begin a command on a sweep file, over the cluster, in a storage of its own."""
    words = [verb, str(file), "--address", cluster.address, "--storage", str(cluster.store / verb)]
    return subprocess.Popen(
        [sys.executable, "-m", "raysweep", *words], text=True, cwd=cluster.root,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, **cluster.environment()},
    )  # fmt: skip


def tuned(sweep: Sweep, storage: str) -> list[TunedRow]:
    """Tune inline; return what is found, without the seconds that it took."""
    found = tune(sweep, SWEEP, storage, inline=True).tuned
    assert found is not None
    return [replace(row, seconds=0.0) for row in found.rows]


def silent() -> str:
    """Return the address of a port where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{bound.getsockname()[1]}"


def test_a_call_that_waits_for_a_silent_head_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head_module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(head_module, "END_SECONDS", 0.1)
    place, ended, forever = silent(), threading.Event(), threading.Event()
    head = Head(place, "a node", 0.3)

    def wait() -> None:
        forever.wait(20)

    with head.watched(), pytest.raises(HeadLost) as lost:
        run_until_lost(wait, head, ended.set)
    assert ended.is_set() and not forever.is_set()
    assert f"the head of the cluster at {place} does not answer since" in str(lost.value)
    assert "start it again, then run the same again" in str(lost.value)


def test_a_head_of_this_machine_that_has_ended_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = Head(silent(), "a node", 600.0, local=True)
    gone.look()
    assert gone.lost.startswith("Ray, started on this machine, does not answer since")
    assert "(its head has ended); what finished is stored" in gone.lost
    elsewhere = Head(silent(), "a node", 600.0)
    elsewhere.look()
    assert not elsewhere.lost, "it may be started again"
    monkeypatch.setattr(address, "SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        head = Head(f"127.0.0.1:{busy.getsockname()[1]}", "a node", 600.0, local=True)
        head.look()
        assert head.seconds_without_answer and not head.lost


def test_an_error_of_the_call_is_raised_where_it_is_waited_for() -> None:
    def fail() -> None:
        raise KeyError("its own")

    ended = threading.Event()
    with pytest.raises(KeyError, match="its own"):
        run_until_lost(fail, Head(silent(), "a node", 60.0), ended.set)
    assert ended.is_set()


def test_a_ray_that_cannot_be_started_here_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")  # no folder, and short enough to be taken
    with pytest.raises(HostError, match=r"Ray cannot be started on this machine \(.*--inline does"):
        connect(None)


@pytest.mark.further
@pytest.mark.ray
def test_a_driver_whose_own_node_is_lost_does_not_wait_for_it(
    cluster: hosts.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "NODE_SECONDS", 0.0)
    cluster.hold(north=hosts.REPOSITORY)
    own, place = cluster.hosts["north"].number, cluster.address
    heads = [Head(place, own, 600.0), Head(place, own, 600.0, local=True)]
    for head in heads:
        head.look()
        assert not head.lost
    cluster.hosts["north"].kill()

    def found() -> bool:
        for head in heads:
            head.look()
        return all(head.lost for head in heads)

    hosts.until(found)
    kept = "what finished is stored, and in the records"
    assert heads[0].lost == (
        f"this driver's own node of the cluster at {place} is lost; {kept}; start Ray on this host "
        f"again, then run the same again"
    )
    assert heads[1].lost == (
        f"Ray, started on this machine, has lost its raylet; {kept}; run the same again"
    )


@pytest.mark.long
@pytest.mark.ray
def test_a_killed_head_costs_the_drivers_and_a_new_one_goes_on(
    cluster: hosts.Cluster, tmp_path: Path
) -> None:
    file = tmp_path / "headless.yaml"
    file.write_text(SWEEP)
    head = Head(cluster.address, cluster.head.number, 600.0)
    cluster.hold(north=hosts.REPOSITORY)
    head.look()
    assert not head.seconds_without_answer
    store, tuning = (Store(str(cluster.store / verb)) for verb in ("launch", "tune"))
    drivers = {"launch": started(cluster, "launch", file)}
    hosts.until(lambda: len(store.list("manifests")) >= 3)
    workers = cluster.hosts["north"].pids("ray::StageWorker")  # idle or at work
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # it is not over before the head is
    drivers["tune"] = started(cluster, "tune", file)  # waits for a worker
    folder = SweepFolder(tuning, "headless").tuning
    hosts.until(lambda: any(isinstance(event, Dispatch) for event in ledger.read(folder)))
    cluster.head.kill()
    for verb, driver in drivers.items():
        said, _ = driver.communicate(timeout=60)
        assert driver.returncode == 1, said
        assert f"the head of the cluster at {cluster.address} does not answer since" in said
        assert f"then run the same again: raysweep {verb} {file}" in said
        assert "Traceback" not in said and "ray::" not in said
    assert "pending" in set(records.load("headless", store.uri)["status"])
    head.look()
    assert head.seconds_without_answer and not head.lost
    cluster.renew()
    head.look()
    assert "another one has been started there" in head.lost

    cluster.hold(north=hosts.REPOSITORY)
    again = started(cluster, "launch", file)
    sweep, calm = load_sweep(file), str(tmp_path / "calm")
    launch(sweep, SWEEP, calm, inline=True)
    assert tuned(sweep, tuning.uri) == tuned(sweep, calm)
    said, _ = again.communicate(timeout=120)
    assert not again.returncode, said
    assert_same(records.load("headless", store.uri), records.load("headless", calm))
