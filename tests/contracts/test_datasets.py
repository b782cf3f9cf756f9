"""What every dataset keeps to, on small files in the real formats: the shipped contract, more."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raysweep import methods
from raysweep.datasets import Dataset, Labels
from raysweep.datasets._decode import decoded
from raysweep.errors import PlanError, StageError
from raysweep.methods.context import Context
from raysweep.stages.content import Product
from raysweep.stages.inputs import Inputs
from raysweep.stages.prepare import Decode
from raysweep.store import Store
from raysweep.testing.datasets import DatasetContract, identity

NAMES = list(methods.usable("datasets"))
CLASSES = ["ant", "bee", "cat"]
SPLITS = ("train", "test")


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
    write_named(file, table, CLASSES)
    return labels


def write_named(file: Path, table: pa.Table, names: list[str]) -> None:
    """Write a table with class names as Hugging Face datasets writes them."""
    facts = {"info": {"features": {"label": {"names": names}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(facts)})
    pq.write_table(table, file, row_group_size=4)


def write_folder(top: Path) -> None:
    for split, count in (("train", 5), ("test", 4)):
        for number, name in enumerate(CLASSES):
            folder = top / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                (folder / f"{n}.png").write_bytes(png(100 * number + n))


def write_tiny_imagenet(top: Path) -> None:
    notes = ""
    (top / "val" / "images").mkdir(parents=True)
    for number, wnid in enumerate(("n01", "n02", "n03")):
        folder = top / "train" / wnid / "images"
        folder.mkdir(parents=True)
        for n in range(5):
            (folder / f"{wnid}_{n}.JPEG").write_bytes(png(100 * number + n))
        for n in range(4):
            name = f"val_{3 * n + number}.JPEG"
            (top / "val" / "images" / name).write_bytes(png(1000 + 3 * n + number))
            notes += f"{name}\t{wnid}\t0\t0\t62\t62\n"
    (top / "val" / "val_annotations.txt").write_text(notes)
    (top / "words.txt").write_text("n01\tgoldfish\nn02\tant, emmet\nn03\tbee\n")


def write_imagenet(top: Path) -> None:
    for split, count in (("train", 5), ("val", 4)):
        for number, wnid in enumerate(("n01440764", "n02102040", "n02979186")):
            folder = top / split / wnid
            folder.mkdir(parents=True)
            for n in range(count):
                wide = Image.open(io.BytesIO(png(100 * number + n))).resize((30, 20))
                wide.save(folder / f"{wnid}_{n}.JPEG")


def write_npz(file: Path, **other: Any) -> None:
    draw = np.random.default_rng(0)
    arrays: dict[str, Any] = {"classes": np.array(CLASSES)}
    for split, count in (("train", 30), ("test", 20)):
        arrays[f"{split}_images"] = draw.integers(0, 256, (count, 12, 12, 3), np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) * 7 % 3
    np.savez(file, **(arrays | other))


def write_ember(top: Path) -> None:
    top.mkdir()
    draw = np.random.default_rng(0)
    for split, count in (("train", 45), ("test", 30)):
        draw.normal(50, 9, (count, 7)).astype(np.float32).tofile(top / f"X_{split}.dat")
        (np.arange(count) % 3 - 1).astype(np.float32).tofile(top / f"y_{split}.dat")


PLACES = {
    "imagenet": "imagenet", "imagenette": "imagenet", "tiny_imagenet": "tiny-imagenet-200",
    "npz": "user.npz", "ember": "ember", "imagefolder": "",
}  # fmt: skip


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a maker of small instances of every dataset, by what its fields and files ask for."""
    for name in ("cifar10", "cifar100", "gtsrb", "mnist", "user"):
        write_parquet(tmp_path / f"{name}-train.parquet", 30, first=0)
        write_parquet(tmp_path / f"{name}-test.parquet", 20, first=1000)
    write_folder(tmp_path)
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    write_imagenet(tmp_path / "imagenet")
    write_npz(tmp_path / "user.npz")
    write_ember(tmp_path / "ember")
    monkeypatch.setenv("RAYSWEEP_DATA", str(tmp_path))
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))

    def made(name: str, **given: Any) -> Dataset:
        kind = methods.load("datasets", name)
        if "path" in kind.model_fields:
            given = {"path": str(tmp_path / PLACES.get(name, "")), **given}
        if name == "ember":
            given = {"features": 7, **given}
        if name == "parquet":
            given = {"train": "user-train.parquet", "test": "user-test.parquet", **given}
        return kind.model_validate(given)  # type: ignore[return-value]

    return made


