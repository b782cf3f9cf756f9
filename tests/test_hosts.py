"""Sweeps on hosts that share the store and nothing else: lost, frozen, and with other code."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raysweep import methods
from raysweep.cli.app import main
from raysweep.datasets.digits import Digits
from raysweep.defenses.datamodels import Datamodels
from raysweep.defenses.strip import Strip
from raysweep.errors import HostError, StageError, StoreError
from raysweep.jobs.launch import Conclusion, launch
from raysweep.jobs.tune import Tuning, tune
from raysweep.methods import Recipe
from raysweep.models.linear import Linear
from raysweep.provenance import code_here, git_commit, refusal, versions
from raysweep.results import records
from raysweep.run.cluster import unmet
from raysweep.run.cluster.nodes import refusals
from raysweep.run.run import Run
from raysweep.stages import perform
from raysweep.stages.stage import Packed
from raysweep.store import Store, ledger
from raysweep.store.events import Done, Failed, Note, Retry
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.loading import load_sweep
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

EDGE = '''
"""Edge: the left columns are white."""
from raysweep.attacks import Attack

class Edge(Attack):
    def stamp(self, images_BCHW, *, ids, part, artifact, seed):
        stamped = images_BCHW.clone()
        stamped[:, :, :, :2] = 1.0
        return stamped
'''
NETWORK = """
from torch import nn

def small(num_classes, in_channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, num_classes))
"""
OWN_METHODS = """
name: own
dataset: {digits: {size: 300}}
model: {module: "own_methods.nets:small"}
recipe: {epochs: 1, batch_size: 100}
attacks: [edge: {rate: 0.1}]
defenses: [none, strip: {overlays: 4}]
seeds: 1
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
    lines = ledger.read(SweepFolder(Store(str(store)), name))
    return {line.host for line in lines if isinstance(line, Done)}


@pytest.mark.further
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


