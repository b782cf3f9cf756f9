"""What every dataset keeps to, on small files in the real formats."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from raysweep import methods
from raysweep.datasets import Dataset
from raysweep.errors import PlanError

NAMES = list(methods.available("datasets"))
CLASSES = ["ant", "bee", "cat"]


def png(seed: int, side: int = 12) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(file: Path, rows: int, *, first: int, image: str = "img") -> np.ndarray:
    labels = np.arange(rows) * 7 % 3
    table = pa.table(
        {
            image: [{"bytes": png(first + n), "path": f"{n}.png"} for n in range(rows)],
            "label": labels,
        }
    )
    names = {"info": {"features": {"label": {"names": CLASSES}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    pq.write_table(table, file, row_group_size=4)
    return labels


def write_folder(top: Path) -> None:
    for split, count in (("train", 5), ("test", 4)):
        for number, name in enumerate(CLASSES):
            folder = top / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                (folder / f"{n}.png").write_bytes(png(100 * number + n))


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a maker of small instances of every dataset, by what its fields and files ask for."""
    for name in ("cifar10", "gtsrb", "user"):
        write_parquet(tmp_path / f"{name}-train.parquet", 30, first=0)
        write_parquet(tmp_path / f"{name}-test.parquet", 20, first=1000)
    write_folder(tmp_path)
    monkeypatch.setenv("RAYSWEEP_DATA", str(tmp_path))
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))

    def made(name: str, **given: Any) -> Dataset:
        kind = methods.load("datasets", name)
        if "path" in kind.model_fields:
            given = {"path": str(tmp_path), **given}
        if name == "parquet":
            given = {"train": "user-train.parquet", "test": "user-test.parquet", **given}
        return kind.model_validate(given)  # type: ignore[return-value]

    return made


@pytest.mark.parametrize("name", NAMES)
def test_labels_agree_with_decoded_images(name: str, make: Any) -> None:
    dataset = make(name)
    labels = dataset.read_labels()
    train, test = dataset.decode()
    for part, expected in ((train, labels.train), (test, labels.test)):
        assert (part.labels == expected).all() and part.labels.dtype == np.int64
        assert part.images.dtype.is_floating_point is False and part.images.ndim == 4
        assert len(part.images) == len(expected) and part.images.shape[1] in (1, 3)
    assert max(labels.train.max(), labels.test.max()) < len(labels.classes)
    assert all(file.is_file() for file in dataset.files())


@pytest.mark.parametrize("name", NAMES)
def test_the_cut_is_disjoint_stable_and_sized(name: str, make: Any) -> None:
    dataset = make(name)
    labels = dataset.read_labels()
    train, clean, test = dataset.kept(labels)
    total = len(labels.test)
    assert len(train) == len(labels.train) and len(clean) == min(2000, total // 5)
    assert not set(clean) & set(test) and len(clean) + len(test) == total
    for a, b in zip(dataset.kept(labels), (train, clean, test), strict=True):
        assert (a == b).all()
    small = make(name, size=10, test_size=12, clean_size=4)
    train, clean, test = small.kept(labels)
    assert (len(train), len(clean), len(test)) == (10, 4, 8)
    with pytest.raises(PlanError, match="size must be at most"):
        make(name, size=10**6).kept(labels)


@pytest.mark.parametrize("name", NAMES)
def test_is_a_frozen_value(name: str, make: Any) -> None:
    dataset = make(name)
    assert methods.restore("datasets", dataset.identity()) == dataset
    with pytest.raises(ValidationError):
        make(name, no_such_field=1)


def test_parquet_pixels_names_and_order(make: Any, tmp_path: Path) -> None:
    dataset = make("parquet")
    train, _ = dataset.decode()
    first = np.asarray(Image.open(io.BytesIO(png(0)))).transpose(2, 0, 1)
    assert (train.images[0].numpy() == first).all()
    assert dataset.read_labels().classes == tuple(CLASSES)
    assert make("parquet", grey=True).decode()[0].images.shape[1] == 1


def test_bad_files_are_named(make: Any, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"no file in .* matches 'nothing\*'"):
        make("parquet", train="nothing*").files()
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    with pytest.raises(PlanError, match=r"junk\.parquet: cannot be read as Parquet"):
        make("parquet", train="junk.parquet").read_labels()
    write_parquet(tmp_path / "odd.parquet", 5, first=0, image="pixels")
    with pytest.raises(PlanError, match="has no column img or image; its columns are pixels"):
        make("parquet", train="odd.parquet").decode()
    broken = [{"bytes": png(n, side=12 + 2 * (n == 3)), "path": ""} for n in range(5)]
    pq.write_table(pa.table({"img": broken, "label": [0] * 5}), tmp_path / "sizes.parquet")
    with pytest.raises(PlanError, match=r"row 3: is 14 x 14 pixels, the first image is 12 x 12"):
        make("parquet", train="sizes.parquet").decode()
    pq.write_table(
        pa.table({"img": [{"bytes": b"no image", "path": ""}], "label": [0]}),
        tmp_path / "text.parquet",
    )
    with pytest.raises(PlanError, match="row 0: cannot be decoded"):
        make("parquet", train="text.parquet").decode()
    (tmp_path / "test" / "bee").rename(tmp_path / "elsewhere")
    with pytest.raises(PlanError, match="bee' holds no image; every class needs"):
        make("imagefolder").files()


@pytest.mark.skipif("RAYSWEEP_DATA" not in os.environ, reason="RAYSWEEP_DATA names no folder")
@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [("cifar10", 50_000, 10_000, 10), ("gtsrb", 39_209, 12_630, 43)],
)
def test_published_files(name: str, train: int, test: int, classes: int) -> None:
    dataset: Dataset = methods.load("datasets", name)()  # type: ignore[assignment]
    labels = dataset.read_labels()
    assert (len(labels.train), len(labels.test), len(labels.classes)) == (train, test, classes)
    assert len(dataset.kept(labels)[1]) == 2000