class TestDatasets(DatasetContract):
    @pytest.fixture(params=NAMES)
    def make(self, request: pytest.FixtureRequest, make: Any) -> Any:
        return functools.partial(make, request.param)


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
    write_table(tmp_path / "sizes.parquet", broken, [0] * 5)
    with pytest.raises(PlanError, match=r"row 3: is 14 x 14 pixels, the first image is 12 x 12"):
        make("parquet", train="sizes.parquet").decode()
    write_table(tmp_path / "text.parquet", [{"bytes": b"no image", "path": ""}], [0])
    with pytest.raises(PlanError, match="row 0: cannot be decoded"):
        make("parquet", train="text.parquet").decode()
    (tmp_path / "test" / "bee").rename(tmp_path / "elsewhere")
    with pytest.raises(PlanError, match="bee' holds no image; every class needs"):
        make("imagefolder").files()


def write_table(file: Path, images: list[Any], labels: Any) -> None:
    write_named(file, pa.table({"img": images, "label": labels}), CLASSES)


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ([0.0, 1.5], "column 'label' must hold whole numbers, got double"),
        (["a", "b"], "column 'label' must hold whole numbers, got string"),
        ([0, None], "column 'label' must hold whole numbers, row 1 is null"),
        ([-1, 1], "row 0: labels must be from 0, got -1, and -1 to 1 in all"),
        ([0, 3], "row 1: labels must be from 0 to 2, the classes it names, got 3"),
        (pa.array([], pa.int64()), "holds no rows"),
    ],
    ids=["fractions", "text", "null", "negative", "unnamed", "empty"],
)
def test_labels_that_are_no_class_numbers_are_refused(
    labels: Any, fault: str, make: Any, tmp_path: Path
) -> None:
    images = pa.array([png(n) for n in range(len(labels))], pa.binary())
    write_table(tmp_path / "odd.parquet", images, labels)
    with pytest.raises(PlanError, match=fault):
        make("parquet", train="odd.parquet").read_labels()


def test_one_file_cannot_be_training_and_test_set(make: Any) -> None:
    with pytest.raises(PlanError, match=r"user-test\.parquet matches both train .* and test"):
        make("parquet", train="user*.parquet").files()


def test_images_that_8_bits_cannot_hold_are_refused(make: Any, tmp_path: Path) -> None:
    deep = io.BytesIO()
    Image.fromarray(np.arange(144, dtype=np.uint16).reshape(12, 12) * 400).save(deep, "PNG")
    write_table(tmp_path / "deep.parquet", [png(0), deep.getvalue()], [0, 1])
    with pytest.raises(PlanError, match=r"row 1: .* I;16 pixels.*; convert it to 8 bits"):
        make("parquet", train="deep.parquet").decode()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "BMP"])
def test_damaged_images_always_name_their_place(format_: str) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png(0))).save(buffer, format_)
    whole, draw = buffer.getvalue(), np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole[: draw.integers(1, len(whole) + 1)])
        damaged[draw.integers(0, min(len(damaged), 30))] = draw.integers(0, 256)
        try:
            pixels = decoded([("row 5", bytes(damaged))], total=1, grey=False)
            assert pixels.shape[:2] == (1, 3)
        except PlanError as error:
            assert str(error).startswith("row 5: ")
            refused += 1
    assert refused > 50


def test_image_folder_takes_classes_from_folders_and_refuses_strays(
    make: Any, tmp_path: Path
) -> None:
    dataset = make("imagefolder", side=16)
    train, test = dataset.decode()
    assert dataset.read_labels().classes == tuple(CLASSES)
    assert (train.labels == np.repeat(np.arange(3), 5)).all() and len(test) == 12
    assert train.images.shape == (15, 3, 16, 16)
    plain = make("imagefolder", side=12).decode()[0].images[5].numpy()
    assert (plain == np.asarray(Image.open(io.BytesIO(png(100)))).transpose(2, 0, 1)).all()
    stray = tmp_path / "test" / "dog"
    stray.mkdir()
    (stray / "0.png").write_bytes(png(0))
    with pytest.raises(PlanError, match="classes of test that train lacks: 'dog'"):
        dataset.read_labels()
    with pytest.raises(PlanError, match="path must hold a folder train with a folder per class"):
        make("imagefolder", path=str(tmp_path / "test")).read_labels()
    (tmp_path / "hollow" / "train").mkdir(parents=True)
    with pytest.raises(PlanError, match="path must hold a folder train with a folder per class"):
        make("imagefolder", path=str(tmp_path / "hollow")).read_labels()


