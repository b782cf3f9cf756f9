"""Sweeps handed to the jobs server of a real head: followed, left, found again, stopped."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray

from raysweep.cli.app import app
from raysweep.errors import HostError, PlanError
from raysweep.jobs import submit as jobs
from raysweep.jobs.detached import detached
from raysweep.jobs.launch import launch
from raysweep.provenance import COMMIT
from raysweep.results import records
from raysweep.run.cluster.runtime_env import runtime_env
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.loading import LoadedSweep, load_sweep, read_sweep
from raysweep.sweep.spec import foreign_modules
from tests.test_execute import assert_same

HERE = Path(__file__).parent.parent
SECRET = "sesame-of-the-submitter"
SWEEP = """
name: handed
dataset: {digits: {size: 300}}
model: {module: "own_nets:small"}
recipe: {epochs: 1, batch_size: 100}
attacks: [badnets: {rate: 0.1}]
defenses: [none]
seeds: %d
track: {wandb: disabled}
"""
NETWORK = """
from torch import nn

def small(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, num_classes))
"""


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The jobs server of a head, whose own raysweep cannot be imported."""
    pytest.importorskip("ray.dashboard.optional_deps", reason="the head needs raysweep[submit]")
    root = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))  # short: sockets lie below it
    (root / "own" / "raysweep").mkdir(parents=True)
    (root / "own" / "raysweep" / "__init__.py").write_text("raise ImportError('of the head')\n")
    with contextlib.ExitStack() as held:
        free = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
        port, dashboard, client, agent = (one.getsockname()[1] for one in free)
    programs = Path(sys.executable).parent
    command = [
        str(programs / "ray"), "start", "--head", "--block", "--port", str(port),
        "--node-ip-address", "127.0.0.1", "--num-cpus", "2", "--num-gpus", "0",
        "--disable-usage-stats", "--object-store-memory", "100000000",
        "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard),
        "--include-dashboard", "true", "--ray-client-server-port", str(client),
        "--dashboard-agent-listen-port", str(agent),
        "--temp-dir", str(root / "r"),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": f"{root / 'own'}:{os.environ.get('PYTHONPATH', '')}",
        "HOME": str(root),
    }
    with (root / "log").open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    url = f"http://127.0.0.1:{dashboard}"
    try:
        _until_it_answers(url, process, root / "log")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(root, ignore_errors=True)


def _until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/api/version", timeout=5).close()
            return
        time.sleep(0.1)
    raise AssertionError(f"the jobs server has not begun in a minute: {log.read_text()}")


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedSweep:
    """A sweep whose network lies beside the sweep file, where no head looks."""
    (tmp_path / "own_nets.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # of another cluster
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP % 2)
    return read_sweep(file)


