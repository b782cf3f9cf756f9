"""Fuzzed data: arrays, Parquet files, folders, tables and foreign records, well-formed or not.

Each target builds a small input in a folder and gives it to the product, which either understands
it as the example says, or refuses it by an error of its own that names the place.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hypothesis import strategies as st
from PIL import Image

from raysweep.datasets import Dataset, ImageSet, Labels
from raysweep.datasets.ember import Ember
from raysweep.datasets.imagefolder import ImageFolder
from raysweep.datasets.npz import Npz
from raysweep.datasets.parquet import Parquet
from raysweep.errors import RaysweepError
from raysweep.exchange import backdoorbench, toolbox
from raysweep.exchange.folder import read_foreign, save

SIDE = 8
NAMES = ["ant", "bee", "cat", "10", "2", "ä", "a b", "."]
DTYPES = ["uint8", "int64", "uint64", "float32", "float64", "bool", "int8", ">i4", "complex64"]

# What happens to the bytes of a file: nothing, a cut, or bytes that change.
damages = st.one_of(
    st.none(),
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("flip"), st.floats(0, 1)),
    st.tuples(st.just("zero"), st.floats(0, 1)),
)


def damaged(file: Path, damage: tuple[str, float] | None) -> bool:
    """Damage a file's bytes at a share of its length; return whether they changed."""
    raw = file.read_bytes()
    if damage is None or not raw:
        return False
    kind, share = damage
    at = min(int(share * len(raw)), len(raw) - 1)
    new = {
        "cut": raw[:at],
        "flip": raw[:at] + bytes([raw[at] ^ 0x55]) + raw[at + 1 :],
        "zero": raw[:at] + bytes(min(16, len(raw) - at)) + raw[at + 16 :],
    }[kind]
    file.write_bytes(new)
    return new != raw


def read(dataset: Dataset, folder: Path) -> tuple[Labels, ImageSet, ImageSet] | None:
    """Return what a plan's checks let pass, or None if they refuse it and name the place."""
    try:
        labels = dataset.checked_labels()
        train, test = dataset.checked_images(labels)
        dataset.caution()
        dataset.source_digest(labels)
    except RaysweepError as error:
        assert str(folder) in str(error), f"names no place: {error}"
        assert "\n" not in str(error)
        return None
    for part, given in ((train, labels.train), (test, labels.test)):
        assert part.images.shape[1] in (1, 3) or dataset.DOMAIN == "features"
        assert (part.labels == given).all() and given.max() < len(labels.classes)
        assert bool(torch.isfinite(part.images.float()).all())
    assert set(labels.train.tolist()) == set(range(len(labels.classes)))
    return labels, train, test


def filled(shape: tuple[int, ...], dtype: str, high: int) -> np.ndarray:
    values = np.arange(int(np.prod(shape))).reshape(shape) % high
    return values.astype(dtype)


shapes = st.one_of(
    st.sampled_from([(6, SIDE, SIDE, 3), (6, 3, SIDE, SIDE), (6, SIDE, SIDE), (6, SIDE, SIDE, 1)]),
    st.lists(st.integers(0, 9), max_size=5).map(tuple),
)
labels_like = st.one_of(
    st.tuples(st.just("int64"), st.lists(st.integers(0, 2), min_size=6, max_size=6)),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 99), max_size=8)),
)
class_lists = st.one_of(
    st.none(), st.just(["a", "b", "c"]), st.lists(st.sampled_from(NAMES), max_size=5),
    st.just("abc"), st.lists(st.integers(0, 5), max_size=3), st.lists(st.binary(max_size=3)),
)  # fmt: skip
arrays = st.fixed_dictionaries({
    "dtype": st.one_of(st.just("uint8"), st.sampled_from(DTYPES)),
    "train": shapes, "test": shapes, "train_labels": labels_like, "test_labels": labels_like,
    "classes": class_lists, "left_out": st.sampled_from(["", "", "", "train_images"]),
    "damage": damages,
})  # fmt: skip


def check_npz(given: dict[str, Any], folder: Path) -> None:
    """An .npz file means its arrays, channels last or first, or is refused."""
    held = {}
    for split in ("train", "test"):
        held[f"{split}_images"] = filled(given[split], given["dtype"], 251)
        dtype, numbers = given[f"{split}_labels"]
        held[f"{split}_labels"] = np.array(numbers).astype(dtype)
    if given["classes"] is not None:
        held["classes"] = np.array(given["classes"])
    held.pop(given["left_out"], None)
    file = folder / "d.npz"
    np.savez(file, **held)
    changed = damaged(file, given["damage"])
    result = read(Npz(path=str(file)), folder)
    if result is None or changed:
        return
    labels, *parts = result
    for split, part in zip(("train", "test"), parts, strict=True):
        raw = held[f"{split}_images"]
        assert raw.dtype == np.uint8 and part.labels.tolist() == held[f"{split}_labels"].tolist()
        last = raw.ndim == 4 and raw.shape[3] in (1, 3)
        mine = part.images.numpy().transpose(0, 2, 3, 1) if last else part.images.numpy()
        assert (mine.reshape(raw.shape) == raw).all()
    if given["classes"] is not None:
        assert len(labels.classes) == len(set(labels.classes)) == len(given["classes"])


