"""Stages that are watched on Ray: what they do, what they write, and what they die of."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import ray
from ray.core.generated import common_pb2
from ray.exceptions import ActorDiedError, OutOfMemoryError

from raysweep.cli.app import main
from raysweep.identity import kind_of
from raysweep.reports.logs import failure_logs
from raysweep.results import records
from raysweep.results.table import read_table
from raysweep.run.cluster.batch import Batch, pack_results
from raysweep.run.cluster.death import UNKNOWN
from raysweep.run.cluster.idle import _ERRORS
from raysweep.run.cluster.nodes import connect, hosts
from raysweep.run.cluster.output import RUNS
from raysweep.run.cluster.session import SESSIONS, Session
from raysweep.run.run import Run
from raysweep.stages.stage import Result
from raysweep.store import Store, ledger
from raysweep.store.events import Retry
from raysweep.store.heartbeat import RunningStage
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.loading import from_text
from raysweep.sweep.yaml import parse
from tests.hosts import Node, free_port, until

NETS = """
import ctypes, os, pathlib, signal, sys, time
from torch import nn

HERE = pathlib.Path(__file__).parent

def first(how):
    try:
        (HERE / how).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

def misbehave(how):
    print(f"words of {how}", flush=True)
    os.write(2, b"and of C code\\n")
    if how == "raise":
        raise ValueError("as asked")
    if how == "sys_exit":
        sys.exit(4)
    if how == "interrupt":
        raise KeyboardInterrupt("its own")
    if how == "os_exit":
        os._exit(3)
    if how == "forever":
        time.sleep(300)
    if how == "killed" and first(how):
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "crashed" and first(how):
        ctypes.string_at(0)
    if how == "told" and first(how):
        os.kill(os.getpid(), signal.SIGTERM)
    if how == "forked" and os.fork() == 0:
        os._exit(0)

class Net(nn.Module):
    def __init__(self, num_classes, in_channels=1, how="well"):
        super().__init__()
        self.how = how
        self.all = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes)
        )

    def forward(self, x):
        if self.training and sys.argv[0].endswith("default_worker.py"):
            misbehave(self.how)
        return self.all(x)
"""
HOWS = (
    "well", "raise", "sys_exit", "interrupt", "os_exit", "forever", "killed", "crashed", "told",
    "forked",
)  # fmt: skip
SWEEP = """
name: watched
dataset: {digits: {size: 300}}
models: [%s]
recipe: {epochs: 1}
attacks: [none]
defenses: [none]
resources: {limits: {train: 5s}}
seeds: 1
track: {wandb: disabled}
"""
MANY = (
    SWEEP.replace("[none]", "[badnets: {rate: 0.1}]", 1).replace("seeds: 1", "seeds: 9") % "linear"
)


@dataclass(frozen=True)
class Launched:
    """A launch from the command line, and what was seen meanwhile."""

    store: Store
    output: str
    status: int
    rows: pd.DataFrame
    running: list[RunningStage]

    def of(self, how: str) -> pd.Series:
        """Return the row of the trial whose network ends in one way."""
        (row,) = self.rows[self.rows["model.how"] == how].to_dict("records")
        return pd.Series(row)

    def log(self, how: str) -> str:
        """Return the log of the training of that network."""
        folder = SweepFolder(self.store, "watched")
        return (self.store.read(folder.log(self.of(how)["key_victim"])) or b"").decode()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of this host alone; it says that it has a GPU, and there may be none."""
    folder = tmp_path_factory.mktemp("nets")
    (folder / "nets_watched.py").write_text(NETS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
        patch.syspath_prepend(folder)
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
            "--port", address.rpartition(":")[2], "--node-ip-address", "127.0.0.1",
            "--include-dashboard", "false", "--num-cpus", "2", "--num-gpus", "1",
            "--object-store-memory", "100000000", "--disable-usage-stats",
            "--ray-client-server-port", str(free_port(int(address.rpartition(":")[2]))),
        ]  # fmt: skip
        log = folder / "ray.log"
        with log.open("wb") as out:
            head = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        node = Node(head, log, "")
        until(lambda: node.joined)
        yield address
        node.kill()


