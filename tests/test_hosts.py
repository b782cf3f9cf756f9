"""Sweeps on hosts that share the store and nothing else: lost, frozen, and with other code."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raysweep import ledger, methods, records
from raysweep.defenses.datamodels import Datamodels
from raysweep.defenses.strip import Strip
from raysweep.driver import Run
from raysweep.errors import HostError, StageError
from raysweep.launch import Conclusion, launch
from raysweep.loading import load_sweep
from raysweep.provenance import code_here, git_commit, versions
from raysweep.store import Store
from raysweep.tune.run import Tuning, tune
from tests import hosts
from tests.test_execute import assert_same, values

HERE = hosts.REPOSITORY
OWN = ("tmp", "home", "work")

SWEEP = """
name: small
dataset: {digits: {size: 300}}
model: {tiny_cnn: {width: 4}}
recipe: {epochs: 1, batch_size: 100}
attacks: [none, badnets: {rate: 0.1}]
defenses:
  - none
  - strip: {overlays: 4}
  - spectral_signatures
  - ispl: {share: 0.01, expansion: 0.05}
seeds: 1
track: {wandb: disabled}
"""
TUNED = """
name: tuned
dataset: {digits: {size: 300}}
model: {tiny_cnn: {width: 4}}
recipe: {epochs: 1, batch_size: 100}
attacks: [badnets: {rate: 0.1}, blend: {rate: 0.1}]
defenses: [strip: {overlays: 4}]
seeds: 2
tune:
  trials: 3
  parameters: {strip: {overlays: {values: [2, 3, 4]}}}