def encoded(color: int, form: str, mode: str, side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (color, 9, 9)).convert(mode).save(buffer, form)
    return buffer.getvalue()


shards = st.fixed_dictionaries({
    "names": st.one_of(
        st.permutations(["ant", "bee", "cat"]), st.none(),
        st.lists(st.sampled_from(["ant", "bee", "cat", "dog"]), max_size=4),
        st.sampled_from(["abc", 5, [1, 2, 3], [None, "a"], {"a": 1}]),
    ),
    "labels": st.one_of(
        st.permutations([0, 1, 2]), st.lists(st.integers(-1, 3), max_size=4),
        st.lists(st.one_of(st.none(), st.integers(0, 2)), max_size=3),
        st.sampled_from([["a"], [0.5], [True], [2**40], [2**63]]),
    ),
    "side": st.sampled_from([8, 8, 8, 8, 9]), "mode": st.sampled_from(["RGB", "RGB", "L", "LA"]),
    "image": st.sampled_from(["bytes", "struct", "null", "text", "empty"]),
    "damage": st.one_of(st.none(), st.none(), damages),
})  # fmt: skip


def check_parquet(given: dict[str, Any], folder: Path) -> None:
    """Parquet files mean the classes that each of them names, or are refused."""
    truth: list[str] = []
    changed = False
    for number, shard in enumerate(given["files"]):
        numbers, names = shard["labels"], shard["names"]
        named = isinstance(names, list) and bool(names)
        said = [
            str(names[n]) if named and isinstance(n, int) and 0 <= n < len(names) else str(n)
            for n in numbers
        ]
        truth += said
        colors = ["ant bee cat dog".find(one) * 9 % 250 for one in said]
        raws = [encoded(color, "PNG", shard["mode"], shard["side"]) for color in colors]
        images = {
            "bytes": raws, "struct": [{"bytes": raw, "path": None} for raw in raws],
            "null": [None] * len(raws), "text": ["x"] * len(raws), "empty": [b""] * len(raws),
        }[shard["image"]]  # fmt: skip
        try:
            table = pa.table({"image": images, "label": numbers})
        except (pa.ArrowException, OverflowError):
            return  # not a table at all
        facts = {"info": {"features": {"label": {"names": names}}}}
        if names is not None:
            table = table.replace_schema_metadata({"huggingface": json.dumps(facts)})
        file = folder / f"{'test' if number == 0 else f'train-{number}'}.parquet"
        pq.write_table(table, file)
        changed |= damaged(file, shard["damage"])
    result = read(Parquet(path=str(folder)), folder)
    if result is not None and not changed:
        labels, train, test = result
        order = [labels.classes[n] for n in (*test.labels, *train.labels)]
        assert order == truth


entry = st.tuples(
    st.sampled_from(["train", "test", "train", "test", ".", "train/.git", "train/__MACOSX"]),
    st.sampled_from(["a", "b", "b/c", "10", "é", "a.png", ""]),
    st.sampled_from(["1.png", "2.JPG", "3.tif", ".4.png", "Thumbs.db", "5.txt", "6.png~", "7"]),
    st.sampled_from(["png", "png", "png", "png", "empty", "text", "link", "folder", "alpha"]),
)


def check_folders(given: list[tuple[str, str, str, str]], folder: Path) -> None:
    """A folder means its visible images by class, or is refused by an entry's name."""
    for split in ("train", "test"):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / "0.png").write_bytes(encoded(5, "PNG", "RGB", SIDE))
    for split, name, file, kind in given:
        at = folder / split / name / file
        try:
            at.parent.mkdir(parents=True, exist_ok=True)
            if kind == "folder":
                at.mkdir()
            elif kind == "link":
                at.symlink_to("nowhere")
            else:
                mode = "RGBA" if kind == "alpha" else "RGB"
                raw = encoded(5, "PNG", mode, SIDE)
                at.write_bytes({"empty": b"", "text": b"text"}.get(kind, raw))
        except OSError:
            continue  # another entry has taken the place
    dataset = ImageFolder(path=str(folder), side=SIDE)
    result = read(dataset, folder)
    if result is None:
        return
    labels, train, test = result
    for split, part in (("train", train), ("test", test)):
        expected = {
            path
            for path in (folder / split).rglob("*")
            if path.is_file() and path.suffix.lower() in (".png", ".jpg", ".tif")
            and len(path.relative_to(folder / split).parts) > 1
            and not any(one.startswith((".", "__")) for one in path.relative_to(folder).parts)
        }  # fmt: skip
        assert {file for file, _ in dataset.found(split)} == expected and len(part) == len(expected)
        for file, number in dataset.found(split):
            assert labels.classes[number] == file.relative_to(folder / split).parts[0]


