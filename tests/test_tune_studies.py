"""Studies outlive their drivers: from a journal, and in PostgreSQL with several at once."""

from __future__ import annotations

import getpass
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import optuna
import pytest

from raysweep.cli.app import app, main
from raysweep.sweep.ranges import Range
from raysweep.sweep.tuning import Tune
from raysweep.tuning import storage, study

SWEEP = """
name: shared
dataset: {digits: {size: 200, test_size: 150}}
model: {tiny_cnn: {width: 8}}
recipe: {epochs: 2, batch_size: 64}
attacks: [badnets: {rate: 0.1}, blend: {rate: 0.1}]
defenses: [strip]
track: {wandb: disabled}
tune:
  trials: 7
  parameters: {strip: {overlays: {min: 2, max: 40}, fpr: {}}}
"""
# Drivers are forked where all that they import stands: it takes longer than some candidates.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload([
    "tests.test_tune_studies", "raysweep.jobs.tune", "raysweep.run.inline", "raysweep.training",
    "raysweep.jobs.publish", "optuna.importance", "sqlalchemy", "psycopg",
])  # fmt: skip


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs: Debian keeps them off the PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb")
    return folders[-1] if folders else Path(found).parent if found else None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a PostgreSQL server of our own; yield the URL of a database."""
    pytest.importorskip("psycopg", reason="pip install 'raysweep[postgresql]'")
    folder = programs()
    if folder is None:
        pytest.skip("PostgreSQL is not installed")
    # The server refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else getpass.getuser()
    place = Path("/tmp") / f"raysweep-pg-{os.getpid()}"  # a socket's path must be short
    place.mkdir(mode=0o700)
    shutil.chown(place, user)
    given: dict[str, Any] = {"user": user, "cwd": place, "check": True, "capture_output": True}
    port = free_port()
    try:
        subprocess.run(
            [folder / "initdb", "-D", place / "d", "-A", "trust", "-U", "tuner"], **given
        )
        options = f"-p {port} -k {place} -c fsync=off -c listen_addresses=127.0.0.1"
        start = [folder / "pg_ctl", "-D", place / "d", "-w", "-l", place / "log", "-o", options]
        subprocess.run([*start, "start"], **given)
        try:
            yield f"postgresql+psycopg://tuner@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run(
                [folder / "pg_ctl", "-D", place / "d", "-m", "immediate", "stop"], **given
            )
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def candidates(database: str) -> Iterator[Callable[[], list[tuple[str, int, str]]]]:
    """Return a look at the study, number and state of every candidate in the database.

    By SQL: Optuna's own storage loads every candidate whole, again and again while we wait.
    """
    import psycopg

    with psycopg.connect(database.replace("+psycopg", ""), autocommit=True) as connected:

        def look() -> list[tuple[str, int, str]]:
            if connected.execute("SELECT to_regclass('trials')").fetchone() == (None,):
                return []
            return connected.execute(
                "SELECT study_name, number, state::text FROM trials JOIN studies USING (study_id)"
            ).fetchall()

        yield look


def until(condition: Callable[[], bool], seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "took too long"
        time.sleep(0.05)


def drive(file: Path, url: str | None, log: Path) -> ForkServerProcess:
    """Return a process that tunes."""
    driver = FORKED.Process(target=tune, args=(str(file), url, str(log)))
    driver.start()
    return driver


def tune(file: str, url: str | None, log: str) -> None:
    """Tune as the command does, as this whole process."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.environ.update({"RAYSWEEP_STUDIES": url} if url else {})
    storage.HEARTBEAT_SECONDS = 1
    store = str(Path(file).parent / "store")
    sys.argv = ["raysweep", "tune", file, "--inline", "--storage", store]
    main()


@pytest.mark.further
@pytest.mark.slow
def test_a_killed_driver_goes_on_from_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, log = tmp_path / "shared.yaml", tmp_path / "first.log"
    file.write_text(SWEEP.replace("trials: 7", "trials: 5"))
    ledgers = tmp_path / "store/sweeps/shared/tune/ledger"

    def told() -> int:
        return sum(text.read_text().count('"event":"told"') for text in ledgers.glob("*"))

    first = drive(file, None, log)
    try:
        until(lambda: not first.is_alive() or told() >= 4, 600)
        assert first.is_alive(), log.read_text()
    finally:
        first.kill()
        first.join()
    before = told()
    assert before < 15
    monkeypatch.setattr(storage, "HEARTBEAT_SECONDS", 1)
    words = ["tune", str(file), "--inline", "--storage", str(tmp_path / "store")]
    app(words, standalone_mode=False)
    assert told() <= 15, "what the dead driver had told is not told again"
    written = json.loads((tmp_path / "store/sweeps/shared/tuned.json").read_text())
    for search in written["searches"]:
        states = Counter(one["state"] for one in search["history"])
        assert states["complete"] == 5 and not states["running"]


@pytest.mark.further
@pytest.mark.slow
def test_two_drivers_work_on_one_study_and_one_is_killed(
    database: str, candidates: Callable[[], list[tuple[str, int, str]]], tmp_path: Path
) -> None:
    file = tmp_path / "shared.yaml"
    file.write_text(SWEEP)
    drivers = [first := drive(file, database, tmp_path / "first.log")]

    def complete() -> int:
        assert first.is_alive(), (tmp_path / "first.log").read_text()
        return sum(state == "COMPLETE" for _, _, state in candidates())

    def running() -> set[tuple[str, int]]:
        return {(name, number) for name, number, state in candidates() if state == "RUNNING"}

    try:
        until(lambda: complete() >= 3, 600)
        drivers.append(second := drive(file, database, tmp_path / "second.log"))
        before = complete()
        until(lambda: complete() >= before + 4, 600)
        assert second.pid is not None
        os.kill(second.pid, signal.SIGSTOP)
        known = running()
        until(lambda: bool(running() - known), 600)  # candidates that the first asked for
        first.kill()
        first.join()
        os.kill(second.pid, signal.SIGCONT)
        second.join(600)
        assert second.exitcode == 0, (tmp_path / "second.log").read_text()
    finally:
        for driver in drivers:
            driver.kill()
    found: dict[str, Counter[str]] = {}
    for name, _, state in candidates():
        found.setdefault(name, Counter())[state] += 1
    assert len(found) == 3
    for counts in found.values():
        assert counts["COMPLETE"] >= 7 and not counts["RUNNING"], counts
        assert counts["COMPLETE"] <= 7 + 4, "no more than what was out at once"
    assert any(counts["FAIL"] for counts in found.values()), "the dead driver was found out"
    rows = json.loads((tmp_path / "store/sweeps/shared/tuned.json").read_text())["rows"]
    assert {row["held_out"] for row in rows} == {"badnets", "blend", "nothing"}
    assert all(row["tried"] >= 7 for row in rows)
    # Both drivers told candidates: each keeps a ledger of its own.
    ledgers = list((tmp_path / "store/sweeps/shared/tune/ledger").iterdir())
    assert len(ledgers) == 2
    assert all('"event":"told"' in ledger.read_text() for ledger in ledgers)


def test_a_candidate_whose_driver_died_before_its_first_heartbeat_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "HEARTBEAT_SECONDS", 1)
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    space = {"low": Range(min=0.0, max=1.0)}
    mine = study.Study("s", space, Tune(trials=1), where=url)
    other = optuna.load_study(study_name="s", storage=url)
    other.ask()  # and its process is killed before it beats
    try:
        assert mine.ask() is None
        until(lambda: mine.ask() is not None, 30)
    finally:
        mine.close()
