"""The cache of objects on a host: bounded, the last used stay, several processes at once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from raysweep.errors import StoreError
from raysweep.store.cache import Cache, limit_bytes

SIZE = 1000
LIMIT = 20 * SIZE


def made(number: int) -> tuple[str, bytes]:
    data = bytes([number % 256]) * SIZE
    return hashlib.sha256(data).hexdigest(), data


def held(folder: Path) -> set[str]:
    return {path.name for path in (folder / "objects").glob("*")}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("RAYSWEEP_CACHE_GB", str(LIMIT / 1e9))
    return Cache(tmp_path)


def test_the_cache_keeps_its_limit_and_what_was_used_last(cache: Cache, tmp_path: Path) -> None:
    first, data = made(0)
    for number in range(100):
        cache.write(*made(number))
        assert cache.read(first, SIZE) == data
        assert len(held(tmp_path)) * SIZE <= LIMIT
    assert first in held(tmp_path) and made(99)[0] in held(tmp_path)
    assert made(1)[0] not in held(tmp_path)
    assert cache.read(made(1)[0], SIZE) is None


def test_what_is_larger_than_the_limit_is_not_kept(cache: Cache, tmp_path: Path) -> None:
    cache.write("0" * 64, bytes(LIMIT + 1))
    assert held(tmp_path) == set()


def test_without_room_there_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSWEEP_CACHE_GB", "0")
    cache = Cache(tmp_path)
    cache.write(*made(1))
    assert held(tmp_path) == set() and cache.read(made(1)[0], SIZE) is None


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: b"?" + data[1:]])
def test_a_damaged_object_is_none(cache: Cache, tmp_path: Path, change: object) -> None:
    digest, data = made(7)
    cache.write(digest, data)
    assert cache.read(digest, SIZE) == data
    (tmp_path / "objects" / digest).write_bytes(change(data))  # type: ignore[operator]
    assert cache.read(digest, SIZE) is None


WRITER = """
import os, sys
from pathlib import Path
from raysweep.store.cache import Cache
from tests.test_cache import SIZE, made
cache = Cache(Path(sys.argv[1]))
for number in range(150):
    digest, data = made(number)
    cache.write(digest, data)
    assert cache.read(digest, SIZE) in (data, None)
"""


def test_processes_that_clear_at_once_keep_the_limit(cache: Cache, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for one in writers:
        _, errors = one.communicate()
        assert one.returncode == 0, errors
    cache.write(*made(255))
    assert 0 < len(held(tmp_path)) * SIZE <= LIMIT


@pytest.mark.parametrize("given", ["x", "-1", "nan"])
def test_a_wrong_limit_names_the_variable(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYSWEEP_CACHE_GB", given)
    with pytest.raises(StoreError, match=f"RAYSWEEP_CACHE_GB.*{given!r}"):
        limit_bytes(tmp_path / "objects")


def test_the_limit_is_a_share_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYSWEEP_CACHE_GB", raising=False)
    assert limit_bytes(tmp_path / "none" / "objects") > 1e6
