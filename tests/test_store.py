"""The store: atomicity under kill -9 and full disks, damage, hostile bytes, loss of power."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest

from raysweep.errors import DamagedArtifact, StoreError
from raysweep.identity import digest
from raysweep.results.description import Description, write_description
from raysweep.results.table import write_tables
from raysweep.store import Store, root
from raysweep.store import files as files_of
from raysweep.store.bucket import Bucket
from raysweep.store.events import (
    CandidateEnd,
    Damaged,
    Dispatch,
    Done,
    End,
    Event,
    Failed,
    Grow,
    Kept,
    Note,
    Retry,
    Start,
    UpstreamFailed,
    unpack,
)
from raysweep.store.files import Folder
from raysweep.store.ledger import Ledger, read
from raysweep.store.manifest import pack, seal
from raysweep.store.sweepfolder import SweepFolder, names

ARRAYS = {
    "images": np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4),
    "labels": np.array([1, -2, 3]),
    "scores": np.array([0.5, -np.inf, np.inf], np.float32),
    "flags": np.array([True, False]),
    "half": np.array([1.5], np.float16),
    "scalar": np.array(7.0),
    "none": np.empty((0, 5), np.float32),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root"))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        found[n].dtype == a.dtype and found[n].shape == a.shape and np.array_equal(found[n], a)
        for n, a in expected.items()
    )


# What goes in comes out


def test_arrays_outcome_and_info_round_trip(store: Store) -> None:
    store.put("train-1", arrays=ARRAYS, outcome={"loss": [0.1]}, info={"host": "ü"})
    assert same(store.arrays("train-1"), ARRAYS)
    assert list(store.arrays("train-1", ["labels"])) == ["labels"]
    manifest = store.manifest("train-1")
    assert manifest is not None
    assert (manifest.outcome, manifest.info) == ({"loss": [0.1]}, {"host": "ü"})
    with pytest.raises(KeyError, match="missing"):
        store.arrays("train-1", ["missing"])


def test_strided_and_big_endian_arrays_round_trip(store: Store) -> None:
    wide = np.arange(24.0).reshape(4, 6)
    store.put("train-1", arrays={"t": wide.T[::2], "big": wide.astype(">f8")})
    found = store.arrays("train-1")
    assert np.array_equal(found["t"], wide.T[::2]) and np.array_equal(found["big"], wide)


def test_arrays_are_read_only(store: Store) -> None:
    store.put("train-1", arrays=ARRAYS)
    with pytest.raises(ValueError, match="read-only"):
        store.arrays("train-1")["labels"][0] = 9


def test_outcome_keys_of_any_kind_do_not_spoil_the_checksum(store: Store) -> None:
    store.put("decide-1", outcome={"per": {10: 1, 9: 2}, "nan": float("nan")})
    manifest = store.manifest("decide-1")
    assert manifest is not None and manifest.outcome["per"] == {"10": 1, "9": 2}


@pytest.mark.parametrize(
    "given",
    [
        {"arrays": {"x": np.array([{"a": 1}], object)}},
        {"arrays": {"x": np.array(["text"])}},
        {"outcome": {"x": np.float32(1)}},
        {"info": {"x": object()}},
    ],
)
def test_what_is_no_number_and_no_json_is_refused(store: Store, given: dict) -> None:
    with pytest.raises(TypeError):
        store.put("train-1", **given)
    assert files(Path(store.uri)) == []


def test_a_stage_that_is_not_stored(store: Store) -> None:
    assert store.manifest("train-1") is None
    assert store.done() == set() and store.list("sweeps") == []
    with pytest.raises(StoreError, match="train-1 is not stored"):
        store.arrays("train-1")


def test_done_lists_without_looking_at_keys(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        store.put(f"{('train', 'decide')[number % 2]}-{number}", outcome={"n": number})
    (Path(store.uri) / "manifests" / ".DS_Store").write_bytes(b"x")
    (Path(store.uri) / "manifests" / "train" / ".abc.tmp").write_bytes(b"half")

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a key was looked at")

    monkeypatch.setattr(files_of, "open", refuse, raising=False)
    monkeypatch.setattr(os, "stat", refuse)
    expected = {f"{('train', 'decide')[n % 2]}-{n}" for n in range(30)}
    assert store.done() == expected


def test_many_manifests_are_read_and_damaged_ones_named(store: Store) -> None:
    for number in range(3):
        store.put(f"train-{number}", outcome={"n": number})
    store.write("manifests/train/train-1.json", b"")
    found, damaged = store.manifests(f"train-{number}" for number in range(4))
    assert {key: one.outcome["n"] for key, one in found.items()} == {"train-0": 0, "train-2": 2}
    assert list(damaged) == ["train-1"]


def test_an_outcome_is_read_alone_and_is_none_where_nothing_is_stored(store: Store) -> None:
    store.put("decide-1", outcome={"produced": "nothing"})
    assert store.outcome("decide-1") == {"produced": "nothing"}
    assert store.outcome("decide-2") is None


def test_discard_leaves_nothing(store: Store) -> None:
    store.put("train-1", arrays=ARRAYS)
    store.put("train-2", arrays=ARRAYS)
    store.discard("train-1")
    store.discard("never-stored")
    assert store.done() == {"train-2"}
    assert not [path for path in files(Path(store.uri)) if "train-1" in path.name]
    assert same(store.arrays("train-2"), ARRAYS)


def test_checkpoints_are_replaced_dropped_and_ignored_when_damaged(store: Store) -> None:
    assert store.restore("shard-1") == {}
    store.checkpoint("shard-1", {"round": np.array(1)})
    store.checkpoint("shard-1", {"round": np.array(2)})
    assert store.restore("shard-1")["round"] == 2
    (path,) = files(Path(store.uri))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert store.restore("shard-1") == {}
    store.drop_checkpoint("shard-1")
    store.drop_checkpoint("shard-1")
    assert files(Path(store.uri)) == []


def test_a_pickled_store_is_its_place(store: Store, tmp_path: Path) -> None:
    store.put("train-1", arrays=ARRAYS)
    store.arrays("train-1")
    mine = Store(store.uri, cache=tmp_path / "cache")
    copy = pickle.loads(pickle.dumps(mine))
    assert (copy.uri, copy._cache) == (mine.uri, mine._cache)
    assert same(copy.arrays("train-1"), ARRAYS)
    assert len(pickle.dumps(store)) < 400


def test_local_paths_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store("here").uri == str(tmp_path / "here")
    assert Store((tmp_path / "a b").as_uri()).uri == str(tmp_path / "a b")
    assert Store("here").local("sweeps/x") == tmp_path / "here" / "sweeps" / "x"


def test_free_bytes_of_a_folder_that_is_not_made_yet(store: Store) -> None:
    assert store.free_bytes() == pytest.approx(shutil.disk_usage("/tmp").free, rel=0.5)
    assert not Path(store.uri).exists()


# Damage


def test_every_flipped_bit_is_detected(store: Store) -> None:
    store.put("train-1", arrays={"x": np.arange(5)}, outcome={"a": 1}, info={"b": 2.5})
    for path in files(Path(store.uri)):
        whole = path.read_bytes()
        for at in range(len(whole)):
            hurt = bytearray(whole)
            hurt[at] ^= 1 << (at % 8)
            path.write_bytes(hurt)
            with pytest.raises(DamagedArtifact, match="train-1"):
                Store(store.uri).arrays("train-1")
        path.write_bytes(whole)
    assert Store(store.uri).arrays("train-1")["x"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("left", [0, 1, 40, 80, -1])
def test_truncated_files_are_detected(store: Store, left: int) -> None:
    store.put("train-1", arrays={"x": np.arange(50)}, outcome={"a": 1})
    for path in files(Path(store.uri)):
        whole = path.read_bytes()
        path.write_bytes(whole[:left])
        with pytest.raises(DamagedArtifact):
            Store(store.uri).arrays("train-1")
        path.write_bytes(whole)


def test_damage_after_the_first_read_is_seen(store: Store) -> None:
    store.put("train-1", arrays={"x": np.arange(5)})
    store.arrays("train-1")
    path = next((Path(store.uri) / "objects").rglob("*.safetensors"))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(0, 0))
    with pytest.raises(DamagedArtifact):
        store.arrays("train-1")


def test_an_object_is_verified_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("train-1", arrays={"x": np.zeros(100_000)})
    hashed = []

    def sha256(data: bytes = b"") -> object:
        hashed.append(len(data))
        return real(data)

    real = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", sha256)
    for _ in range(3):
        store.arrays("train-1")
    assert len([size for size in hashed if size >= 800_000]) == 1


def test_a_missing_object_is_damage_and_can_be_made_good(store: Store) -> None:
    store.put("train-1", arrays=ARRAYS)
    shutil.rmtree(Path(store.uri) / "objects")
    with pytest.raises(DamagedArtifact, match="gone"):
        store.arrays("train-1")
    store.discard("train-1")
    assert store.done() == set()
    store.put("train-1", arrays=ARRAYS)
    assert same(store.arrays("train-1"), ARRAYS)


# Hostile bytes


def body(**changes: object) -> dict:
    whole = {"kind": "train", "key": "train-1", "files": {}, "outcome": {}, "info": {}}
    return {**whole, **changes}


FACTS = {"sha256": "0" * 64, "size": 1}


@pytest.mark.parametrize(
    "content",
    [
        seal(body(key="train-2")),
        seal(body(kind="decide")),
        seal(body(extra=1)),
        seal({"kind": "train"}),
        seal(body(outcome=[1])),
        seal(body(files=[1])),
        seal(body(files={"../../outside": FACTS})),
        seal(body(files={"/etc/passwd": FACTS})),
        seal(body(files={"objects/train/-2/train-2-0123456789ab.safetensors": FACTS})),
        seal(
            body(
                files={
                    "objects/train/-1/train-1-0123456789ab.safetensors": {
                        "sha256": "../../../../etc/passwd",
                        "size": 1,
                    }
                }
            )
        ),
        b"[" * 100_000,
        b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
        b"",
    ],
)
def test_hostile_manifests_are_damage(store: Store, content: bytes) -> None:
    store.write("manifests/train/train-1.json", content)
    for use in (store.manifest, store.arrays):
        with pytest.raises(DamagedArtifact):
            use("train-1")
    store.discard("train-1")
    assert store.done() == set()


def deep() -> bytes:
    rest = b'"outcome":' + b"[" * 200_000
    return b'{"checksum":"' + hashlib.sha256(rest).hexdigest().encode() + b'",' + rest


def header(tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 16


class Bomb:
    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(Path(os.environ["BOMB"])),))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        header({"x": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 16]}}),
        header({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 62]}}),
        header({"x": {"dtype": "PICKLE", "shape": [4], "data_offsets": [0, 16]}}),
        header([1]),
        "pickle",
    ],
)
def test_hostile_tensors_are_damage_and_run_nothing(
    store: Store, content: bytes | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attacker who can write checksums too: the parser alone stands in the way."""
    bomb = tmp_path / "bomb"
    monkeypatch.setenv("BOMB", str(bomb))
    data = pickle.dumps(Bomb()) if isinstance(content, str) else content
    path = "objects/train/-1/train-1-0123456789ab.safetensors"
    facts = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    store.write(path, data)
    store.write("manifests/train/train-1.json", seal(body(files={path: facts})))
    with pytest.raises(DamagedArtifact):
        store.arrays("train-1")
    assert not bomb.exists()