track: {wandb: disabled}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[hosts.Cluster]:
    """A head without CPUs in this namespace, and separated hosts of one CPU each."""
    if reason := hosts.lacking():
        pytest.skip(reason)
    root = Path(tempfile.mkdtemp(prefix="h", dir="/tmp"))  # short: sockets lie below it
    made = hosts.Cluster(root)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def store(
    cluster: hosts.Cluster, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Path:
    """A folder that all hosts see; this process stands where a driver does that they do not."""
    for name, value in cluster.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(cluster.private / "work")
    return cluster.store / request.node.name


def run(text: str, store: Path, **options: Any) -> Conclusion:
    file = Path("sweep.yaml")  # in the working directory, which no other host sees
    file.write_text(text)
    return launch(load_sweep(file), text, str(store), **options)


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Conclusion:
    """The sweep, run inline."""
    folder = tmp_path_factory.mktemp("inline")
    file = folder / "sweep.yaml"
    file.write_text(SWEEP)
    return launch(load_sweep(file), SWEEP, str(folder / "store"), inline=True)


def search(text: str, store: Path, **options: Any) -> Tuning:
    file = Path("sweep.yaml")
    file.write_text(text)
    return tune(load_sweep(file), text, str(store), **options)


def once(done: int, act: Callable[[str], object]) -> Callable[[Run], None]:
    """Return a watcher that acts once, as soon as so many stages ran, on the host of the last."""
    acted: list[str] = []

    def watch(run: Run) -> None:
        if not acted and len(run.schedule.ran) >= done:
            acted.append(list(run.schedule.ran.values())[-1].host)
            act(acted[0])

    return watch


def workers(store: Path, name: str = "small") -> set[str]:
    """Return the hosts that finished a stage."""
    lines = ledger.read(Store(str(store)), name)
    return {line["host"] for line in lines if line["event"] == "done"}


@pytest.mark.ray
def test_hosts_share_the_store_alone(cluster: hosts.Cluster, store: Path) -> None:
    cluster.hold(north=HERE, east=HERE)
    store.mkdir()
    for folder in OWN:
        (cluster.private / folder / "drivers").write_text("")
    for host in cluster.hosts.values():
        assert host.sees(store)
        assert host.sees(cluster.private / "tmp")
        assert not any(host.sees(cluster.private / folder / "drivers") for folder in OWN)
    assert not host.stopped
    host.freeze()
    assert host.stopped
    host.thaw()
    assert not host.stopped


@pytest.mark.ray
def test_a_launch_over_three_hosts_with_a_killed_worker_and_a_killed_host(
    cluster: hosts.Cluster, store: Path, inline: Conclusion, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster.hold(north=HERE, east=HERE)
    killed: list[int] = []

    def kill_worker(host: str) -> None:
        killed.extend(cluster.hosts[host].pids("ray::StageWorker"))
        os.kill(killed[0], signal.SIGKILL)

    acts = once(5, kill_worker), once(12, lambda host: cluster.hosts[host].kill())
    found = run(SWEEP, store, address=cluster.address, watch=lambda run: [a(run) for a in acts])
    said = "".join(capfd.readouterr())
    show(store, "small")
    assert killed and sum(node.works for node in cluster.hosts.values()) == 1
    assert "Traceback" not in said, said
    assert workers(store) == {"north", "east"}, "the other host has done the rest"
    bad = found.rows[found.rows["status"] != "ok"]
    assert set(bad["defense_name"]) == {"ispl"}
    assert bad["error"].str.startswith("ValueError: share * expansion").all(), "its own error"
    assert_same(found.rows, inline.rows)


@pytest.mark.ray
def test_a_tuning_over_three_hosts_with_a_frozen_host(
    cluster: hosts.Cluster, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster.hold(north=HERE, east=HERE)
    freeze = once(4, lambda host: cluster.hosts[host].freeze())
    found = search(TUNED, store, address=cluster.address, watch=freeze)
    said = "".join(capfd.readouterr())
    show(store, "tuned")
    assert sum(node.stopped for node in cluster.hosts.values()) == 1
    assert "Traceback" not in said, said
    assert workers(store, "tuned") == {"north", "east"}, "the other host has done the rest"
    inline = search(TUNED, store.with_name("inline-tuned"), inline=True)
    pd.testing.assert_frame_equal(values(found.table), values(inline.table), check_exact=True)


def other_code(folder: Path, *, whole: bool) -> Path:
    """Return a folder with another raysweep: strip of version 1 and the opposite sign, or less."""
    package = folder / "raysweep"
    shutil.copytree(HERE / "raysweep", package, ignore=shutil.ignore_patterns("__pycache__"))
    if not whole:
        for name in ("provenance", "worker", "cluster"):
            (package / f"{name}.py").unlink()
    file = package / "defenses" / "strip.py"
    text = file.read_text()
    file.write_text(text + "# other\n")
    return folder


@pytest.mark.ray
def test_a_host_with_other_code_makes_no_row(
    cluster: hosts.Cluster, store: Path, inline: Conclusion, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster.hold(north=HERE, south=other_code(cluster.root / "a", whole=True))
    found = run(SWEEP, store, address=cluster.address)
    said = "".join(capfd.readouterr())
    show(store, "small")
    assert "Traceback" not in said, said
    (warning,) = found.warnings
    assert "host south" in warning and code_here().source in warning, warning
    assert workers(store) == {"north"}
    infos = [manifest_info(store, key) for key in Store(str(store)).done()]
    assert {info["host"] for info in infos} == {"north"}
    assert_same(found.rows, inline.rows)


@pytest.mark.ray
def test_no_host_with_the_drivers_code_is_one_clear_message(
    cluster: hosts.Cluster, store: Path
) -> None:
    cluster.hold(south=other_code(cluster.root / "b", whole=False))
    Path("sweep.yaml").write_text(SWEEP)
    done = subprocess.run(
        [sys.executable, "-m", "raysweep.cli", "launch", "sweep.yaml", "--storage", str(store),
         "--address", cluster.address],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 1, done.stdout
    assert "error: host south is given no work" in done.stdout and "Traceback" not in done.stdout
    assert not set(Store(str(store)).done())
    assert set(records.load("small", str(store))["status"]) == {"pending"}


def manifest_info(store: Path, key: str) -> dict[str, Any]:
    manifest = Store(str(store)).manifest(key.partition("-")[0], key)
    assert manifest is not None
    return dict(manifest.info)


def show(store, name):
    t0 = None
    with open("/tmp/hosts/line.txt", "a") as f:
        print(name, file=f)
        for l in ledger.read(Store(str(store)), name):
            t0 = t0 or l["t"]
            print(round(l["t"] - t0, 2), {k: v for k, v in l.items() if k != "t"}, file=f)