def test_the_stage_refuses_files_that_were_not_planned(make: Any, tmp_path: Path) -> None:
    dataset = make("imagefolder")
    given = Inputs({}, Store(str(tmp_path / "store")), Context(seed=0))

    def prepared(source: str) -> Product:
        return Decode(dataset=dataset, source=source).perform(given)

    planned = identity(dataset)
    assert len(prepared(planned).arrays["train_images"]) == 15
    (tmp_path / "train" / "ant" / "0.png").write_bytes(png(999))
    with pytest.raises(StageError, match="source files of this host differ"):
        prepared(planned)


def test_identity_follows_labels_cut_and_order_where_the_bytes_stay(
    make: Any, tmp_path: Path
) -> None:
    """Each change leaves the bytes of all files, one after the other, as they were."""
    dataset = make("imagefolder")
    seen = [identity(dataset)]
    last_ant = tmp_path / "train" / "ant" / "4.png"
    last_ant.rename(tmp_path / "train" / "bee" / "-.png")  # sorts first: only the label changes
    seen.append(identity(dataset))
    (tmp_path / "train" / "cat" / "4.png").rename(tmp_path / "test" / "ant" / "-.png")
    seen.append(identity(dataset))
    for split in SPLITS:
        (tmp_path / split / "cat").rename(tmp_path / split / "cow")
    seen.append(identity(dataset))
    assert len(set(seen)) == 4
    pixels = tmp_path / "train" / "ant" / "0.png"
    pixels.write_bytes(png(999))
    assert identity(dataset) not in seen


def write_cifar(top: Path, monkeypatch: pytest.MonkeyPatch, classes: int) -> np.ndarray:
    """Write torchvision's layout with four images a batch; return the training labels."""
    import torchvision.datasets

    kind = getattr(torchvision.datasets, f"CIFAR{classes}")
    folder, labels = top / kind.base_folder, []
    folder.mkdir(parents=True)
    labels_key = "labels" if classes == 10 else "fine_labels"

    def write(name: str, entry: dict[str, Any]) -> list[str]:
        raw = pickle.dumps(entry)
        (folder / name).write_bytes(raw)
        return [name, hashlib.md5(raw).hexdigest()]

    def batch(name: str, seed: int) -> list[str]:
        draw = np.random.default_rng(seed)
        mine = draw.integers(0, classes, 4).tolist()
        labels.extend(mine)
        return write(name, {"data": draw.integers(0, 256, (4, 3072), np.uint8), labels_key: mine})

    train = [batch(name, n) for n, (name, _) in enumerate(kind.train_list)]
    drawn = np.array(labels)
    monkeypatch.setattr(kind, "train_list", train)
    monkeypatch.setattr(kind, "test_list", [batch(kind.test_list[0][0], 9)])
    key = kind.meta["key"]
    name, checksum = write(kind.meta["filename"], {key: [f"class {n}" for n in range(classes)]})
    monkeypatch.setattr(kind, "meta", {"filename": name, "key": key, "md5": checksum})
    return drawn


def write_gtsrb(top: Path) -> np.ndarray:
    """Write torchvision's GTSRB layout, images of several sizes; return the training labels."""
    base = top / "gtsrb" / "GTSRB"
    for number, count in enumerate((2, 3)):
        folder = base / "Training" / f"{number:05d}"
        folder.mkdir(parents=True)
        for n in range(count):
            Image.open(io.BytesIO(png(n, side=20 + n))).save(folder / f"{n}.ppm")
    images = base / "Final_Test" / "Images"
    images.mkdir(parents=True)
    Image.open(io.BytesIO(png(7, side=40))).save(images / "00000.ppm")
    (top / "gtsrb" / "GT-final_test.csv").write_text("Filename;Width;ClassId\n00000.ppm;40;1\n")
    return np.repeat([0, 1], [2, 3])