def test_deeply_nested_json_is_damage(store: Store) -> None:
    store.write("manifests/train/train-1.json", deep())
    with pytest.raises(DamagedArtifact):
        store.manifest("train-1")


def test_a_bfloat16_tensor_of_others_is_damage_not_a_crash(store: Store) -> None:
    store.put("train-1", arrays={"x": np.zeros(8, np.float16)})
    data = pack({"x": np.zeros(8, np.float16)}).replace(b'"F16"', b'"BF16"')
    data = (int.from_bytes(data[:8], "little") + 1).to_bytes(8, "little") + data[8:]
    path = "objects/train/-1/train-1-0123456789ab.safetensors"
    facts = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    store.write(path, data)
    store.write("manifests/train/train-1.json", seal(body(files={path: facts})))
    try:
        store.arrays("train-1")
    except DamagedArtifact:
        return
    assert store.arrays("train-1")["x"].shape == (8,)


@pytest.mark.parametrize("word", ["..", "a/b", "", "a b", "a\0", "/etc", "a" * 121, "a\n", "ä"])
def test_keys_cannot_leave_the_root(store: Store, word: str) -> None:
    uses = (store.put, store.manifest, store.arrays, store.discard, store.restore)
    for key in (word, f"train-{word}", f"{word}-1"):
        for use in (*uses, store.drop_checkpoint):
            with pytest.raises(StoreError, match="letters"):
                use(key)


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/passwd", "a\\..\\x", "", "a//b", "./a", "a\0b"]
)
def test_paths_cannot_leave_the_root(store: Store, path: str) -> None:
    for use in (store.read, store.list, store.local, lambda p: store.write(p, b"")):
        with pytest.raises(StoreError, match="below its root"):
            use(path)


