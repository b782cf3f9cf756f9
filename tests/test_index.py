"""The index of manifests: a cache that never answers wrongly, and may be lost at any time."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from raysweep.errors import DamagedArtifact
from raysweep.store import Store
from raysweep.store import index as index_module
from raysweep.store.index import FEWEST, SEGMENTS

KEYS = [f"{kind}-{number}" for kind in ("train", "decide") for number in range(FEWEST)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def put(root: Path, keys: Iterable[str], *, age: float = 60.0, note: str = "first") -> None:
    """Store stages as if it had been some seconds ago."""
    store = Store(str(root))
    for key in keys:
        store.put(key, outcome={"of": key, "note": note})
        then = time.time() - age
        os.utime(path(root, key), (then, then))


def path(root: Path, key: str) -> Path:
    return root / "manifests" / key.partition("-")[0] / f"{key}.json"


def driver(root: Path) -> Store:
    """Return a store as a driver uses it that has planned against it."""
    store = Store(str(root))
    store.check()
    store.done()
    return store


def remembered(root: Path, keys: Iterable[str] = KEYS) -> None:
    """Let a driver read stages, and write them into the index."""
    keys, store = list(keys), driver(root)
    store.manifests(keys)
    store.remember(keys)


def spoil(root: Path, keys: Iterable[str]) -> None:
    """Overwrite manifests, and keep their size and modification time: nobody can see it."""
    for file in (path(root, key) for key in keys):
        facts = file.stat()
        file.write_bytes(b"x" * facts.st_size)
        os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def notes(root: Path, keys: Iterable[str] = KEYS) -> dict[str, str]:
    """Return what a driver that comes later finds of each stage."""
    found, _ = driver(root).manifests(keys)
    return {key: found[key].outcome["note"] for key in found}


def files(root: Path) -> list[Path]:
    return sorted((root / "index").glob("*"))


def test_manifests_come_from_the_index_in_the_order_asked(root: Path) -> None:
    put(root, KEYS)
    remembered(root)
    spoil(root, KEYS)  # so that whatever is read would be damaged
    found, damaged = driver(root).manifests(reversed(KEYS))
    assert list(found) == KEYS[::-1] and not damaged and len(found) == len(KEYS)
    assert found["train-3"].outcome == {"of": "train-3", "note": "first"}
    with pytest.raises(KeyError):
        found["train-999"]


def test_what_is_read_by_itself_never_comes_from_the_index(root: Path) -> None:
    put(root, KEYS)
    remembered(root)
    store = driver(root)
    spoil(root, ["train-1"])
    for read in (store.manifest, store.arrays, store.verify):
        with pytest.raises(DamagedArtifact):
            read("train-1")


def test_without_a_listing_manifests_are_read(root: Path) -> None:
    put(root, KEYS)
    remembered(root)
    spoil(root, ["train-1"])
    assert Store(str(root)).manifests(KEYS)[1] == ["train-1"]


def test_a_manifest_that_was_replaced_is_read(root: Path) -> None:
    put(root, KEYS)
    remembered(root)
    put(root, ["train-1"], age=30, note="second")
    found = notes(root)
    assert found.pop("train-1") == "second"
    assert set(found.values()) == {"first"} and len(found) == len(KEYS) - 1


def test_a_key_is_given_once_and_read_when_it_is_asked_for_again(root: Path) -> None:
    put(root, KEYS)
    remembered(root)
    store = driver(root)
    store.manifests(KEYS)
    put(root, ["train-1"], note="second")
    assert store.manifests(["train-1"])[0]["train-1"].outcome["note"] == "second"
    store.done()
    assert store.manifests(["train-1"])[0]["train-1"].outcome["note"] == "second"


def test_what_is_younger_than_the_grain_of_clocks_is_not_written_down(root: Path) -> None:
    """It may be replaced within the same tick, of the same size, and nobody could tell."""
    put(root, KEYS, age=0)
    remembered(root)
    assert files(root) == []
    put(root, KEYS, age=60)
    put(root, KEYS[:3], age=0)
    remembered(root)
    spoil(root, KEYS)
    assert sorted(notes(root)) == sorted(KEYS[3:])


def test_the_grain_is_counted_from_the_reading_not_from_the_writing(root: Path) -> None:
    """A manifest that is replaced just after it was read has the time that it had."""
    put(root, KEYS, age=0)
    store = driver(root)
    store.manifests(KEYS)
    stamps = {key: path(root, key).stat().st_mtime_ns for key in KEYS}
    for key in KEYS:  # the same size and tick, another content
        Store(str(root)).put(key, outcome={"of": key, "note": "third"})
        os.utime(path(root, key), ns=(stamps[key], stamps[key]))
    store._clock += 10**10  # the run takes long, and then looks at the clock of the storage
    store.remember(KEYS)
    assert set(notes(root).values()) == {"third"}


def test_few_manifests_are_not_worth_a_file(root: Path) -> None:
    put(root, KEYS)
    remembered(root, KEYS[: FEWEST - 1])
    assert files(root) == []
    remembered(root, KEYS[:FEWEST])
    assert len(files(root)) == 1


def test_a_second_driver_writes_nothing_that_is_known(root: Path) -> None:
    put(root, KEYS)
    remembered(root)
    (before,) = files(root)
    remembered(root)
    assert files(root) == [before]


def test_what_a_run_has_made_is_written_down_at_its_end(root: Path) -> None:
    store = driver(root)
    put(root, KEYS)
    store.remember(KEYS, KEYS)
    spoil(root, KEYS)
    assert len(notes(root)) == len(KEYS)


def foreign(rows: dict[str, list[object]]) -> Callable[[bytes], bytes]:
    def made(raw: bytes) -> bytes:
        del raw
        out = io.BytesIO()
        parquet.write_table(pa.table(rows), out)
        return out.getvalue()

    return made


def with_manifests(change: Callable[[str, bytes], bytes]) -> Callable[[bytes], bytes]:
    """Return a change of the manifests in an index file, which stays one."""

    def made(raw: bytes) -> bytes:
        table = parquet.read_table(io.BytesIO(raw))
        pairs = zip(table["key"].to_pylist(), table["manifest"].to_pylist(), strict=True)
        column = pa.array([change(key, one) for key, one in pairs], pa.large_binary())
        out = io.BytesIO()
        at = table.schema.get_field_index("manifest")
        parquet.write_table(table.set_column(at, "manifest", column), out)
        return out.getvalue()

    return made


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: b"",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:200] + bytes([raw[200] ^ 1]) + raw[201:],
        lambda raw: b"PAR1" + b"x" * 100 + b"PAR1",
        foreign({"key": ["train-1"], "size": [1]}),
        foreign({"key": [1], "size": [1], "mtime_ns": [1], "manifest": [b""]}),
        with_manifests(lambda key, raw: raw[:-2] + b"!}"),
        with_manifests(lambda key, raw: raw.replace(key.encode(), b"train-9" * 2)),
        with_manifests(lambda key, raw: b""),
    ],
)
def test_a_damaged_or_foreign_index_is_ignored(
    root: Path, change: Callable[[bytes], bytes]
) -> None:
    put(root, KEYS)
    remembered(root)
    (file,) = files(root)
    file.write_bytes(change(file.read_bytes()))
    assert notes(root) == dict.fromkeys(KEYS, "first")


def test_small_files_are_joined_and_lose_nothing(root: Path) -> None:
    every = []
    for number in range(4 * SEGMENTS):
        keys = [f"train-{number}x{n}" for n in range(FEWEST)]
        put(root, keys)
        remembered(root, keys)
        every += keys
        assert len(files(root)) <= SEGMENTS + 3
    spoil(root, every)
    assert len(notes(root, every)) == len(every)


@pytest.mark.parametrize("how", ["replaced", "gone"])
def test_a_file_of_which_no_row_counts_is_joined_as_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Every stage of it was done again, or another driver has joined it meanwhile."""
    monkeypatch.setattr(index_module, "WORTH", 0)  # no file is read before it is joined
    for number in range(SEGMENTS):
        keys = [f"train-{number}x{n}" for n in range(FEWEST)]
        put(root, keys)
        remembered(root, keys)
        if how == "replaced":
            put(root, keys, note="again", age=30.0)
    put(root, KEYS)
    store = driver(root)
    store.manifests(KEYS)
    for file in files(root) if how == "gone" else ():
        file.unlink()
    store.remember(KEYS)
    assert len(files(root)) == 1
    monkeypatch.undo()
    spoil(root, KEYS)
    assert notes(root) == dict.fromkeys(KEYS, "first")


def test_two_drivers_that_join_files_at_once_lose_nothing(root: Path) -> None:
    every, drivers = [], []
    for number in range(SEGMENTS + 2):
        keys = [f"train-{number}x{n}" for n in range(FEWEST)]
        put(root, keys)
        every += keys
        if number < SEGMENTS:
            remembered(root, keys)
        else:
            drivers.append((driver(root), keys))
    for store, _ in drivers:  # both know the same files
        store.manifests(every)
    for store, keys in drivers:
        store.remember(keys)
    spoil(root, every)
    assert len(notes(root, every)) == len(every)


def test_an_index_that_is_larger_than_what_it_saves_is_left_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(root, KEYS)
    remembered(root)
    spoil(root, KEYS)
    monkeypatch.setattr(index_module, "WORTH", files(root)[0].stat().st_size // len(KEYS) + 1)
    assert len(notes(root)) == len(KEYS)
    assert notes(root, KEYS[:FEWEST]) == {}  # read one by one, hence damaged