def write_mnist(top: Path) -> dict[str, np.ndarray]:
    """Write IDX files as LeCun's page defines them, in torchvision's place; return the arrays.

    Magic number: two zero bytes, the type (8: unsigned byte), the number of axes; then each
    length as a big-endian 32-bit integer, then the bytes in C order.
    """
    folder, draw, written = top / "MNIST" / "raw", np.random.default_rng(0), {}
    folder.mkdir(parents=True)
    for prefix, count in (("train", 9), ("t10k", 6)):
        parts = {
            "images-idx3": draw.integers(0, 256, (count, 28, 28), np.uint8),
            "labels-idx1": draw.integers(0, 10, count).astype(np.uint8),
        }
        for kind, values in parts.items():
            head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(head + values.tobytes())
            written[f"{prefix} {kind[:6]}"] = values
    return written


def test_mnist_reads_the_original_files_in_one_channel(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = make("mnist")
    assert parquet.label == "mnist [parquet of png]"
    assert parquet.decode()[0].images.shape[1:] == (1, 12, 12), "colors become one channel"
    first = identity(parquet)
    written = write_mnist(tmp_path / "cache" / "torchvision" / "mnist")
    monkeypatch.delenv("RAYSWEEP_DATA")
    dataset = make("mnist")
    assert dataset.label == "mnist [torchvision]" and identity(dataset) != first
    assert len(dataset.files()) == 4
    labels = dataset.read_labels()
    assert labels.classes == tuple("0123456789")
    given = (labels.train, labels.test)
    for part, mine, prefix in zip(dataset.decode(), given, ("train", "t10k"), strict=True):
        assert part.images.dtype == torch.uint8
        assert (part.images.numpy() == written[f"{prefix} images"][:, None]).all()
        assert (part.labels == written[f"{prefix} labels"]).all() and (mine == part.labels).all()
        assert mine.dtype == part.labels.dtype == np.int64


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "gtsrb"])
def test_torchvisions_copy_is_another_data_set(
    name: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = make(name)
    assert parquet.label == f"{name} [parquet of png]"
    first = identity(parquet)
    top = tmp_path / "cache" / "torchvision" / name
    classes = {"cifar10": 10, "cifar100": 100}.get(name, 0)
    expected = write_cifar(top, monkeypatch, classes) if classes else write_gtsrb(top)
    monkeypatch.delenv("RAYSWEEP_DATA")
    dataset = make(name)
    assert dataset == parquet and dataset.label == f"{name} [torchvision]"
    assert identity(dataset) != first
    labels, (train, test) = dataset.read_labels(), dataset.decode()
    assert (labels.train == expected).all() and (train.labels == expected).all()
    assert train.images.shape == (len(expected), 3, 32, 32) and (test.labels == labels.test).all()
    if classes:
        draw = np.random.default_rng(0)
        draw.integers(0, classes, 4)
        pixels = draw.integers(0, 256, (4, 3, 32, 32), np.uint8)
        assert (train.images[:4].numpy() == pixels).all()


@pytest.mark.parametrize("name", ["cifar10", "gtsrb", "mnist"])
def test_missing_published_data_say_where_they_were_looked_for(
    name: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{name}-test.parquet").unlink()
    with pytest.raises(PlanError, match=f"holds {name}-train.parquet but not {name}-test.parquet"):
        make(name).files()
    monkeypatch.setenv("RAYSWEEP_DATA", str(tmp_path / "typo"))
    with pytest.raises(PlanError, match=r"RAYSWEEP_DATA must name a folder, got '.*typo'"):
        make(name).files()
    monkeypatch.delenv("RAYSWEEP_DATA")
    # A file where the cache should be: the download fails before it looks for a network.
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "blocked"))
    with pytest.raises(PlanError, match=r"RAYSWEEP_DATA \(not set\) nor torchvision's download to"):
        make(name).files()


@pytest.mark.skipif("RAYSWEEP_DATA" not in os.environ, reason="RAYSWEEP_DATA names no folder")
@pytest.mark.parametrize(
    ("name", "source", "train", "test", "classes"),
    [
        ("cifar10", "parquet of jpeg", 50_000, 10_000, 10),
        ("gtsrb", "parquet of png", 39_209, 12_630, 43),
    ],
)
def test_published_files(name: str, source: str, train: int, test: int, classes: int) -> None:
    dataset: Dataset = methods.load("datasets", name)()  # type: ignore[assignment]
    assert dataset.source() == source
    labels = dataset.read_labels()
    assert (len(labels.train), len(labels.test), len(labels.classes)) == (train, test, classes)
    assert len(dataset.kept(labels)[1]) == 2000