# Writers that die, clash, or meet a full disk

WRITER = """
import sys, numpy as np
from raysweep.store import Store
store, name, size = Store(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
for number in range(1_000_000):
    value = np.full(size, number % 100, np.int64)
    store.put(f"train-{number % 7}", arrays={"x": value, "y": value[:9]},
              outcome={"value": number % 100})
    store.write(f"sweeps/{name}/table", bytes([number % 100]) * size)
"""


def writer(store: Store, name: str, size: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, store.uri, name, str(size)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def all_sound(store: Store) -> int:
    """Check that whatever is there is whole; return how many stages there are."""
    fresh = Store(store.uri)
    for key in fresh.done():
        # Two looks: another writer may replace the stage between them, but never half of it.
        manifest, arrays = fresh.manifest(key), fresh.arrays(key)
        assert manifest is not None and manifest.outcome["value"] in range(100)
        (value,) = set(arrays["x"].tolist())
        assert set(arrays["y"].tolist()) == {value}
    for path in fresh.list("sweeps"):
        assert len(set(fresh.read(path) or b"")) == 1
    return len(fresh.done())


@pytest.mark.slow
def test_kill_minus_nine_leaves_whole_artifacts(store: Store) -> None:
    draw, found = np.random.default_rng(0), 0
    for size in (10, 1000, 300_000) * 5:
        process = writer(store, "s", size)
        time.sleep(draw.uniform(0.001, 0.12))
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = max(found, all_sound(store))
    assert found == 7


@pytest.mark.slow
def test_concurrent_writers_of_the_same_keys(store: Store) -> None:
    processes = [writer(store, "s", size) for size in (50, 3000, 20_000)]
    try:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            all_sound(store)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert all_sound(store) == 7


def test_threads_that_write_one_key(store: Store) -> None:
    def write(value: int) -> None:
        for _ in range(20):
            store.put(
                "train-0",
                arrays={"x": np.full(99, value), "y": np.full(9, value)},
                outcome={"value": value},
            )

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all_sound(store) == 1


LIMITED = """
import resource, signal, sys, numpy as np
from raysweep.errors import StoreError
from raysweep.store import Store
store = Store(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
store.put("train-small", arrays={"x": np.zeros(10)})
for attempt in (lambda: store.put("train-big", arrays={"x": np.zeros(100_000)}),
                lambda: store.put("train-wide", outcome={"x": "y" * 200_000},
                                  arrays={"x": np.zeros(10)}),
                lambda: store.write("sweeps/s/records", bytes(200_000))):
    try:
        attempt()
    except StoreError as error:
        print(error)
"""


def test_a_write_that_fails_leaves_nothing(store: Store) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, store.uri], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert store.uri in line and "File too large" in line and "launch again" in line
    assert store.done() == {"train-small"}
    assert len(files(Path(store.uri))) == 2  # the small one's object and manifest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_nothing_and_heals(small_disk: Path) -> None:
    store = Store(str(small_disk / "root"))
    stored = 0
    with pytest.raises(StoreError, match=r"No space left on device.*free space"):
        for stored in range(1000):
            store.put(f"train-{stored}", arrays={"x": np.full(3000, stored)})
    assert stored >= 3 and len(store.done()) == stored
    assert len(files(small_disk)) == 2 * stored
    store.discard("train-0")
    store.put(f"train-{stored}", arrays={"x": np.full(3000, stored)})
    for number in range(1, stored + 1):
        assert store.arrays(f"train-{number}")["x"][0] == number


