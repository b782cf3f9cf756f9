"""A cluster whose head is killed while a sweep runs: what is left of it, and how it goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from raysweep.jobs.launch import launch
from raysweep.jobs.tune import tune
from raysweep.results import records
from raysweep.run.head import Head
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.loading import load_sweep
from tests import hosts
from tests.test_execute import assert_same

SWEEP = """
name: headless
dataset: {digits: {size: 300}}
model: {tiny_cnn: {width: 4}}
recipe: {epochs: 1, batch_size: 100}
attacks: [badnets: {rate: [0.05, 0.1]}, blend: {rate: 0.1}]
defenses: [none, strip: {overlays: 4}, spectral_signatures]
seeds: 2
tune: {trials: 3, parameters: {strip: {overlays: {values: [2, 3, 4]}}}}
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


def behead(cluster: hosts.Cluster, verb: str, file: Path) -> str:
    """Begin a command, kill the head while a stage is under way; return what is printed."""
    cluster.hold(north=hosts.REPOSITORY)
    driver, store = started(cluster, verb, file), Store(str(cluster.store / verb))
    hosts.until(lambda: len(store.list("manifests")) >= 5)
    for pid in cluster.hosts["north"].pids("ray::StageWorker"):
        os.kill(pid, signal.SIGSTOP)  # it is not over before the head is
    cluster.head.kill()
    said, _ = driver.communicate(timeout=60)
    assert driver.returncode == 1, said
    return said


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_head_costs_the_driver_and_a_new_one_goes_on(
    cluster: hosts.Cluster, tmp_path: Path
) -> None:
    file = tmp_path / "headless.yaml"
    file.write_text(SWEEP)
    sweep = load_sweep(file)
    patient = Head(cluster.address, cluster.head.number, 600.0)
    for verb in ("launch", "tune"):
        patient.look()
        assert not patient.silent_seconds
        said = behead(cluster, verb, file)
        assert f"the head of the cluster at {cluster.address} does not answer since" in said
        assert f"then run the same again: raysweep {verb} {file}" in said
        assert "Traceback" not in said and "ray::" not in said
        patient.look()
        assert patient.silent_seconds and not patient.lost
        cluster.renew()
        patient.look()
        assert "another one has been started there" in patient.lost
        patient = Head(cluster.address, cluster.head.number, 600.0)
    rows = launch(sweep, SWEEP, str(tmp_path / "store"), inline=True).rows
    tuned = tune(sweep, SWEEP, str(tmp_path / "store"), inline=True).tuned
    before = records.load("headless", str(cluster.store / "launch"))
    assert len(before) == len(rows) and "pending" in set(before["status"])
    cluster.hold(north=hosts.REPOSITORY)
    for verb in ("launch", "tune"):
        driver = started(cluster, verb, file)
        said, _ = driver.communicate(timeout=120)
        assert not driver.returncode, said
    assert_same(records.load("headless", str(cluster.store / "launch")), rows)
    folder = SweepFolder(Store(str(cluster.store / "tune")), "headless")
    assert tuned is not None and folder.store.read(folder.tuned) == tuned.pack()