@contextlib.contextmanager
def asked_again_and_again(found: list[RunningStage]) -> Iterator[None]:
    """Ask from another thread what runs, as a heartbeat does."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(0.5):
            for session in list(SESSIONS.values()):
                with contextlib.suppress(Exception):  # the run has ended meanwhile
                    found.extend(session.run.running())

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        ended.set()
        asking.join()


def command_line(file: Path, *words: str) -> tuple[int, str]:
    """Run a launch as from the command line, with all that is written to the terminal."""
    terminal = file.with_suffix(".out")
    before = os.dup(1), os.dup(2)
    try:
        with terminal.open("wb") as out, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["raysweep", "launch", str(file), *words])
            for stream in (1, 2):
                os.dup2(out.fileno(), stream)
            for name, stream in (("stdout", 1), ("stderr", 2)):
                patch.setattr(sys, name, os.fdopen(os.dup(stream), "w", buffering=1))
            with pytest.raises(SystemExit) as ended:
                main()
            sys.stdout.flush(), sys.stderr.flush()
    finally:
        for stream, copy in zip((1, 2), before, strict=True):
            os.dup2(copy, stream)
    return int(ended.value.code or 0), terminal.read_text()


@pytest.fixture(scope="module")
def launched(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """A sweep whose networks end in all ways that there are."""
    folder = tmp_path_factory.mktemp("watched")
    nets = ", ".join(f'{{module: "nets_watched:Net", how: {how}}}' for how in HOWS)
    (folder / "watched.yaml").write_text(SWEEP % nets)
    running: list[RunningStage] = []
    with asked_again_and_again(running):
        status, output = command_line(
            folder / "watched.yaml", "--storage", str(folder / "store"), "--address", cluster
        )
    store = Store(str(folder / "store"))
    rows = records.load("watched", store.uri)
    return Launched(store, output, status, rows, running)


@pytest.mark.ray
def test_each_way_to_end_costs_its_own_rows_alone(launched: Launched) -> None:
    assert launched.status == 1, launched.output
    bad = {"raise", "sys_exit", "interrupt", "os_exit", "forever"}
    failed = launched.rows[launched.rows["status"] != "ok"]
    assert set(failed["model.how"]) == bad, failed[["model.how", "error"]].to_dict("records")
    assert launched.of("raise")["error"].endswith("ValueError: as asked")
    assert "SystemExit: 4" in launched.of("sys_exit")["error"]
    assert "KeyboardInterrupt: its own" in launched.of("interrupt")["error"]
    assert "exit code 3 (os._exit)" in launched.of("os_exit")["error"]


@pytest.mark.ray
def test_a_stage_over_its_limit_is_ended_and_says_which(launched: Launched) -> None:
    error = launched.of("forever")["error"]
    assert "TimeLimit: the stage ran longer than 5s (resources.limits.train)" in error
    retried = {event.key for event in ledger.read(SweepFolder(launched.store, "watched"))
               if isinstance(event, Retry)}  # fmt: skip
    assert launched.of("forever")["key_victim"] not in retried


@pytest.mark.ray
def test_a_death_is_told_by_its_cause(launched: Launched) -> None:
    events = ledger.read(SweepFolder(launched.store, "watched"))
    causes = {event.key: event.error for event in events if isinstance(event, Retry)}
    assert "SIGKILL" in causes.pop(launched.of("killed")["key_victim"])
    assert "crashed: Segmentation fault" in causes.pop(launched.of("crashed")["key_victim"])
    assert "told to end (SIGTERM)" in causes.pop(launched.of("told")["key_victim"])
    assert causes == {}


@pytest.mark.ray
@pytest.mark.parametrize("how", ["raise", "sys_exit", "os_exit", "forever", "killed", "crashed"])
def test_the_last_words_of_a_stage_are_in_its_log(launched: Launched, how: str) -> None:
    log = launched.log(how)
    assert f"words of {how}\nand of C code\n" in log
    if how in ("raise", "sys_exit"):
        assert "Traceback" in log and "in misbehave" in log
    shown = {log.stage: log.text or "" for log in failure_logs(launched.store, "watched")}
    if how not in ("killed", "crashed"):  # these have run well since
        assert f"words of {how}" in shown[launched.of(how)["key_victim"]]


@pytest.mark.ray
def test_nothing_of_ray_or_of_a_method_reaches_the_terminal(launched: Launched) -> None:
    for word in ("Traceback", "ray::", "StageWorker", "(raylet)", "words of", "C code"):
        assert word not in launched.output, launched.output


@pytest.mark.ray
def test_a_driver_knows_what_runs(launched: Launched) -> None:
    forever = launched.of("forever")["key_victim"]
    seen = [stage for stage in launched.running if stage.key == forever]
    assert seen and all(stage.device == "cpu" and stage.pid > 0 for stage in seen)
    assert {stage.host for stage in seen} == {socket.gethostname()}
    assert max(stage.seconds for stage in seen) < 10


@pytest.mark.ray
def test_what_a_stage_took_is_in_its_row(launched: Launched) -> None:
    stages = read_table(launched.store, "watched", "stages")
    assert stages is not None
    done = stages[stages["status"] == "done"]
    assert (done["device_name"] != "").all() and (done["peak_memory_bytes"] > 1 << 26).all()
    assert done["peak_gpu_memory_bytes"].isna().all() and (done["queue_seconds"] >= 0).all()
    failed = stages[stages["status"] == "failed"]
    assert len(failed) == 5 and failed["queue_seconds"].isna().all()


@pytest.mark.ray
def test_nothing_is_left_of_what_was_told(launched: Launched) -> None:
    ledgers = launched.store.list(SweepFolder(launched.store, "watched").ledger)
    runs = [Path(path).stem for path in ledgers]
    left = [path.name for path in Path(tempfile.gettempdir()).glob(f"{RUNS}-*.out")]
    assert runs and not [name for name in left for run in runs if run in name]


MEMORY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    "192.0.2.2, ID: f7f2) was 8.31GB used / 23.59GB limit (0.352428)"
)


@pytest.mark.ray
def test_a_stage_that_ran_out_of_memory_asks_for_more_once(cluster: str, tmp_path: Path) -> None:
    text = SWEEP % "linear"
    run = Run(from_text(parse("s.yaml", text)), Store(str(tmp_path)), text)
    connect(cluster)
    try:
        session = Session(run, None, cluster=True)
        first = session.hand_out("one")
        assert first is not None and not first.larger
        (key,) = session.held.pop("one").keys
        _ERRORS["one"] = OutOfMemoryError(MEMORY)
        session.take_death("one", [key])
        again = session.hand_out("two")
        assert again is not None and [stage.key for stage in again.stages] == [key]
        most = max(host["memory"] for host in hosts())
        assert again.larger == {"memory": most / 2}
        _ERRORS["two"] = OutOfMemoryError(MEMORY)
        session.take_death("two", [key])
        assert key in run.schedule.failed
        told = run.schedule.failed[key].error
        assert told.startswith("OutOfMemory: ") and "8.31GB of 23.59GB" in told
        assert "resources.cpu.memory" in told
    finally:
        ray.shutdown()
    run.close()
    (retry,) = (e for e in ledger.read(run.folder) if isinstance(e, Retry))
    assert retry.key == key and "tried again alone with" in retry.error


def stages_of(batch: Batch | None) -> list[str] | None:
    return None if batch is None else [stage.key for stage in batch.stages]


@pytest.mark.ray
def test_workers_start_before_there_are_batches_and_get_the_next_before_results_are_read(
    cluster: str, tmp_path: Path
) -> None:
    run = Run(from_text(parse("m.yaml", MANY)), Store(str(tmp_path)), MANY)
    connect(cluster)
    try:
        session = Session(run, 2, cluster=False)
        session.hosts.slots = {"cpu": 2, "gpu": 1}
        session._starts = session._first_workers()
        first, start, none = (stages_of(session.hand_out(name)) for name in ("1", "2", "3"))
        assert first is not None and len(first) == 1 and start == [] and none is None
        session.arrived("2", "[]")
        session.arrived("1", pack_results([Result(key=first[0], status="done")]))
        assert first[0] in run.schedule.out
        assert not session.results_wait(), "no worker has a batch"
        assert run.schedule.done == set(first)
        batches = [stages_of(session.hand_out(name)) for name in ("4", "5", "6")]
        assert batches[0] and batches[1] and batches[2] is None, "both workers have one"
        session.catch_up()
        assert len(run.schedule.out) > len(batches[0] + batches[1]), "the next one is prepared"
        session.arrived("4", pack_results(Result(key=k, status="done") for k in batches[0]))
        session.catch_up()
        assert not session.results_wait()
        prepared = stages_of(session.hand_out("7"))
        assert prepared and set(batches[0]) <= run.schedule.out, "what has arrived waits"
        assert session.results_wait()
        session.catch_up()
        assert set(batches[0]) <= run.schedule.done
    finally:
        ray.shutdown()
    run.close()


@pytest.mark.ray
def test_deaths_count_as_their_causes_say(cluster: str, tmp_path: Path) -> None:
    text = SWEEP % "linear"
    run = Run(from_text(parse("s.yaml", text)), Store(str(tmp_path)), text)
    connect(cluster)
    try:
        session = Session(run, None, cluster=True)
        reasons = common_pb2.NodeDeathInfo.Reason
        info = common_pb2.NodeDeathInfo(reason=reasons.AUTOSCALER_DRAIN_PREEMPTED)
        context = common_pb2.ActorDiedErrorContext(actor_id=b"0" * 16, node_death_info=info)
        for number in range(5):  # more than the attempts that a stage has
            batch = session.hand_out(str(number))
            assert batch is not None and not run.schedule.failed
            _ERRORS[str(number)] = ActorDiedError(context)
            session.take_death(str(number), [stage.key for stage in batch.stages])
        for number in range(5, 8):
            batch = session.hand_out(str(number))
            assert batch is not None and not run.schedule.failed
            session.take_death(str(number), [stage.key for stage in batch.stages])
        assert UNKNOWN in next(iter(run.schedule.failed.values())).error
    finally:
        ray.shutdown()
    run.close()


@pytest.mark.long
@pytest.mark.ray
def test_a_host_whose_cuda_does_not_work_is_given_no_gpu_work(cluster: str, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("CUDA works on this host")
    file = tmp_path / "gpu.yaml"
    text = (SWEEP % "linear").replace("{limits: {train: 5s}}", "{gpu: {gpu: 1}}")
    file.write_text(text)
    store = str(tmp_path / "store")
    status, output = command_line(file, "--storage", store, "--address", cluster)
    assert status == 1, output
    said = re.sub(r"\s+", " ", output)
    assert f"host {socket.gethostname()} is given no GPU work: a stage holds 1 GPUs" in said
    assert "Traceback" not in output
    done = {kind_of(key) for key in Store(store).done()}
    assert done == {"prepare"}, "what needs no GPU goes on"
    rows = records.load("watched", store)
    assert rows["error"].str.contains("is given no GPU work").all()