@pytest.mark.further
@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_is_submitted_left_with_ctrl_c_found_again_and_followed_to_its_end(
    head: str, loaded: LoadedSweep, tmp_path: Path
) -> None:
    store, file = str(tmp_path / "store"), tmp_path / "sweep.yaml"
    words = ["submit", str(file), "--address", head, "--storage", store, "--follow"]
    paths = os.pathsep.join([str(tmp_path), str(HERE), os.environ.get("PYTHONPATH", "")])
    following = subprocess.Popen(
        [sys.executable, "-m", "raysweep", *words], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert following.stdout is not None
    lines = iter(following.stdout.readline, "")
    began = next(lines)
    assert "handed: submitted as job raysweep-handed-" in began
    assert any("Running entrypoint" in line for line in lines)
    following.send_signal(signal.SIGINT)
    rest = "".join(lines)
    assert following.wait() == 130, rest
    assert "detached; handed goes on. look: raysweep attach handed --storage" in rest
    assert f"come back: raysweep submit {file} --address {head} --follow --storage {store}" in rest

    back = jobs.submit(loaded, file, store, address=f"{head}/")
    assert not back.fresh and back.job in began
    said: list[str] = []
    assert back.server.follow(back.job, said.append) == 0, said
    assert "stages ran, 0 were stored already" in "".join(said)
    launch(load_sweep(file), loaded.text, str(tmp_path / "inline"), inline=True)
    assert_same(records.load("handed", store), records.load("handed", str(tmp_path / "inline")))
    with urllib.request.urlopen(f"{head}/api/jobs/") as answer:
        (job,) = json.load(answer)
    assert job["entrypoint"] == (
        "AWS_REGION=${AWS_REGION:-eu-north-1} python -m raysweep launch sweep.yaml --address auto "
        f"--storage {store}"
    )
    assert job["runtime_env"]["env_vars"].keys() == {COMMIT, "RAY_JOB_STOP_WAIT_TIME_S"}
    assert SECRET not in json.dumps(job) + "".join(said)
    next_one = jobs.submit(loaded, file, store, address=head)
    assert next_one.fresh and next_one.job == f"{back.job}-2", "the first has ended"


def test_a_storage_that_the_head_cannot_use_is_refused(tmp_path: Path) -> None:
    jobs.check_storage("s3://bucket/raysweep?region=eu-north-1")
    jobs.check_storage("/shared/raysweep")
    jobs.check_storage("abfs://container@account.dfs.core.windows.net/raysweep")
    for given in ("raysweep-store", "./store", "~/store", "../store"):
        with pytest.raises(PlanError, match="is a folder of this machine, and the driver will run"):
            jobs.check_storage(given)
    with pytest.raises(PlanError, match=r"s3://…@bucket/raysweep: holds a key") as refused:
        jobs.check_storage("s3://key:sesame@bucket/raysweep")
    assert "sesame" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_path_beside_the_sweep_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images" / "train" / "a").mkdir(parents=True)
    text = SWEEP.replace("{digits: {size: 300}}", "{imagefolder: {path: %s}}") % ("images", 1)
    text = text.replace('{module: "own_nets:small"}', "linear")
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    with pytest.raises(PlanError, match="dataset imagefolder: path must be a path from the root"):
        jobs.check_paths(load_sweep(file), text)
    file.write_text(text.replace("path: images", f"path: {tmp_path / 'images'}"))
    jobs.check_paths(load_sweep(file), file.read_text())


def test_the_whole_package_travels(loaded: LoadedSweep) -> None:
    with runtime_env(foreign_modules(loaded.sweep)) as env:
        package, own = env["py_modules"]  # the module may have been imported by a test before
    assert package == str(HERE / "raysweep") and own.endswith("/own_nets.py")


class Refusing(BaseHTTPRequestHandler):
    """A jobs server of a cluster with tokens, as it answers a client without one."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"Unauthorized: Missing authentication token")

    def log_message(self, form: str, *given: object) -> None:
        """Say nothing."""


def test_a_jobs_server_that_asks_for_a_token_is_one_message(
    loaded: LoadedSweep, tmp_path: Path
) -> None:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(PlanError) as refused:
            jobs.submit(loaded, tmp_path / "sweep.yaml", "/store", address=url)
        server.shutdown()
        serving.join()
    assert str(refused.value).startswith(f"the jobs server at --address {url} does not take the ")
    assert "asks for RAY_AUTH_MODE=token and the cluster's token in" in str(refused.value)


class Dying(BaseHTTPRequestHandler):
    """A jobs server as Ray's answers, whose head is lost while it sends what a job prints."""

    protocol_version = "HTTP/1.1"
    job = ""

    def _answer(self, told: object) -> None:
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if "Sec-WebSocket-Key" in self.headers:
            self._tail(self.headers["Sec-WebSocket-Key"])
        elif self.path.endswith("/api/jobs/"):
            running = {"type": "SUBMISSION", "submission_id": Dying.job, "status": "RUNNING",
                       "entrypoint": "x"}  # fmt: skip
            self._answer([running] if Dying.job else [])
        else:
            self._answer({"version": "4", "ray_version": ray.__version__, "ray_commit": "x"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Dying.job = body["submission_id"]
        self._answer({"job_id": Dying.job, "submission_id": Dying.job})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({})

    def _tail(self, key: str) -> None:
        accept = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(accept).decode())
        self.end_headers()
        said = b"handed: 1 of 9 stages\n"
        self.wfile.write(bytes([0x81, len(said)]) + said)
        self.close_connection = True

    def log_message(self, form: str, *given: object) -> None:
        """Say nothing."""


def test_a_head_that_is_lost_while_it_is_followed_is_one_message_with_the_way_on(
    loaded: LoadedSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, store = tmp_path / "sweep.yaml", str(tmp_path / "store")
    with ThreadingHTTPServer(("127.0.0.1", 0), Dying) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        words = ["submit", str(file), "--address", url, "--storage", store, "--follow", "--tune"]
        with pytest.raises(HostError) as lost:
            app(words, standalone_mode=False)
        server.shutdown()
    assert "handed: 1 of 9 stages" in capsys.readouterr().out
    told = str(lost.value)
    assert told.startswith(f"the jobs server at --address {url} is lost (")
    assert f"tells: raysweep attach handed --storage {store}; to come back, or to go on" in told
    again = f"raysweep submit {file} --address {url} --follow --tune --storage {store}"
    assert told.endswith(f"where a new head was started: {again}")
    assert "token" not in told


def test_no_jobs_server_is_one_message_with_the_tunnel(loaded: LoadedSweep, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with pytest.raises(HostError, match=rf"ssh -L {port}:127\.0\.0\.1:{port} HEAD") as refused:
        jobs.submit(loaded, tmp_path / "sweep.yaml", "/store", address=url)
    assert 'the head needs pip install "raysweep[submit]"' in str(refused.value)
    assert Store(str(tmp_path / "store")).done() == set()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["launch", pytest.param("tune", marks=pytest.mark.further)])
def test_a_detached_driver_goes_on_without_the_terminal_that_began_it(
    verb: str, tmp_path: Path
) -> None:
    """The command returns as soon as the run has begun; its session ends, the run does not."""
    text = SWEEP.replace('{module: "own_nets:small"}', "linear")
    text = text.replace("[none]", "[strip: {overlays: 2}]") + "tune: {trials: 2}\n"
    text = text.replace("[badnets: {rate: 0.1}]", "[badnets: {rate: 0.1}, blend: {rate: 0.1}]")
    (tmp_path / "sweep.yaml").write_text(text % 1)
    words = [verb, "sweep.yaml", "--inline", "--storage", "store", "--detach"]
    done = subprocess.run(
        [sys.executable, "-m", "raysweep", *words], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(HERE)}, start_new_session=True, check=True,
    )  # fmt: skip
    first, second, third = done.stdout.splitlines()
    found = re.fullmatch(r"handed: run (\S+), process (\d+)", first)
    assert found is not None, done.stdout
    folder = SweepFolder(Store(str(tmp_path / "store")), "handed")
    folder = folder.tuning if verb == "tune" else folder
    assert (tmp_path / "store" / folder.ledger / f"{found[1]}.jsonl").exists()
    assert third == "look: raysweep attach handed --storage store · " + (
        "stop: raysweep stop handed --storage store"
    )
    log = Path(second.removeprefix("log: "))
    assert log == tmp_path / "store" / folder.path("driver.log")
    for _ in range(600):
        if "report: " in log.read_text():
            break
        time.sleep(0.1)
    assert "report: " in log.read_text(), log.read_text()
    if verb == "launch":
        assert set(records.load("handed", str(tmp_path / "store"))["status"]) == {"ok"}


@pytest.mark.further
def test_a_driver_that_cannot_begin_is_told_by_the_command_that_detached_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace('{module: "own_nets:small"}', "linear") % 1)
    store = tmp_path / "store"
    store.mkdir()
    (store / "scratch").write_text("in the way of the probe")
    words = ["launch", str(tmp_path / "sweep.yaml"), "--inline", "--storage", str(store)]
    with pytest.raises(HostError, match=r"(?s)ended with 1 before its run began: .*scratch"):
        detached(words, SweepFolder(Store(str(store)), "handed"))


def test_a_driver_that_goes_on_alone_reads_no_standard_input() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raysweep", "launch", "-", "--detach"], capture_output=True,
        text=True, input=SWEEP.replace('{module: "own_nets:small"}', "linear") % 1,
        env={**os.environ, "PYTHONPATH": str(HERE)}, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("error: --detach: a driver that goes on alone reads no") == 1


@pytest.mark.parametrize("verb", ["launch", pytest.param("tune", marks=pytest.mark.further)])
def test_an_address_where_no_cluster_answers_is_told_before_the_terminal_is_left(
    verb: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    (tmp_path / "s.yaml").write_text(SWEEP.replace('{module: "own_nets:small"}', "linear") % 1)
    words = [verb, "s.yaml", "--detach", "--address", address, "--storage", "store"]
    done = subprocess.run(
        [sys.executable, "-m", "raysweep", *words], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HERE)}, check=False,
    )  # fmt: skip
    assert f"error: no Ray cluster answers at --address '{address}'" in done.stderr
    assert done.returncode == 2 and not (tmp_path / "store").exists()