def test_label_noise_spreads_over_the_other_classes(make: Any) -> None:
    labels = Labels(train=np.zeros(9000, np.int64), test=np.zeros(9, np.int64), classes=("a",) * 10)
    given = make("cifar10", label_noise=0.9).training_labels(labels, np.arange(9000))
    counts = np.bincount(given, minlength=10)
    assert counts[0] == 900 and abs(counts[1:] - 900).max() < 5 * 30


def test_a_long_tail_has_the_published_counts(make: Any) -> None:
    labels = Labels(train=np.arange(10_000) % 10, test=np.arange(100) % 10, classes=("a",) * 10)
    rows = make("cifar10", imbalance=100.0).kept(labels)[0]
    expected = [int(1000 * 100 ** (-c / 9)) for c in range(10)]
    assert np.bincount(labels.train[rows]).tolist() == expected and (np.diff(rows) > 0).all()
    fewer = make("cifar10", imbalance=100.0, size=500).kept(labels)[0]
    assert len(fewer) == 500 and set(fewer) < set(rows)
    assert len(make("cifar10").kept(labels)[0]) == 10_000


def test_plan_and_stage_see_the_same_labels(make: Any, tmp_path: Path) -> None:
    dataset = make("imagefolder", label_noise=0.4, imbalance=3.0)
    given = Inputs({}, Store(str(tmp_path / "store")), Context(seed=0))
    arrays = Decode(dataset=dataset, source=identity(dataset)).perform(given).arrays
    labels = dataset.read_labels()
    rows = dataset.kept(labels)[0]
    assert (arrays["train_labels"] == dataset.training_labels(labels, rows)).all()
    assert (arrays["test_labels"] == labels.test[dataset.kept(labels)[2]]).all()


def test_tiny_imagenet_reads_its_annotations(make: Any, tmp_path: Path) -> None:
    dataset = make("tiny_imagenet", side=12)
    labels = dataset.read_labels()
    assert labels.classes == ("goldfish", "ant, emmet", "bee")
    _, test = dataset.decode()
    files = [file.name for file in dataset.files()[15:]]
    for file, image, label in zip(files, test.images, test.labels, strict=True):
        number = int(file.removesuffix(".JPEG").removeprefix("val_"))
        pixels = np.asarray(Image.open(io.BytesIO(png(1000 + number)))).transpose(2, 0, 1)
        assert label == number % 3 and (image.numpy() == pixels).all()
    notes = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    notes.write_text("val_0.JPEG\tn99\t0\t0\t62\t62\n")
    with pytest.raises(PlanError, match=r"val_annotations\.txt, line 1: must name an image of val"):
        dataset.read_labels()
    notes.unlink()
    with pytest.raises(PlanError, match=r"val_annotations\.txt' is missing"):
        dataset.read_labels()


def test_imagenet_takes_a_list_of_classes_in_its_order(make: Any) -> None:
    whole, part = make("imagenet", side=16), make("imagenet", classes=("n02979186", "n01440764"))
    assert whole.read_labels().classes == ("n01440764", "n02102040", "n02979186")
    labels = part.read_labels()
    assert labels.classes == ("n02979186", "n01440764")
    assert labels.train.tolist() == [0] * 5 + [1] * 5
    assert part.files()[0].parent.name == "n02979186"
    assert make("imagenette").read_labels().classes[1] == "English springer"
    with pytest.raises(PlanError, match="n01440764 stand there twice"):
        make("imagenet", classes=("n01440764", "n01440764")).read_labels()
    with pytest.raises(PlanError, match="has no folder n999"):
        make("imagenet", classes=("n01440764", "n999")).read_labels()


