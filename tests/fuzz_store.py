"""Stored files, flipped, cut or joined: manifests, objects, ledgers, records, tuned parameters."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

import raysweep
from raysweep.errors import RaysweepError
from raysweep.results.records import read
from raysweep.results.tuned import Tuned
from raysweep.store import Store, ledger
from raysweep.store.sweepfolder import SweepFolder

SWEEP = (
    "name: f\ndataset: {digits: {size: 60, test_size: 40}}\nmodel: linear\nrecipe: {epochs: 1}\n"
    "attacks: [none]\ndefenses: [none]\ntrack: {wandb: disabled}\n"
)
TUNED = json.dumps(
    {
        "settings": {}, "means": [], "searches": [],
        "rows": [
            {"defense": "strip", "held_out": "nothing", "point": 0, "parameters": {"fpr": 0.1},
             "metrics": {"tpr": {"tuned": 0.5, "default": 0.4, "oracle": 0.6}}}
        ],
    }
).encode()  # fmt: skip
Damage = list[tuple[int, int, bytes]]


@functools.cache
def template() -> Path:
    """Return a folder with the store of one finished sweep."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "s.yaml").write_text(SWEEP)
    raysweep.launch(folder / "s.yaml", str(folder / "store"), inline=True)
    return folder / "store"


def stored(folder: Path) -> tuple[Path, str]:
    """Return a copy of the manifests and objects of the template, and a key of it."""
    for part in ("manifests", "objects"):
        shutil.copytree(template() / part / "train", folder / part / "train")
    (manifest,) = (folder / "manifests" / "train").glob("*.json")
    return manifest, manifest.stem


def damaged(raw: bytes, damage: Damage) -> bytes:
    for at, cut, piece in damage:
        at %= len(raw) + 1
        raw = raw[:at] + piece + raw[at + cut :]
    return raw


def check_manifest(damage: Damage, folder: Path) -> None:
    """A manifest that is damaged is refused, and never read as something else."""
    file, key = stored(folder)
    whole = Store(str(folder), cache=folder / "cache").manifest(key)
    file.write_bytes(damaged(file.read_bytes(), damage))
    try:
        found = Store(str(folder), cache=folder / "cache").manifest(key)
    except RaysweepError as error:
        assert key in str(error)
        return
    assert found == whole


def check_object(damage: Damage, folder: Path) -> None:
    """Arrays are those that were stored, or refused."""
    _, key = stored(folder)
    whole = Store(str(template()), cache=folder / "cache").arrays(key)
    (file,) = (folder / "objects" / "train").rglob("*.safetensors")
    file.write_bytes(damaged(file.read_bytes(), damage))
    try:
        found = Store(str(folder), cache=folder / "cache").arrays(key)
    except RaysweepError as error:
        assert key in str(error)
        return
    assert found.keys() == whole.keys()
    assert all(np.array_equal(found[name], whole[name]) for name in whole)


def _sweep_file(damage: Damage, folder: Path, pattern: str) -> Store:
    """Return a store whose sweep's one file is damaged; manifests and objects are linked."""
    for part in ("manifests", "objects"):
        (folder / part).symlink_to(template() / part)
    shutil.copytree(
        template() / "sweeps", folder / "sweeps", ignore=shutil.ignore_patterns("*.html")
    )
    (file,) = (folder / "sweeps" / "f").glob(pattern)
    file.write_bytes(damaged(file.read_bytes(), damage))
    return Store(str(folder), cache=folder / "cache")


def check_ledger(damage: Damage, folder: Path) -> None:
    """A ledger's lines that are whole are read, and the others are passed over."""
    store = _sweep_file(damage, folder, "ledger/*.jsonl")
    place = SweepFolder(store, "f")
    try:
        list(ledger.read(place))
        ledger.standing(place)
    except RaysweepError as error:
        assert "ledger" in str(error)


def _check_records(damage: Damage, folder: Path, pattern: str) -> None:
    store = _sweep_file(damage, folder, pattern)
    try:
        found = read(store, "f")
    except RaysweepError as error:
        assert "'f'" in str(error) or str(folder) in str(error), str(error)
        return
    assert len(found.rows) <= 1


def check_records(damage: Damage, folder: Path) -> None:
    """Records that are damaged are refused, or derived anew and said to be."""
    _check_records(damage, folder, "records.parquet")


def check_description(damage: Damage, folder: Path) -> None:
    """A description of a sweep that is damaged is refused, or what is whole of it is read."""
    _check_records(damage, folder, "sweep.json")


def check_tuned(damage: Damage, folder: Path) -> None:
    """What tuning found is read as it is, or refused with the field."""
    raw = damaged(TUNED, damage)
    try:
        found = Tuned.unpack(raw, "tuned.json")
    except RaysweepError as error:
        assert "tuned.json" in str(error)
        return
    assert Tuned.unpack(found.pack()).pack() == found.pack()


_values: Any = [b"null", b"1e999", b"NaN", b"-1", b'"x"', b"[]", b"{}", b"[[", b"\xff", b"\x00"]
_damage = st.lists(
    st.tuples(
        st.integers(0, 70_000), st.sampled_from([0, 1, 1, 3, 8, 100_000]),
        st.one_of(st.just(b""), st.binary(max_size=3), st.sampled_from(_values)),
    ),
    min_size=1, max_size=3,
)  # fmt: skip

TARGETS = {
    "manifest": (_damage, check_manifest),
    "object": (_damage, check_object),
    "ledger": (_damage, check_ledger),
    "records": (_damage, check_records),
    "description": (_damage, check_description),
    "tuned": (_damage, check_tuned),
}