def test_a_full_disk_at_the_manifest_removes_the_object(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files_of._write

    def full(path: str, data: bytes) -> None:
        real(path, data[:5] if "manifests" in path else data)
        if "manifests" in path:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files_of, "_write", full)
    with pytest.raises(StoreError, match="No space"):
        store.put("train-1", arrays=ARRAYS)
    assert files(Path(store.uri)) == []


@pytest.mark.parametrize("uri", ["/proc/nothing", "/dev/null/x"])
def test_check_says_what_is_wrong(uri: str) -> None:
    with pytest.raises(StoreError, match=f"{uri}.*permissions"):
        Store(uri).check()


def test_check_leaves_no_probe(store: Store) -> None:
    store.check()
    assert files(Path(store.uri)) == []


@pytest.mark.parametrize("uri", ["nonsense://x/y", "s3://b/p?no_such_option=1"])
def test_a_uri_that_pyarrow_does_not_know(uri: str) -> None:
    with pytest.raises(StoreError, match="use a folder"):
        Store(uri).check()


def test_small_puts_are_fast(store: Store) -> None:
    store.put("decide-0", outcome={"n": 0})
    best = []
    for number in range(200):
        start = time.perf_counter()
        store.put(f"decide-{number}", outcome={"n": number})
        best.append(time.perf_counter() - start)
    # 0.04 to 0.1 ms where this was written; the margin is for slow and busy disks.
    assert np.median(best) < 0.002