columns = st.lists(
    st.tuples(
        st.sampled_from(["f0", "f1", "f2", "Label", "x"]),
        st.sampled_from(["float32", "float64", "int64", "null", "nan", "inf", "text", "big"]),
    ),
    min_size=2, max_size=5, unique_by=lambda pair: pair[0],
)  # fmt: skip


def check_tables(given: dict[str, Any], folder: Path) -> None:
    """Feature tables mean their columns by name, or are refused."""
    values: dict[str, dict[str, Any]] = {}
    changed = False
    for split in ("train", "test"):
        held: dict[str, Any] = {}
        for name, kind in given[split]:
            base = [float(sum(map(ord, name)) % 7 + n) for n in range(4)]
            odd = {"null": None, "nan": np.nan, "inf": np.inf, "big": 1e300}
            held[name] = [*base[:3], odd[kind]] if kind in odd else np.array(base)
            if kind in ("float32", "int64"):
                held[name] = held[name].astype(kind)
            if kind == "text":
                held[name] = ["x"] * 4
        if given["labeled"]:
            held["Label"] = [0, 1, -1, 1]
        values[split] = held
        file = folder / f"{split}_ember_x.parquet"
        pq.write_table(pa.table(held), file)
        changed |= damaged(file, given["damage"])
    result = read(Ember(path=str(folder), features=given["features"]), folder)
    if result is None or changed:
        return
    order = [name for name in values["train"] if name != "Label"]
    for split, part in zip(("train", "test"), result[1:], strict=True):
        wanted = np.stack([np.asarray(values[split][name], np.float32) for name in order], 1)
        rows = [n for n, label in enumerate(values[split]["Label"]) if label >= 0]
        assert (part.images[:, :, 0, 0].numpy() == wanted[rows]).all()


plain = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 12), st.floats(), st.text(max_size=4),
    st.lists(st.integers(-1, 9), max_size=10),
)  # fmt: skip
states = st.one_of(
    st.none(), plain,
    st.fixed_dictionaries({
        "prefix": st.sampled_from(["", "module.", "_orig_mod.", "module._orig_mod."]),
        "dtype": st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64]),
        "below": st.sampled_from(["", "state_dict", "model"]),
    }),
)  # fmt: skip
records = st.fixed_dictionaries({
    "rows": st.one_of(st.just([1, 4]), st.lists(st.integers(-2, 12), max_size=4)),
    "other": st.one_of(st.just([0, 1]), plain), "state": states,
    "path": st.sampled_from(["./record/x/bd_train_dataset/1/{}.png", "C:\\r\\x\\bd_train_dataset"
                             "\\1\\{}.png", "/../../{}.png", "", "bd_train_dataset/1/{}.png"]),
    "key": st.sampled_from(["", "", "", "num_classes", "img_size", "bd_test", "bd_train",
                            "clean_data", "original_index_array", "poison_indicator"]),
    "value": plain, "damage": st.one_of(st.none(), damages),
})  # fmt: skip


