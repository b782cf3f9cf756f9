"""Stores in a bucket: requests, retries, what a broken connection costs, the cache of a host."""

from __future__ import annotations

import pickle
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from raysweep.errors import DamagedArtifact, StoreError
from raysweep.jobs.launch import launch
from raysweep.plan.costs import FILE
from raysweep.results import records
from raysweep.store import Store, bucket, root
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.loading import load_sweep
from tests.s3 import S3
from tests.test_store import ARRAYS, files, same


@pytest.fixture
def place(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W", "-", request.node.name)


@pytest.fixture
def s3(s3_server: S3, place: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of a place of this test's own; attempts are single requests, with short pauses."""
    monkeypatch.setattr(bucket, "ATTEMPTS", 1)
    monkeypatch.setattr(root, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(root, "FIRST_PAUSE", 0.01)
    yield s3_server.uri(place)
    left, s3_server.faulty.faults = s3_server.faulty.faults, []
    assert not left, "a fault was prepared and never met"


def test_s3_round_trip(s3: str, tmp_path: Path) -> None:
    store = Store(s3, cache=tmp_path / "cache")
    store.check()
    assert store.done() == set() and store.manifest("train-1") is None
    store.put("train-1", arrays=ARRAYS, outcome={"a": 1})
    store.put("decide-1", outcome={"b": 2})
    assert store.done() == {"train-1", "decide-1"}
    copy = pickle.loads(pickle.dumps(store))
    assert same(copy.arrays("train-1"), ARRAYS)
    store.checkpoint("train-1", {"round": np.array(3)})
    assert copy.restore("train-1")["round"] == 3
    store.drop_checkpoint("train-1")
    store.drop_checkpoint("train-1")
    assert copy.restore("train-1") == {}
    store.write("manifests/decide/decide-2.json", b"")
    found, damaged = store.manifests(["train-1", "decide-1", "decide-2", "decide-3"])
    assert list(found) == ["train-1", "decide-1"] and list(damaged) == ["decide-2"]
    store.discard("decide-2")
    store.write("sweeps/s/records.parquet", b"x" * 100)
    assert copy.list("sweeps/s") == ["sweeps/s/records.parquet"]
    assert copy.local("sweeps/s") is None and copy.free_bytes() is None
    store.discard("train-1")
    store.discard("decide-1")
    assert store.done() == set() and store.list("objects") == []


def test_s3_objects_are_cached_and_the_cache_is_verified(s3: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    store = Store(s3, cache=cache)
    store.put("train-2", arrays=ARRAYS)
    store.arrays("train-2")
    (kept,) = files(cache)
    manifest = store.manifest("train-2")
    assert manifest is not None
    (path,) = manifest.files
    store._files.delete(path)
    assert same(store.arrays("train-2"), ARRAYS)  # from the cache
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    with pytest.raises(DamagedArtifact):  # neither place has it
        Store(s3, cache=cache).arrays("train-2")
    store.put("train-2", arrays=ARRAYS)
    assert same(Store(s3, cache=cache).arrays("train-2"), ARRAYS)  # heals the cache
    assert same(Store(s3, cache=Path("/proc/nothing")).arrays("train-2"), ARRAYS)


def test_s3_large_objects_go_up_in_parts(s3: str, tmp_path: Path) -> None:
    store = Store(s3, cache=tmp_path)
    large = np.random.default_rng(0).integers(0, 256, 25_000_000, np.uint8)
    store.put("train-3", arrays={"x": large})
    assert np.array_equal(store.arrays("train-3")["x"], large)


def test_s3_that_is_not_there(s3: str) -> None:
    store = Store(
        s3.replace("@bucket/", "@no-such-bucket/").replace("allow_bucket_creation=true", "")
    )
    with pytest.raises(
        StoreError, match="s3://no-such-bucket/test_s3_that_is_not_there: cannot write"
    ) as caught:
        store.check()
    assert "password" not in str(caught.value)


# Requests


@dataclass(frozen=True)
class Costs:
    store: Store
    server: S3

    def of(self, act: Callable[[], object]) -> int:
        with self.server.faulty.counted() as found:
            act()
        return sum(found.values())


@pytest.fixture
def costs(s3: str, s3_server: S3, tmp_path: Path) -> Costs:
    store = Store(s3, cache=tmp_path / "cache")
    store.list("manifests")  # connects
    return Costs(store, s3_server)


def test_an_artifact_is_two_requests_to_store_and_none_to_read_again_here(costs: Costs) -> None:
    large = np.zeros(3_000_000, np.uint8)
    assert costs.of(lambda: costs.store.put("train-1", arrays={"x": large})) == 2
    assert costs.of(lambda: costs.store.put("decide-1", outcome={"n": 1})) == 1
    assert costs.of(lambda: costs.store.manifests(["train-1"])) == 2
    assert costs.of(lambda: costs.store.arrays("train-1")) == 0
    elsewhere = Store(costs.store.uri, cache=Path("/proc/nothing"))
    assert costs.of(lambda: elsewhere.arrays("train-1")) == 4  # manifest and object, whole


def test_a_plan_of_stored_stages_costs_a_bounded_number_of_requests(
    s3: str, s3_server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raysweep.store.index.GRAIN", 0)  # else these stages are too young
    keys = [f"train-{number}" for number in range(60)]
    store = Store(s3, cache=tmp_path)
    for key in keys:
        store.put(key, outcome={"of": key})
    first, second = Store(s3, cache=tmp_path), Store(s3, cache=tmp_path)

    def planned(driver: Store) -> None:
        driver.check()
        found, damaged = driver.manifests(sorted(driver.done()))
        assert {key: found[key].outcome["of"] for key in found} == {k: k for k in keys}
        assert not damaged
        driver.remember(keys)

    reading = Costs(first, s3_server).of(lambda: planned(first))
    indexed = Costs(second, s3_server).of(lambda: planned(second))
    assert reading >= 2 * len(keys) and indexed <= 14


def test_objects_of_replaced_manifests_go_when_the_run_ends(s3: str, tmp_path: Path) -> None:
    store = Store(s3, cache=tmp_path)
    store.put("train-1", arrays={"x": np.zeros(3)})
    store.put("train-2", arrays={"x": np.zeros(3)})
    driver = Store(s3, cache=tmp_path)
    driver.manifests(driver.done())
    worker = Store(s3, cache=tmp_path)
    time.sleep(1.1)  # S3 tells whole seconds
    worker.put("train-1", arrays={"x": np.ones(3)})
    assert len(store.list("objects")) == 3
    driver.remember(["train-1", "train-2"], ["train-1"])
    assert len(store.list("objects")) == 2
    assert Store(s3, cache=Path("/proc/nothing")).arrays("train-1")["x"].tolist() == [1, 1, 1]


# A connection that breaks

OPERATIONS: dict[str, Callable[[Store], object]] = {
    "write": lambda store: store.write("a/new", b"x" * 9000),
    "read": lambda store: store.read("a/old"),
    "list": lambda store: store.list("a"),
    "stamps": lambda store: store.stamps("a"),
    "delete": lambda store: store.delete("a/old"),
}
FAULTS = ("500", "503", "reset", "torn", "slow")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_outlasts_faults(
    s3: str, s3_server: S3, operation: str, fault: str
) -> None:
    store = Store(s3)
    store.write("a/old", b"old")
    s3_server.faulty.break_next(fault)
    OPERATIONS[operation](store)
    assert store.read("a/new") == (b"x" * 9000 if operation == "write" else None)
    assert store.read("a/old") == (None if operation == "delete" else b"old")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_outage_that_is_longer_than_one_attempt_is_waited_for(
    s3: str, s3_server: S3, operation: str
) -> None:
    store = Store(s3)
    store.write("a/old", b"old")
    s3_server.faulty.break_next(*["503"] * 8)
    OPERATIONS[operation](store)
    assert store.list("a") == sorted(
        {"a/old"} - ({"a/old"} if operation == "delete" else set())
        | ({"a/new"} if operation == "write" else set())
    )


def test_patience_ends_and_the_error_says_why(
    s3: str, s3_server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(root, "PATIENCE", 0.05)
    store = Store(s3)
    store.write("a", b"1")
    with (
        s3_server.faulty.broken("503"),
        pytest.raises(StoreError, match=r"cannot read a .*503"),
    ):
        store.read("a")
    assert store.read("a") == b"1"


def test_a_request_is_sent_three_times_before_it_counts_as_failed(
    s3: str, s3_server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "ATTEMPTS", 3)
    store = Store(s3)
    store.list("a")
    s3_server.faulty.break_next("503", "503")
    assert store.try_write("a", b"1")


def test_a_place_that_never_answered_is_given_up_soon(
    s3: str, s3_server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(root, "BRIEF", 0.05)
    store = Store(s3.replace(s3_server.endpoint.split(":")[1], "9"))
    with pytest.raises(StoreError, match="connect"):
        store.check()


def test_what_waiting_does_not_mend_is_told_at_once(s3: str, s3_server: S3) -> None:
    store = Store(s3.replace("@bucket/", "@another/"))
    store._answered = True
    with (
        s3_server.faulty.counted() as requests,
        pytest.raises(StoreError, match="NO_SUCH_BUCKET"),
    ):
        store.write("a", b"1")
    assert sum(requests.values()) == 1


def test_bookkeeping_that_cannot_be_written_is_named_until_it_is(s3: str, s3_server: S3) -> None:
    store = Store(s3)
    with s3_server.faulty.broken("503"):
        assert not store.try_write("logs/a", b"1")
        assert not store.try_write("logs/b", b"1")
    (line,) = store.unwritten
    assert "could not write logs/a and 1 more" in line and "password" not in line
    assert store.try_write("logs/a", b"1") and store.try_write("logs/b", b"1")
    assert store.unwritten == []


# Endpoints and credentials


def test_endpoint_and_credentials_come_from_the_environment(
    s3: str, s3_server: S3, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(s3).write("a", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3_server.endpoint}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "password")
    store = Store(f"s3://bucket/{place}?region=eu-central-1")
    assert store.read("a") == b"1"
    store.write("b", b"2")
    assert Store(s3).read("b") == b"2"


def test_a_secret_may_hold_any_character(s3: str) -> None:
    store = Store(s3.replace("test:password@", "te%2Fst:pass%2Fw%40rd%2B@"))
    store.write("a", b"1")
    assert store.read("a") == b"1" and "pass" not in store.where("a")


# Launches

SWEEP = """
name: stormy
dataset: {digits: {size: 300}}
model: linear
recipe: {epochs: 1}
attacks: [{badnets: {rate: 0.1}}]
defenses: [none]
track: {wandb: disabled}
"""


def outcome(file: Path, uri: str) -> tuple[list[str], list[str]]:
    """Launch a sweep; return the states of its trials, and what the launch notes."""
    done = launch(load_sweep(file), SWEEP, uri, inline=True)
    assert list(records.load("stormy", uri)["status"]) == list(done.rows["status"])
    return list(done.rows["status"]), done.notes


@pytest.fixture
def sweep_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return tmp_path / "sweep.yaml"


def test_bookkeeping_costs_a_launch_nothing(s3: str, s3_server: S3, sweep_file: Path) -> None:
    ledger = SweepFolder(Store(s3), "stormy").ledger

    def bookkeeping(method: str, path: str) -> bool:
        return method == "PUT" and (f"/{ledger}/" in path or path.endswith(FILE))

    with s3_server.faulty.broken("503", bookkeeping):
        states, notes = outcome(sweep_file, s3)
    assert states == ["ok"]
    (note,) = notes
    assert f"could not write {FILE} and 1 more" in note


def test_a_launch_outlasts_an_outage_of_the_storage(
    s3: str, s3_server: S3, sweep_file: Path
) -> None:
    """It begins when the first stage is stored, and again when the records are."""
    faulty, begun = s3_server.faulty, set()

    def begins(method: str, path: str) -> bool:
        for mark in ("/manifests/", "records.parquet"):
            if method == "PUT" and mark in path and mark not in begun:
                begun.add(mark)
                faulty.faults += ["503"] * 40
        return False

    with faulty.broken("503", begins):
        assert outcome(sweep_file, s3) == (["ok"], [])
    assert len(begun) == 2