# A loss of power


@pytest.mark.parametrize(
    ("seconds", "setting", "synced"),
    [(2.0, "", ["object", "objects", "manifest", "manifests"]), (0.5, "", []), (2.0, "0", [])],
)
def test_what_took_long_is_on_the_disk_before_anything_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, setting: str, synced: list[str]
) -> None:
    monkeypatch.setenv("RAYSWEEP_FSYNC", setting)
    store, real, found = Store(str(tmp_path)), os.fsync, []
    places = {"objects": tmp_path / "objects", "manifests": tmp_path / "manifests"}

    def fsync(descriptor: int) -> None:
        real(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        (name,) = [name for name, above in places.items() if above in path.parents]
        found.append(name if path.is_dir() else name.removesuffix("s"))
        there = list(store.list("manifests"))
        assert bool(there) == (found[-1] == "manifests")
        if not path.is_dir():
            assert path.stat().st_size > 0 and path.name.endswith(".tmp")

    monkeypatch.setattr(os, "fsync", fsync)
    store.put("train-1", arrays={"x": np.zeros(9)}, info={"seconds": seconds})
    assert found == synced
    assert store.arrays("train-1")["x"].shape == (9,)


def test_records_outlast_a_loss_of_power(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real, found = os.fsync, list[str]()

    def fsync(descriptor: int) -> None:
        real(descriptor)
        found.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_tables(store, "s", pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]}))
    write_description(store, "s", Description(name="s"))
    assert len(found) == 6 and found.count(f"{store.uri}/sweeps/s") == 3