def weights_of(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    tensor = torch.tensor([1.0, 2.0]).to(given["dtype"])
    state = {given["prefix"] + "w": tensor}
    return {given["below"]: state, "epoch": 1} if given["below"] else state


def check_records(given: dict[str, Any], folder: Path) -> None:
    """A record means the images that it marks, or is refused; nothing half-written is left."""
    top = folder / "digits_net_badnet_0_1"
    images = top / "bd_train_dataset" / "1"
    images.mkdir(parents=True)
    entries = {}
    for row in given["rows"]:
        Image.new("L", (SIDE, SIDE), row % 256).save(images / f"{row}.png")
        entries[row] = {"path": given["path"].format(row), "other_info": given["other"]}
    part: dict[str, Any] = {
        "bd_data_container": {"data_dict": entries}, "original_index_array": np.arange(10),
        "poison_indicator": np.isin(np.arange(10), given["rows"]).astype(float),
    }  # fmt: skip
    none = {"bd_data_container": {"data_dict": {}}, "original_index_array": np.arange(0),
            "poison_indicator": np.zeros(4)}  # fmt: skip
    result: dict[str, Any] = {
        "num_classes": 3, "img_size": (SIDE, SIDE, 1), "clean_data": "digits", "bd_train": part,
        "bd_test": none, "model": weights_of(given["state"]),
    }  # fmt: skip
    if given["key"]:
        (part if given["key"] in part else result)[given["key"]] = given["value"]
    torch.save(result, top / "attack_result.pt")
    changed = damaged(top / "attack_result.pt", given["damage"])
    taken = taken_in(backdoorbench.read, top, folder)
    if taken is not None and not changed and not given["key"]:
        rows = [row for row in sorted(set(given["rows"])) if 0 <= row < 10]
        found = np.sort(np.concatenate([taken["poison_rows"], taken["cover_rows"]]))
        assert found.tolist() == rows and (taken["poison_images"][:, 0, 0, 0] ==
                                           taken["poison_rows"]).all()  # fmt: skip


def taken_in(
    form: Callable[[Path], Any], source: Path, folder: Path
) -> dict[str, np.ndarray] | None:
    """Return the arrays of an import, or None if it is refused by name and leaves nothing."""
    to = folder / "taken"
    try:
        save(read_foreign(form, source), to)
    except RaysweepError as error:
        assert not list(folder.glob("*taken*")), "something half-written is left"
        named = (
            str(folder) in str(error) or "backdoorbench" in str(error) or "toolbox" in str(error)
        )
        assert named and "\n" not in str(error), f"names no place: {error}"
        return None
    with np.load(to / "arrays.npz") as held:
        return {name: held[name] for name in held.files}


sets = st.fixed_dictionaries({
    "form": st.sampled_from(["float", "uint8", "levels", "half", "last", "normal", "nan", "bool",
                             "short", "list", "grey"]),
    "labels": st.one_of(st.just([0, 1] * 5), st.lists(st.integers(-1, 3), min_size=9, max_size=10),
                        st.just(np.eye(2)[[0, 1] * 5].tolist()), plain),
    "poison": st.one_of(st.just([2, 4]), st.lists(st.integers(-1, 10), max_size=4), plain),
    "cover": st.one_of(st.none(), st.lists(st.integers(0, 9), max_size=3)),
    "state": states, "damage": st.one_of(st.none(), damages),
})  # fmt: skip


def check_sets(given: dict[str, Any], folder: Path) -> None:
    """A set of backdoor-toolbox means its levels from 0 to 255, or is refused."""
    top = folder / "digits" / "badnet_0.100_poison_seed=0"
    top.mkdir(parents=True)
    levels = torch.arange(10 * SIDE * SIDE * 3).reshape(10, 3, SIDE, SIDE) % 256
    unit = levels.float() / 255
    images: Any = {
        "float": unit, "uint8": levels.to(torch.uint8), "levels": levels.float(),
        "half": unit.half(), "last": unit.permute(0, 2, 3, 1), "normal": (unit - 0.5) * 4,
        "nan": unit.where(unit < 1, torch.nan), "bool": unit > 0.5, "short": unit[:9],
        "list": unit.tolist(), "grey": unit[:, 0],
    }[given["form"]]  # fmt: skip
    torch.save(images, top / "imgs")
    torch.save(given["labels"], top / "labels")
    torch.save(given["poison"], top / "poison_indices")
    if given["cover"] is not None:
        torch.save(given["cover"], top / "cover_indices")
    if given["state"] is not None:
        torch.save(weights_of(given["state"]), top / "full_base_aug_seed=1.pt")
    changed = damaged(top / "imgs", given["damage"])
    taken = taken_in(toolbox.read, top, folder)
    if taken is not None and not changed:
        nine = given["form"] == "short" and len(given["labels"]) == 9
        assert nine or given["form"] in ("float", "uint8", "levels", "half", "last")
        assert sorted(given["poison"]) == taken["poison_rows"].tolist()
        assert (taken["poison_images"] == levels.numpy()[taken["poison_rows"]]).all()


TARGETS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any, Path], None]]] = {
    "npz": (arrays, check_npz),
    "parquet": (
        st.fixed_dictionaries({"files": st.lists(shards, min_size=2, max_size=3)}), check_parquet,
    ),
    "folders": (st.lists(entry, max_size=6), check_folders),
    "tables": (
        st.fixed_dictionaries({
            "train": columns, "test": columns, "features": st.integers(1, 4), "damage": damages,
            "labeled": st.sampled_from([True, True, True, False]),
        }),
        check_tables,
    ),
    "records": (records, check_records),
    "sets": (sets, check_sets),
}  # fmt: skip