def test_imagenet_cuts_the_middle_out(make: Any, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for wnid in ("n1", "n2"):
            folder = tmp_path / "bars" / split / wnid
            folder.mkdir(parents=True)
            bars = np.zeros((20, 40, 3), np.uint8)
            bars[:, 10:30] = 200  # only the middle square
            Image.fromarray(bars).save(folder / "0.png")
    train, _ = make("imagenet", path=str(tmp_path / "bars"), side=20).decode()
    assert (train.images == 200).all()


def test_npz_refuses_what_is_no_image_set(make: Any, tmp_path: Path) -> None:
    file = tmp_path / "user.npz"
    dataset = make("npz")
    first = dataset.decode()[0].images
    assert first.shape == (30, 3, 12, 12) and dataset.read_labels().classes == tuple(CLASSES)
    for other, fault in (
        ({"train_images": np.zeros((30, 12, 12, 3))}, "train_images must be uint8.* from 0 to 255"),
        ({"train_images": np.zeros((7, 12, 12, 3), np.uint8)}, "for 30 labels"),
        ({"train_images": np.array([{}] * 30)}, "cannot be read without pickle"),
    ):
        write_npz(file, **other)
        with pytest.raises(PlanError, match=fault):
            dataset.decode()
    for other, fault in (
        ({"train_labels": np.full(30, 3)}, "row 0 of train_images.* labels must be from 0 to 2"),
        ({"test_labels": np.linspace(0, 1, 20)}, "test_labels must be one whole number"),
    ):
        write_npz(file, **other)
        with pytest.raises(PlanError, match=fault):
            dataset.checked_labels()
    np.savez(file, train_labels=np.arange(3))
    with pytest.raises(PlanError, match="has no array 'test_labels', it has train_labels"):
        dataset.read_labels()
    file.write_bytes(b"junk")
    with pytest.raises(PlanError, match="cannot be read"):
        dataset.read_labels()


def test_ember_leaves_unlabeled_programs_out(make: Any, tmp_path: Path) -> None:
    dataset = make("ember")
    labels, (train, _) = dataset.read_labels(), dataset.decode()
    assert labels.classes == ("benign", "malware") and len(labels.train) == 30
    raw = np.fromfile(tmp_path / "ember" / "X_train.dat", np.float32).reshape(45, 7)
    assert (train.images[:2, :, 0, 0].numpy() == raw[[1, 2]]).all()
    assert train.labels[:4].tolist() == [0, 1, 0, 1]
    with pytest.raises(PlanError, match=r"must hold 8 features for each of 45 labels"):
        make("ember", features=8).decode()
    np.save(tmp_path / "ember" / "y_test.npy", np.array([0, 5]))
    (tmp_path / "ember" / "y_test.dat").unlink()
    with pytest.raises(PlanError, match=r"y_test\.npy: labels must be -1, 0 or 1"):
        dataset.read_labels()
    (tmp_path / "ember" / "X_train.dat").unlink()
    with pytest.raises(PlanError, match=r"path must hold X_train\.dat, X_train\.npy or Parquet"):
        dataset.files()


@pytest.mark.parametrize("part", [4, 4096])  # of 45 rows: in parts, and at once
def test_ember_from_parquet_is_ember_from_arrays(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr("raysweep.datasets.ember.PART", part)
    arrays = make("ember")
    top = tmp_path / "tables"
    top.mkdir()
    for split in ("train", "test"):
        values = np.fromfile(tmp_path / "ember" / f"X_{split}.dat", np.float32).reshape(-1, 7)
        columns = {f"F{n + 1}": values[:, n] for n in range(7)}
        columns["Label"] = np.fromfile(tmp_path / "ember" / f"y_{split}.dat", np.float32)
        pq.write_table(pa.table(columns), top / f"{split}_ember_2018_v2_features.parquet")
    tables = make("ember", path=str(top))
    assert (tables.read_labels().train == arrays.read_labels().train).all()
    for ours, theirs in zip(tables.decode(), arrays.decode(), strict=True):
        assert (ours.images == theirs.images).all() and (ours.labels == theirs.labels).all()
    with pytest.raises(PlanError, match="must have 8 columns beside Label, got 7"):
        make("ember", path=str(top), features=8).decode()
    file = top / "test_ember_2018_v2_features.parquet"
    pq.write_table(pa.table({"F1": [0.0]}), file)
    with pytest.raises(PlanError, match=r"features\.parquet: must have a column Label"):
        tables.read_labels()
    file.unlink()
    with pytest.raises(PlanError, match=r"must hold one train_ember.* has \[1, 0\]"):
        tables.files()