# Other filesystems


def test_a_pyarrow_filesystem_with_renames_is_atomic(tmp_path: Path) -> None:
    bucket, folder = Bucket((tmp_path / "root").as_uri()), Folder(tmp_path / "root")
    bucket.write("a/b/c", b"1")
    bucket.write("a/b/c", b"22")
    assert folder.read("a/b/c") == bucket.read("a/b/c") == b"22"
    assert folder.list("a") == bucket.list("a") == ["a/b/c"]
    assert bucket.read("a/none") is None and bucket.list("none") == []
    (tmp_path / "root/a/d").mkdir()
    with pytest.raises(OSError, match="d"):
        bucket.write("a/d", b"over a folder")
    assert [path.name for path in files(tmp_path)] == ["c"]
    bucket.delete("a/b/c")
    bucket.delete("a/b/c")
    assert folder.list("a") == []


def test_passwords_are_not_shown() -> None:
    uri = "s3://key:secret@bucket/some/place?endpoint_override=localhost%3A1&scheme=http"
    store = Store(uri)
    assert store.where("sweeps/x") == "s3://bucket/some/place/sweeps/x"
    assert Store("s3://bucket").where("x") == "s3://bucket/x"


# The folder of a sweep


def test_the_files_of_a_sweep_lie_where_they_lay() -> None:
    folder = SweepFolder(Store("s3://bucket/root"), "first")
    found = {
        folder.path(), folder.description, folder.records, folder.stages, folder.report,
        folder.tuned, folder.ledger, folder.log("train-1"), folder.version(2).report,
        folder.tuning.description, folder.tuning.ledger, folder.tuning.log("train-1"),
    }  # fmt: skip
    assert found == {
        "sweeps/first", "sweeps/first/sweep.json", "sweeps/first/records.parquet",
        "sweeps/first/stages.parquet", "sweeps/first/report.html", "sweeps/first/tuned.json",
        "sweeps/first/ledger", "sweeps/first/logs/train-1.txt",
        "sweeps/first/versions/2/report.html", "sweeps/first/tune/sweep.json",
        "sweeps/first/tune/ledger", "sweeps/first/tune/logs/train-1.txt",
    }  # fmt: skip


