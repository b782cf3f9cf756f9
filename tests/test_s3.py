"""Stores in a bucket: requests, retries, what a broken connection costs, the cache of a host."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from raysweep.errors import DamagedArtifact, StoreError
from raysweep.store import Store
from tests.s3 import S3
from tests.test_store import ARRAYS, files, same


@pytest.fixture
def s3(s3_server: S3, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URI of a place of this test's own."""
    yield s3_server.uri(request.node.name.replace("[", "-").replace("]", ""))
    assert not s3_server.faulty.faults, "a fault was prepared and never met"


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