@pytest.mark.further
@pytest.mark.ray
def test_a_launch_over_three_hosts_with_a_killed_worker_and_a_killed_host(
    cluster: hosts.Cluster, store: Path, inline: Conclusion, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster.hold(north=HERE, east=HERE)
    killed: list[int] = []

    def kill_worker(host: str) -> None:
        killed.extend(cluster.hosts[host].pids("ray::StageWorker"))
        os.kill(killed[0], signal.SIGKILL)

    acts = once(1, kill_worker), once(8, lambda host: cluster.hosts[host].kill())
    found = run(SWEEP, store, address=cluster.address, watch=lambda run: [a(run) for a in acts])
    said = "".join(capfd.readouterr())
    assert killed and sum(node.works for node in cluster.hosts.values()) == 1
    assert "Traceback" not in said, said
    assert workers(store) == {"north", "east"}, "the other host has done the rest"
    bad = found.rows[found.rows["status"] != "ok"]
    assert set(bad["defense_name"]) == {"ispl"}
    assert bad["error"].str.startswith("ValueError: share * expansion").all(), "its own error"
    assert_same(found.rows, inline.rows)


@pytest.mark.long
@pytest.mark.ray
def test_a_tuning_over_three_hosts_with_a_frozen_host(
    cluster: hosts.Cluster, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster.hold(north=HERE, east=HERE)
    freeze = once(1, lambda host: cluster.hosts[host].freeze())
    found = search(TUNED, store, address=cluster.address, watch=freeze)
    said = "".join(capfd.readouterr())
    assert sum(node.stopped for node in cluster.hosts.values()) == 1
    assert "Traceback" not in said, said
    assert workers(store, "tuned/tune") == {"north", "east"}, "the other host has done the rest"
    inline = search(TUNED, store.with_name("inline-tuned"), inline=True)
    assert found.tuned is not None and inline.tuned is not None
    ours, theirs = (pd.DataFrame([row.pack() for row in one.tuned.rows]) for one in (found, inline))
    pd.testing.assert_frame_equal(values(ours), values(theirs), check_exact=True)


@pytest.mark.further
@pytest.mark.ray
def test_an_error_in_the_driver_ends_the_run_and_is_raised(
    cluster: hosts.Cluster, store: Path
) -> None:
    """Tune drops what a searcher raises, and waits for the stages of that batch without end."""
    cluster.hold(north=HERE, east=HERE)

    def fail(run: Run) -> None:
        if run.schedule.ran:
            raise StoreError("no room")

    with pytest.raises(StoreError, match="no room"):
        run(SWEEP, store, address=cluster.address, watch=fail)


def other_code(folder: Path) -> Path:
    """Return a folder with another raysweep: its STRIP, of the same version, has another sign."""
    package = folder / "raysweep"
    if not package.exists():
        shutil.copytree(HERE / "raysweep", package, ignore=shutil.ignore_patterns("__pycache__"))
        file = package / "defenses" / "strip.py"
        text = file.read_text()
        assert "(-entropy).numpy()" in text
        file.write_text(text.replace("(-entropy).numpy()", "(entropy).numpy()"))
    return folder


@pytest.fixture
def own_methods(cluster: hosts.Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with an attack and a network, installed where no other host sees it."""
    folder = cluster.private / "home" / "packages"
    (folder / "own_methods").mkdir(parents=True)
    for name, text in {"__init__": "", "edge": EDGE, "nets": NETWORK}.items():
        (folder / "own_methods" / f"{name}.py").write_text(text)
    facts = folder / "own_methods-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: own-methods\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[raysweep.attacks]\nedge = own_methods.edge\n")
    monkeypatch.syspath_prepend(folder)
    for cached in (methods.available, methods.load):
        cached.cache_clear()
    yield
    for cached in (methods.available, methods.load):
        cached.cache_clear()
    for name in [name for name in sys.modules if name.startswith("own_methods")]:
        del sys.modules[name]


@pytest.mark.further
@pytest.mark.ray
@pytest.mark.usefixtures("own_methods")
def test_the_drivers_code_and_its_methods_reach_a_host_with_other_code(
    cluster: hosts.Cluster, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster.hold(south=other_code(cluster.root / "other"))
    assert not cluster.hosts["south"].sees(cluster.private / "home" / "packages")
    found = run(OWN_METHODS, store, address=cluster.address)
    assert "Traceback" not in "".join(capfd.readouterr())
    assert found.notes == [] and workers(store, "own") == {"south"}
    inline = run(OWN_METHODS, store.with_name("inline-own"), inline=True)
    assert_same(found.rows, inline.rows)
    made = [Store(str(store)).manifest(key) for key in Store(str(store)).done()]
    assert {manifest.info["commit"] for manifest in made if manifest} == {git_commit()}


def other_torch(folder: Path) -> Path:
    """Return a folder that makes Python say that another torch is installed."""
    facts = folder / "torch-9.9.dist-info"
    facts.mkdir(parents=True, exist_ok=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n")
    return folder


@pytest.mark.long
@pytest.mark.ray
def test_a_host_with_another_torch_makes_no_row(
    cluster: hosts.Cluster, store: Path, inline: Conclusion, capfd: pytest.CaptureFixture[str]
) -> None:
    same = cluster.working("north", "east")
    cluster.hold(**{same: HERE}, west=other_torch(cluster.root / "torch"))

    def wait(run: Run) -> None:
        """Make the sweep last until the other host refuses: nobody waits for a host that starts."""
        if run.schedule.ran and not refusals(f"raysweep/{run.ledger.run}/refused/"):
            time.sleep(3)  # and no longer: the driver that we hold up starts the workers

    found = run(SWEEP, store, address=cluster.address, watch=wait)
    assert "Traceback" not in "".join(capfd.readouterr())
    (warning,) = found.notes
    assert warning.startswith("host west is given no work: it has torch 9.9, and the driver has")
    made = [Store(str(store)).manifest(key) for key in Store(str(store)).done()]
    assert {manifest.info["host"] for manifest in made if manifest} == {same}
    assert_same(found.rows, inline.rows)


@pytest.mark.further
@pytest.mark.ray
def test_no_host_with_the_drivers_torch_is_one_clear_message(
    cluster: hosts.Cluster,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    cluster.hold(west=other_torch(cluster.root / "torch"))
    Path("sweep.yaml").write_text(SWEEP)
    words = ["launch", "sweep.yaml", "--storage", str(store), "--address", cluster.address]
    monkeypatch.setattr(sys, "argv", ["raysweep", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = "".join(capfd.readouterr())
    assert ended.value.code == 1, said
    assert said.count("\nerror: host west is given no work") == 1, said
    assert "Traceback" not in said
    assert Store(str(store)).done() == set()
    assert set(records.load("small", str(store))["status"]) == {"pending"}


@pytest.mark.further
@pytest.mark.ray
def test_a_host_on_which_no_worker_can_start_is_named_and_given_no_work(
    cluster: hosts.Cluster, store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ray Tune cannot be imported there: what it needs is broken, and nothing of ours is run."""
    broken = cluster.root / "broken"
    broken.mkdir(exist_ok=True)
    (broken / "pyarrow.py").write_text("raise ImportError('libarrow.so: no such file')")
    cluster.hold(down=broken)
    with pytest.raises(HostError, match="host down is given no work: no worker can start") as ended:
        run(SWEEP, store, address=cluster.address)
    assert "(ImportError: libarrow.so: no such file)" in str(ended.value)
    assert "Traceback" not in "".join(capfd.readouterr())
    lines = [*ledger.read(SweepFolder(Store(str(store)), "small"))]
    assert [line.text for line in lines if isinstance(line, Note)] == [str(ended.value)]
    assert not any(isinstance(line, Retry | Failed) for line in lines), "no stage is blamed"


@pytest.mark.further
@pytest.mark.ray
def test_a_host_without_the_data_decodes_none_and_does_the_rest(
    cluster: hosts.Cluster, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = "north", "east"
    cluster.hold(north=HERE, east=HERE)
    folder = cluster.private / "home" / "data"
    sees = Path(f"/proc/{cluster.hosts[one].raylet}/root{folder}")
    rng = np.random.default_rng(0)
    for place in (folder, sees):  # the driver's host has them too
        place.mkdir()
        for name in ("a", "b"):  # both hosts are given one to decode
            images = rng.integers(0, 255, (60, 8, 8), dtype=np.uint8)
            labels = np.arange(60) % 3
            np.savez(
                place / f"{name}.npz", train_images=images, train_labels=labels,
                test_images=images[:30], test_labels=labels[:30],
            )  # fmt: skip
        rng = np.random.default_rng(0)
    text = SWEEP.replace("dataset: {digits: {size: 300}}", f"""
datasets:
  - npz: {{path: {folder / "a.npz"}}}
  - npz: {{path: {folder / "b.npz"}}}
""").replace("tiny_cnn: {width: 4}", "linear: {}")  # fmt: skip

    def wait(run: Run) -> None:
        if run.schedule.ran and not refusals(f"raysweep/{run.ledger.run}/lacking/"):
            time.sleep(3)

    found = run(text, store, address=cluster.address, watch=wait)
    assert [note.partition(": ")[0] for note in found.notes] == [f"host {other}"]
    assert "it decodes no data while another host can" in found.notes[0]
    lines = ledger.read(SweepFolder(Store(str(store)), "small"))
    assert not any(isinstance(line, Retry) for line in lines), "nothing failed on the way"
    assert_same(found.rows, run(text, store.with_name("inline-data"), inline=True).rows)


@pytest.mark.further
@pytest.mark.ray
def test_a_storage_that_the_hosts_do_not_share_is_one_clear_message(
    cluster: hosts.Cluster, store: Path
) -> None:
    host = cluster.working("north", "east")
    cluster.hold(**{host: HERE})
    own = cluster.private / "work" / store.name
    with pytest.raises(HostError, match=f"host {host} is given no work: storage .* is another "):
        run(SWEEP, own, address=cluster.address)
    assert Store(str(own)).done() == set()


@pytest.mark.further
@pytest.mark.ray
def test_what_no_host_can_run_is_told_while_the_rest_runs(
    cluster: hosts.Cluster, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPUs are asked for where none are; then nothing is asked of a cluster without workers."""
    for waited in ("WAIT_SECONDS", "BACK_SECONDS"):
        monkeypatch.setattr(unmet, waited, 1.0)
    cluster.hold(**{cluster.working("north", "east"): HERE})
    with pytest.raises(HostError) as ended:
        run(SWEEP + "resources: {gpu: {gpu: 0.5, memory: 1 GiB}}\n", store, address=cluster.address)
    (line,) = str(ended.value).splitlines()
    assert line.startswith(
        "resources.gpu: a stage asks for 1 CPU, 0.5 GPU, 1 GiB of memory, which no node of the "
    )
    assert re.search(r"has 1 CPU, 0 GPU, [\d.]+ GiB of memory", line), "each node, with the head"
    assert re.search(r"has 0 CPU, 0 GPU, [\d.]+ GiB of memory", line)
    assert {key.partition("-")[0] for key in Store(str(store)).done()} == {"prepare", "poison"}
    assert set(records.load("small", str(store))["status"]) == {"pending"}
    notes = [one.text for one in ledger.read(SweepFolder(Store(str(store)), "small"))
             if isinstance(one, Note)]  # fmt: skip
    assert notes == [line], "said once"

    cluster.hold()
    with pytest.raises(HostError, match=r"resources\.cpu: a stage asks for 1 CPU, which no node"):
        run(SWEEP.replace("size: 300", "size: 200"), store, address=cluster.address)


def test_an_artifact_records_the_host_that_made_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    dataset = Digits(size=20)
    params = {"dataset": dataset.identity(), "source": dataset.source_digest(dataset.read_labels())}
    stage = Packed(key="prepare-1", params=params, inputs={}, reads={})
    assert perform.perform(stage, store, {"run": "r", "commit": "the driver's"}, 0).status == "done"
    manifest = store.manifest("prepare-1")
    assert manifest is not None
    found = manifest.info
    assert found["versions"] == versions() and found["commit"] == git_commit()
    assert found["host"] == socket.gethostname() and found["run"] == "r"
    assert found["device"] == "cpu" and found["driver"] is None and "device_name" in found


def test_a_method_of_another_version_is_not_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = Strip(overlays=4).identity()
    assert methods.restore("defenses", identity) == Strip(overlays=4)
    monkeypatch.setattr(Strip, "VERSION", Strip.VERSION + 1)
    told = rf"VERSION {Strip.VERSION - 1}, and strip has VERSION {Strip.VERSION} on"
    with pytest.raises(StageError, match=rf"method strip: .* {told}"):
        methods.restore("defenses", identity)


def test_a_run_of_another_version_is_not_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `run` makes of shards has a version of its own; shards do not depend on it."""
    params = {
        "defense": Datamodels().identity(), "run_version": Datamodels.RUN_VERSION, "part": "run",
        "model": Linear().identity(), "recipe": Recipe().model_dump(mode="json"), "seed": 0,
    }  # fmt: skip
    stage = Packed(key="defend-1", params=params, inputs={}, reads={})
    store = Store(str(tmp_path))
    planned = perform.perform(stage, store, {}, 0)
    assert planned.error.startswith("KeyError: 'data'"), "it went on to read its inputs"
    monkeypatch.setattr(Datamodels, "RUN_VERSION", Datamodels.RUN_VERSION + 1)
    done = perform.perform(stage, store, {}, 0)
    assert re.match(r"StageError: method datamodels: .* RUN_VERSION \d+, and", done.error)
    shard = {name: params[name] for name in params if name not in ("run_version", "part")}
    alone = Packed(key="shard-1", params={**shard, "part": "0"}, inputs={}, reads={})
    assert perform.perform(alone, store, {}, 0).error.startswith("KeyError: 'data'")


def test_a_refusal_names_what_differs() -> None:
    mine = asdict(code_here())
    assert refusal(mine) == ""
    for name, word in (("source", "raysweep source"), ("python", "Python"), ("torch", "torch")):
        said = refusal({**mine, name: "other"})
        assert f"it has {word} {mine[name]}, and the driver has {word} other; bring" in said
    assert "+" not in code_here().torch
    missing = refusal(asdict(code_here(["nowhere.at_all"])) | {"source": "other"})
    assert "module nowhere.at_all, which this sweep uses, is not there; install its" in missing


def test_the_source_is_the_same_whatever_ends_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    for name, text in (("unix", b"a = 1\n"), ("dos", b"a = 1\r\n"), ("other", b"a = 2\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "of_a_third_party.py").write_bytes(text)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path / name)
            digests.append(code_here(["of_a_third_party"]).source)
    assert digests[0] == digests[1]
    assert len({code_here().source, *digests}) == 3