def test_local_folders_lie_in_the_store_or_on_this_machine_for_a_bucket(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSWEEP_CACHE", "/cache")
    here, there = SweepFolder(store, "first"), SweepFolder(Store("s3://bucket/root"), "first")
    root = Path(store.uri)
    assert here.wandb == root / "sweeps/first/wandb"
    assert here.journal == root / "sweeps/first/tune/journal.log"
    assert there.wandb == Path("wandb-offline/first")
    known = digest("s3://bucket/root/first")
    assert there.journal == Path("/cache/studies") / known / "journal.log"


def test_versions_and_names_are_those_that_are_stored(store: Store) -> None:
    folder = SweepFolder(store, "first")
    assert folder.versions() == [] and names(store) == []
    for number in (10, 2):
        store.write(folder.version(number).records, b"")
        store.write(folder.version(number).report, b"")
    store.write(folder.path("versions/note.txt"), b"")
    store.write(SweepFolder(store, "another").tuning.tuned, b"")
    assert folder.versions() == [2, 10] and names(store) == ["another", "first"]


def test_one_file_knows_where_a_sweep_lies() -> None:
    package = Path(__file__).parent.parent / "raysweep"
    knowing = [file.name for file in package.rglob("*.py") if "sweeps/{" in file.read_text()]
    assert knowing == ["sweepfolder.py"]


# Lines of a ledger

LINES = {
    Start(t=2.5, trials=2, stages=5, cached=1):
        '{"t":2.5,"event":"start","trials":2,"stages":5,"cached":1}',
    Dispatch(t=2.5, keys=("train-1", "train-2"), ready=0):
        '{"t":2.5,"event":"dispatch","keys":["train-1","train-2"],"ready":0}',
    Done(t=2.5, key="train-1", seconds=0.25, host="h", pid=7):
        '{"t":2.5,"event":"done","key":"train-1","seconds":0.25,"host":"h","pid":7}',
    Failed(t=2.5, key="train-1", error="no"):
        '{"t":2.5,"event":"failed","key":"train-1","error":"no"}',
    UpstreamFailed(t=2.5, key="evaluate-1", cause="train-1"):
        '{"t":2.5,"event":"upstream_failed","key":"evaluate-1","cause":"train-1"}',
    Retry(t=2.5, key="train-1", error="no"):
        '{"t":2.5,"event":"retry","key":"train-1","error":"no"}',
    Kept(t=2.5, key="train-1"): '{"t":2.5,"event":"kept","key":"train-1"}',
    Damaged(t=2.5, key="train-1"): '{"t":2.5,"event":"damaged","key":"train-1"}',
    Grow(t=2.5, key="decide-1", stages=3):
        '{"t":2.5,"event":"grow","key":"decide-1","stages":3}',
    Grow(t=2.5, key="", stages=3, cached=0, trials=1):
        '{"t":2.5,"event":"grow","key":"","stages":3,"cached":0,"trials":1}',
    Note(t=2.5, text="say"): '{"t":2.5,"event":"note","text":"say"}',
    End(t=2.5, complete=True): '{"t":2.5,"event":"end","complete":true}',
}  # fmt: skip
TOLD = CandidateEnd(
    t=2.5, study="s/strip/all", tied="d", params={"n": 4, "kind": "a"}, values=(0.5, None),
    constraints={"fpr <= 0.1": -0.05}, attrs={"metrics": {"tpr": 0.5}, "replayed": {}},
    state="COMPLETE",
)  # fmt: skip
LINE = (
    '{"t":2.5,"event":"told","study":"s/strip/all","tied":"d","params":{"n":4,"kind":"a"},'
    '"values":[0.5,null],"constraints":{"fpr <= 0.1":-0.05},'
    '"attrs":{"metrics":{"tpr":0.5},"replayed":{}},"state":"COMPLETE"}'
)


@pytest.mark.parametrize(("event", "line"), [*LINES.items(), (TOLD, LINE)])
def test_an_event_packs_to_its_line_and_back(event: Event, line: str) -> None:
    assert event.pack().decode() == line
    assert unpack(line.encode()) == event


def test_every_kind_of_event_is_packed_above() -> None:
    assert {type(event) for event in [*LINES, TOLD]} == set(get_args(Event))


def test_a_ledger_stamps_what_it_writes_and_gives_it_back(store: Store) -> None:
    folder, began = SweepFolder(store, "s").tuning, time.time()
    ledger = Ledger(folder)
    ledger.write(Note(text="first"))
    ledger.write(TOLD)
    ledger.close()
    first, told = read(folder)
    assert isinstance(first, Note) and first.text == "first" and began - 1 < first.t < began + 60
    assert replace(told, t=TOLD.t) == TOLD


def test_a_mounted_folder_that_is_away_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    store.write("sweeps/a/notes.txt", b"kept")
    real, refusals = Folder.read, [errno.ENOTCONN, errno.ESTALE]

    def away(self: Folder, path: str) -> bytes | None:
        if refusals:
            raise OSError(refusals.pop(), "its server is away")
        return real(self, path)

    monkeypatch.setattr(Folder, "read", away)
    monkeypatch.setattr(root, "FIRST_PAUSE", 0.01)
    assert store.read("sweeps/a/notes.txt") == b"kept" and not refusals
    refusals.append(errno.EACCES)
    with pytest.raises(StoreError, match="its server is away"):
        store.read("sweeps/a/notes.txt")
