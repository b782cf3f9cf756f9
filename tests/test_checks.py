"""Data are checked against each other before any training; a fault names its place."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raysweep import identity
from raysweep.datasets import Dataset
from raysweep.datasets.ember import Ember
from raysweep.datasets.imagefolder import ImageFolder
from raysweep.datasets.npz import Npz
from raysweep.datasets.parquet import Parquet
from raysweep.errors import FilesError, PlanError, SpecError
from raysweep.jobs.launch import launch
from raysweep.methods.context import Context
from raysweep.plan.fits import check_fits
from raysweep.plan.planner import Planner
from raysweep.reports.material import gather
from raysweep.run.preview import _forecasts, preview
from raysweep.stages.inputs import Inputs
from raysweep.stages.prepare import Decode
from raysweep.store import Store
from raysweep.sweep.loading import load_sweep

DRAW = np.random.default_rng(0)
SIDE = 8


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSWEEP_CACHE", str(tmp_path / "cache"))


def pixels(*shape: int) -> np.ndarray:
    return DRAW.integers(0, 256, shape, np.uint8)


def arrays(**other: Any) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for split, count in (("train", 30), ("test", 20)):
        given[f"{split}_images"] = pixels(count, SIDE, SIDE, 3)
        given[f"{split}_labels"] = np.arange(count) % 3
    return given | other


def checked(dataset: Dataset) -> Any:
    """Return labels and both sets as a plan's checks let them pass."""
    labels = dataset.checked_labels()
    return labels, *dataset.checked_images(labels)


def npz(folder: Path, **other: Any) -> Npz:
    np.savez(folder / "d.npz", **arrays(**other))
    return Npz(path=str(folder / "d.npz"))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"test_images": pixels(20, 12, 12, 3)}, "test images are 12 x 12 x 3, training .* 8 x 8"),
        ({"test_images": pixels(20, SIDE, SIDE, 1)}, "test images are 8 x 8 x 1, .* 8 x 8 x 3"),
        ({"test_images": pixels(20, SIDE, SIDE)}, "test images are 8 x 8 x 1"),
        ({"train_images": pixels(30, SIDE, SIDE, 4)}, "1 or 3 channels.* neither may be"),
        ({"train_images": pixels(30, 4, SIDE, SIDE)}, "1 or 3 channels.* neither may be"),
        ({"train_images": pixels(30, 3, SIDE, 3)}, "1 or 3 channels.* both may be"),
        ({"train_images": pixels(30, SIDE, SIDE, 3) / 255}, "must be uint8 .*got float64"),
        ({"train_images": pixels(30, SIDE, SIDE, 3).astype(np.int16)}, "must be uint8 .*got int16"),
        ({"train_labels": np.arange(30) % 3 + 1}, r"row \d+ of test_images.* class 0 has no train"),
        ({"train_labels": np.arange(30) % 2}, r"d\.npz: row 2 of test_images .* class 2 has no"),
        ({"train_labels": np.arange(30) % 3 * 2}, "class 1 has no training image, as 2 of 5"),
        ({"test_labels": np.arange(20) % 4}, "row 3 of test_images .* class 3 has no training"),
        ({"test_labels": np.arange(20) % 3 - 1}, r"row 0 of test_images .* got -1, and -1 to 1"),
        ({"train_labels": np.full(30, 65535, np.uint16)}, "label 65535 makes 65536 classes of 50"),
        ({"train_labels": np.full(30, 2**64 - 1, np.uint64)}, "18446744073709551615, which is no"),
        ({"train_labels": np.arange(30) % 3 * 1.0}, "must be one whole number for each image"),
        ({"train_labels": np.eye(3, dtype=int)[np.arange(30) % 3]}, r"take argmax\(1\) of one-hot"),
        ({"train_labels": np.arange(30)[:, None] % 3}, r"shape \(30, 1\); take ravel\(\)"),
        ({"train_labels": np.array(["a", "b", "c"] * 10)}, "save their names as the array classes"),
        ({"test_labels": np.arange(0)}, r"shape \(0,\); save at least one"),
        ({"train_labels": np.arange(29) % 3}, "for 29 labels; save one image for each label"),
        ({"train_images": pixels(30, 192)}, "with reshape or transpose"),
        ({"test_images": pixels(20, 8, 0, 3)}, "with reshape or transpose"),
        ({"classes": ["", "b", "c"]}, "class 0 must be named by a text, got ''"),
        ({"train_labels": np.zeros(30, int), "test_labels": np.zeros(20, int)}, "at least 2 class"),
        ({"classes": ["a", "b", "c", "d"]}, r"class 3 \('d'\) has no training image, as 1 of 4"),
        ({"classes": ["a", "b"]}, "labels must be from 0 to 1"),
        ({"classes": ["a", "b", "b"]}, "classes 1 and 2 are both named 'b'"),
        ({"classes": "abc"}, r"classes must be names of shape \(K,\), got <U3 of shape \(\)"),
        ({"classes": [["a", "b", "c"]]}, r"got <U1 of shape \(1, 3\)"),
        ({"classes": [0.5, 1, 2]}, r"classes must be names of shape \(K,\), got float64"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(
    other: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        checked(npz(tmp_path, **other))
    assert "d.npz" in str(caught.value) or "dataset npz" in str(caught.value)


def test_arrays_of_either_layout_and_names_of_any_kind_are_taken(tmp_path: Path) -> None:
    plain = arrays()
    for classes, names in (([b"cat", b"dog", b"cow"], ("cat", "dog", "cow")), ([7, 8, 9], "789")):
        labels, train, _ = checked(npz(tmp_path, **plain, classes=classes))
        assert labels.classes == tuple(names)
    swapped = {n: a.transpose(0, 3, 1, 2) for n, a in plain.items() if n.endswith("images")}
    assert (checked(npz(tmp_path, **(plain | swapped)))[1].images == train.images).all()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: b"", "is empty"),
        (lambda raw: raw[: len(raw) // 2], "was cut off"),
        (lambda raw: raw[:-9], "was cut off|cannot be read"),
        (lambda raw: b"\x93NUMPY" + raw, "is one array, not several|is no array|cannot be read"),
        (lambda raw: raw.replace(b"PK\x01\x02", b"PK\x01\x03", 1), "cannot be read"),
        (lambda raw: b"<html>", "is a web page"),
        (lambda raw: b"version https://git-lfs.github.com/spec/v1", "is a pointer of Git LFS"),
        (lambda raw: b"junk", r"is no \.npz file"),
        (lambda raw: raw[:200] + bytes(40) + raw[240:], "cannot be read"),
    ],
)
def test_damaged_npz_files_say_what_is_wrong(damage: Any, said: str, tmp_path: Path) -> None:
    dataset = npz(tmp_path)
    file = tmp_path / "d.npz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(PlanError, match=rf"d\.npz: .*({said})"):
        checked(dataset)


def test_an_array_that_stands_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    dataset = npz(tmp_path)
    with zipfile.ZipFile(tmp_path / "d.npz", "a") as archive, pytest.warns(UserWarning):
        archive.writestr("train_labels.npy", archive.read("test_labels.npy"))
    with pytest.raises(PlanError, match=r"d\.npz: has several arrays 'train_labels'"):
        checked(dataset)


def test_odd_entries_among_parquet_files_are_skipped_or_named(tmp_path: Path) -> None:
    shard(tmp_path / "train.parquet", [0, 1], None)
    shard(tmp_path / "test.parquet", [0, 1], None)
    (tmp_path / "._train.parquet").write_bytes(b"x")
    dataset = Parquet(path=str(tmp_path))
    assert len(checked(dataset)[1]) == 2
    (tmp_path / "train-2.parquet").symlink_to("gone")
    with pytest.raises(PlanError, match=r"train-2\.parquet, which matches .* is a broken link"):
        checked(dataset)
    (tmp_path / "train-2.parquet").unlink()
    (tmp_path / "train-2.parquet").mkdir()
    with pytest.raises(PlanError, match=r"train-2\.parquet, which matches .* is a folder; remove"):
        checked(dataset)


def test_class_names_by_number_are_names(tmp_path: Path) -> None:
    for split, names in (("train", {"1": "bee", "0": "ant"}), ("test", ["bee", "ant"])):
        shard(tmp_path / f"{split}.parquet", [0, 1], None)
        facts = {"info": {"features": {"label": {"names": names}}}}
        table = pq.read_table(tmp_path / f"{split}.parquet")
        table = table.replace_schema_metadata({"huggingface": json.dumps(facts)})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    found = Parquet(path=str(tmp_path)).checked_labels()
    assert found.classes == ("ant", "bee") and found.test.tolist() == [1, 0]


def shard(file: Path, labels: Any, names: list[Any] | None, side: int = SIDE) -> None:
    """Write a Parquet file of images whose brightness is their true class."""
    truth = [names[label % len(names)] if names else label for label in labels]
    images = [png(np.full((side, side, 3), 40 * "abc".find(str(one)) + 90)) for one in truth]
    table = pa.table({"img": images, "label": labels})
    if names is not None:
        facts = {"info": {"features": {"label": {"names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(facts)})
    pq.write_table(table, file)


def png(values: Any, form: str = "PNG", **given: Any) -> bytes:
    buffer = io.BytesIO()
    image = values if isinstance(values, Image.Image) else Image.fromarray(values.astype(np.uint8))
    image.save(buffer, form, **given)
    return buffer.getvalue()


def test_classes_of_parquet_files_are_mapped_by_name(tmp_path: Path) -> None:
    rows = [0, 1, 2] * 8
    shard(tmp_path / "train-0.parquet", rows, ["a", "b", "c"])
    shard(tmp_path / "train-1.parquet", rows, ["c", "a", "b"])
    shard(tmp_path / "test.parquet", rows, ["b", "c", "a"])
    labels, train, test = checked(Parquet(path=str(tmp_path)))
    assert labels.classes == ("a", "b", "c")
    for part in (train, test):
        brightness = part.images[:, 0, 0, 0].numpy().astype(int)
        assert ((brightness - 90) // 40 == part.labels).all()
    assert labels.train.tolist() == rows + [2, 0, 1] * 8


@pytest.mark.parametrize(
    ("names", "labels", "said"),
    [
        (["a", "b", "c", "d"], [0, 1, 2, 3], "names 4 classes, .* 3; 'd' stands in one list alone"),
        (["a", "b", "x"], [0, 1, 2], "'c', 'x' stand in one list alone"),
        (None, [0, 1, 2], r"test\.parquet: names no classes, but train-0\.parquet does"),
        (["a", "b", "c"], [0, 1, 7], r"test\.parquet, row 2: labels must be from 0 to 2.* got 7"),
        (["a", "b", "b"], [0, 1, 2], "classes 1 and 2 are both named 'b'"),
        ([1.5, "b", "c"], [0, 1, 2], "class 0 must be named by a text, got 1.5"),
    ],
)
def test_class_lists_that_disagree_are_refused(
    names: Any, labels: list[int], said: str, tmp_path: Path
) -> None:
    shard(tmp_path / "train-0.parquet", [0, 1, 2], ["a", "b", "c"])
    shard(tmp_path / "test.parquet", labels, names)
    with pytest.raises(PlanError, match=said):
        checked(Parquet(path=str(tmp_path)))


def test_parquet_splits_of_other_sizes_and_slipped_numbers_are_refused(tmp_path: Path) -> None:
    shard(tmp_path / "train.parquet", [0, 1, 2], None)
    shard(tmp_path / "test.parquet", [0, 1, 2], None, side=12)
    with pytest.raises(PlanError, match=r"test\.parquet, row 0: test images are 12 x 12 x 3"):
        checked(Parquet(path=str(tmp_path)))
    shard(tmp_path / "test.parquet", [0, 1, 255], None)
    with pytest.raises(PlanError, match="label 255 makes 256 classes of 6 images"):
        checked(Parquet(path=str(tmp_path)))
    shard(tmp_path / "test.parquet", [0, 1, 2], None)
    raw = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(raw[:60] + bytes(80) + raw[140:])
    with pytest.raises(PlanError, match=r"train\.parquet.*(cannot be|must)"):
        checked(Parquet(path=str(tmp_path)))


def tables(top: Path, **columns: Any) -> Ember:
    """Write both tables, the columns of the test table in another order."""
    values = {f"f{n}": DRAW.normal(size=30).astype(np.float32) for n in range(3)} | columns
    labels = np.arange(30) % 2
    pq.write_table(pa.table(values | {"Label": labels}), top / "train_ember_x.parquet")
    backwards = {name: values[name] for name in reversed(values)}
    pq.write_table(pa.table({"Label": labels} | backwards), top / "test_ember_x.parquet")
    return Ember(path=str(top), features=len(values))


def test_columns_of_feature_tables_are_taken_by_name(tmp_path: Path) -> None:
    _, train, test = checked(tables(tmp_path))
    assert (train.images == test.images).all()


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([0.0] * 29 + [None], r"x\.parquet, row 29, column 'more': must be a finite .* got nan"),
        ([float("inf")] * 30, "row 0, column 'more': must be a finite number .* got inf"),
        (np.full(30, 1e300), "row 0, column 'more': must be a finite number .* got inf"),
        (["text"] * 30, "column 'more': must hold numbers, got string"),
    ],
)
def test_features_that_are_no_numbers_are_refused(column: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=said):
        checked(tables(tmp_path, more=column))


def test_tables_of_other_columns_are_refused(tmp_path: Path) -> None:
    dataset = tables(tmp_path)
    file = tmp_path / "test_ember_x.parquet"
    pq.write_table(pq.read_table(file).rename_columns(["Label", "f2", "f1", "g"]), file)
    with pytest.raises(PlanError, match=r"test_ember_x\.parquet: .*'f0', 'g' stand in one of them"):
        checked(dataset)


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("X_test", np.full((20, 3), np.nan), r"X_test\.npy, row 0, feature 0: .*got nan"),
        ("X_test", np.ones((3, 20)), r"X_test\.npy: must hold 3 features .*shape \(3, 20\)"),
        ("X_test", np.ones(60), r"X_test\.npy: must hold 3 features .*shape \(60,\)"),
        ("X_test", np.ones((20, 3), complex), "must hold one array of real numbers, got complex"),
        ("y_test", np.full(20, 0.5), r"y_test\.npy: labels must be -1, 0 or 1 .*0\.5.* in row 0"),
        ("y_test", np.full(20, np.nan), "labels must be -1, 0 or 1 .*nan.* in row 0"),
        ("y_test", np.zeros((20, 1)), r"labels must be .* got shape \(20, 1\)"),
        ("y_train", np.zeros(20), r"class 1 \('malware'\) has no training image"),
    ],
)
def test_arrays_of_features_are_not_bent_into_shape(
    name: str, array: Any, said: str, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        np.save(tmp_path / f"X_{split}.npy", DRAW.normal(size=(20, 3)))
        np.save(tmp_path / f"y_{split}.npy", np.arange(20) % 2)
    assert checked(Ember(path=str(tmp_path), features=3))
    np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(PlanError, match=said):
        checked(Ember(path=str(tmp_path), features=3))


def folder(top: Path, classes: tuple[str, ...] = ("0", "1", "2")) -> ImageFolder:
    for split in ("train", "test"):
        for name in classes:
            (top / split / name).mkdir(parents=True)
            for n in range(4):
                (top / split / name / f"{n}.png").write_bytes(png(pixels(SIDE, SIDE, 3)))
    return ImageFolder(path=str(top), side=SIDE)


@pytest.mark.parametrize(
    "entry",
    [".ipynb_checkpoints/0.png", "__MACOSX/0/._0.png", ".DS_Store", "Thumbs.db", "@eaDir/0.png",
     "0/._0.png", "0/.hidden/0.png", "0/0.png~", "0/desktop.ini", "1/__pycache__/0.png",
     "$RECYCLE.BIN/0.png", "lost+found/0.png"],
)  # fmt: skip
def test_hidden_system_and_editors_entries_are_skipped(entry: str, tmp_path: Path) -> None:
    dataset = folder(tmp_path)
    for split in ("train", "test"):
        file = tmp_path / split / entry
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(pixels(SIDE, SIDE, 3)))
    labels, train, _ = checked(dataset)
    assert labels.classes == ("0", "1", "2") and len(train) == 12 and not dataset.caution()


@pytest.mark.parametrize(
    "entry", ["a.tif", "a.TIFF", "a.pgm", "a.gif", "a.jfif", "a.jp2", "camera/two/a.png", "a.webp"]
)
def test_every_suffix_that_pillow_reads_counts_and_subfolders_too(
    entry: str, tmp_path: Path
) -> None:
    dataset = folder(tmp_path)
    file = tmp_path / "train" / "1" / entry
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(SIDE, SIDE, 3)).save(file)
    labels, train, _ = checked(dataset)
    assert len(train) == 13 and (labels.train == 1).sum() == 5 and not dataset.caution()
    (tmp_path / "train" / "1" / "notes.txt").write_text("taken in May")
    (tmp_path / "train" / "list.csv").write_text("")
    (tmp_path / "test" / "loose.png").write_bytes(png(pixels(SIDE, SIDE, 3)))
    assert dataset.caution().startswith("3 files that are in no folder of a class, or whose suffix")


def broken(at: Path) -> None:
    at.symlink_to(at.parent / "nowhere")


def looped(at: Path) -> None:
    at.symlink_to(at.parent.parent)


@pytest.mark.parametrize(
    ("make", "entry", "said"),
    [
        (broken, "train/1/x.png", r"train/1/x\.png: is a broken link"),
        (broken, "train/x", "train/x: is a broken link"),
        (lambda at: at.symlink_to(at), "train/1/x.png", "is a broken link"),
        (looped, "train/1/x", "train/1/x/.*: is a link to a folder that it lies in"),
        (os.mkfifo, "test/1/x.png", "is neither a file nor a folder"),
        (lambda at: at.write_bytes(b""), "test/1/x.png", r"x\.png: cannot be decoded .* is empty"),
        (lambda at: at.write_bytes(b"<html>"), "test/1/x.jpg", r"x\.jpg: .* it is a web page"),
        (
            lambda at: at.write_bytes(b"GIF8"),
            "test/1/x.gif",
            r"cut off .*\(cannot identify image file\)",
        ),
        (lambda at: at.write_bytes(b"version https://git-lfs.x"), "test/1/x.gif", "git lfs pull"),
        (Path.mkdir, "train/3", "train/3' holds no image|lacks"),
    ],
)
def test_odd_entries_are_named(make: Any, entry: str, said: str, tmp_path: Path) -> None:
    dataset = folder(tmp_path)
    make(tmp_path / entry)
    with pytest.raises(PlanError, match=said):
        checked(dataset)


def test_names_are_one_whichever_signs_they_are_written_in(tmp_path: Path) -> None:
    """An é is one sign on most systems, and two on a Mac and in what was packed there."""
    one, two = "\u00e9", "e\u0301"
    labels, *_ = checked(folder(tmp_path / "one", (one, "f", "z")))
    mixed = folder(tmp_path / "mixed", (one, "f", "z"))
    (tmp_path / "mixed" / "train" / one).rename(tmp_path / "mixed" / "train" / two)
    assert checked(mixed)[0].classes == labels.classes == ("f", "z", one)
    (tmp_path / "mixed" / "train" / one).mkdir()
    with pytest.raises(PlanError, match=r"two folders .* 'e\\u0301' and '\\xe9'"):
        checked(mixed)
    (tmp_path / "files").mkdir()
    shard(tmp_path / "files" / "train.parquet", [0, 1], [one, "f"])
    shard(tmp_path / "files" / "test.parquet", [0, 1], ["f", two])
    found = Parquet(path=str(tmp_path / "files")).checked_labels()
    assert found.classes == (one, "f") and found.test.tolist() == [1, 0]


def test_a_linked_class_folder_counts(tmp_path: Path) -> None:
    dataset = folder(tmp_path / "real")
    (tmp_path / "real" / "train" / "2").rename(tmp_path / "elsewhere")
    (tmp_path / "real" / "train" / "2").symlink_to(tmp_path / "elsewhere")
    assert len(checked(dataset)[1]) == 12


def test_a_flat_folder_and_other_names_of_splits_get_the_remedy(tmp_path: Path) -> None:
    folder(tmp_path / "a")
    with pytest.raises(PlanError, match=r"holds images themselves, '0\.png' first; put the images"):
        (tmp_path / "a" / "flat" / "train").mkdir(parents=True)
        (tmp_path / "a" / "flat" / "train" / "0.png").write_bytes(png(pixels(SIDE, SIDE, 3)))
        checked(ImageFolder(path=str(tmp_path / "a" / "flat")))
    (tmp_path / "a" / "test").rename(tmp_path / "a" / "val")
    with pytest.raises(PlanError, match=r"test' is not there; .* holds 'flat', 'train', 'val'"):
        checked(ImageFolder(path=str(tmp_path / "a")))


def picture(mode: str) -> bytes:
    return png(Image.fromarray(pixels(SIDE, SIDE, 4)).convert(mode))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (picture("RGBA"), "has transparent pixels"),
        (picture("LA"), "has transparent pixels"),
        (png(Image.new("P", (SIDE, SIDE)), transparency=b"\0"), "has transparent pixels"),
        (png(Image.new("RGB", (SIDE, SIDE)), transparency=(0, 0, 0)), "has transparent pixels"),
        (png(Image.new("I;16", (SIDE, SIDE), 900)), "more than 8 bits each"),
        (png(Image.new("F", (SIDE, SIDE), 0.5), "TIFF"), "more than 8 bits each"),
        (png(Image.new("L", (SIDE, SIDE)), "GIF", save_all=True,
             append_images=[Image.new("L", (SIDE, SIDE), 9)]), "holds 2 pictures"),
    ],
)  # fmt: skip
def test_what_grey_or_rgb_cannot_hold_is_refused(raw: bytes, said: str, tmp_path: Path) -> None:
    dataset = folder(tmp_path)
    (tmp_path / "test" / "0" / "0.png").write_bytes(raw)
    with pytest.raises(PlanError, match=rf"test/0/0\.png: .*{said}"):
        checked(dataset)


def test_opaque_alpha_is_nothing_lost(tmp_path: Path) -> None:
    dataset = folder(tmp_path)
    plain = Image.fromarray(pixels(SIDE, SIDE, 3))
    (tmp_path / "train" / "0" / "0.png").write_bytes(png(plain.convert("RGBA")))
    first = checked(dataset)[1].images[0].numpy()
    assert (first == np.asarray(plain).transpose(2, 0, 1)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_images_are_turned_as_exif_says(orientation: int, form: str, tmp_path: Path) -> None:
    upright = pixels(SIDE, SIDE, 3)
    a = upright
    stored = {
        1: a, 2: a[:, ::-1], 3: a[::-1, ::-1], 4: a[::-1], 5: a.transpose(1, 0, 2),
        6: np.rot90(a, 1), 7: a[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(a, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    given = {"lossless": True} if form == "WEBP" else {}
    raw = png(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif, **given)
    dataset = folder(tmp_path)
    (tmp_path / "train" / "0" / "0.png").write_bytes(raw)
    assert (checked(dataset)[1].images[0].numpy().transpose(1, 2, 0) == upright).all()


def sweep(folder: Path, dataset: str, attack: str = "badnets: {rate: 0.2}") -> Any:
    file = folder / "sweep.yaml"
    file.write_text(f"name: s\ndataset: {dataset}\nmodel: tiny_cnn\nrecipe: {{epochs: 1}}\n"
                    f"attacks: [{attack}]\ndefenses: [none]\n")  # fmt: skip
    planner = Planner(load_sweep(file))
    for trial in planner.trials:
        planner.setting(trial)
    return planner


def test_a_plan_checks_the_pixels_and_a_stage_checks_them_again(tmp_path: Path) -> None:
    dataset = npz(tmp_path, train_images=pixels(30, SIDE, SIDE, 3) / 255)
    with pytest.raises(PlanError, match="train_images must be uint8"):
        sweep(tmp_path, "{npz: {path: d.npz}}")
    stage = Decode(dataset=dataset, source=identity.digest("any"))
    given = Inputs({}, Store(str(tmp_path / "store")), Context(seed=0))
    with pytest.raises(FilesError, match="differ from those that were planned"):
        stage.perform(given)
    source = dataset.source_digest(dataset.read_labels())
    with pytest.raises(FilesError, match="train_images must be uint8"):
        Decode(dataset=dataset, source=source).perform(given)


def test_the_targets_folder_is_named_and_must_hold_images(tmp_path: Path) -> None:
    folder(tmp_path, ("0", "1", "2", "10"))
    given = f"{{imagefolder: {{path: {tmp_path}, side: 8}}}}"
    said = _forecasts(sweep(tmp_path, given, "badnets: {rate: 0.2, target: 2}"), "")
    assert any("target 2 is folder '10'" in sentence for sentence in said)
    assert not any("target" in s for s in _forecasts(sweep(tmp_path, given), ""))
    few = f"{{imagefolder: {{path: {tmp_path}, side: 8, size: 2}}}}"
    with pytest.raises((PlanError, SpecError), match=r"target .* has no image among the 2 "):
        for target in range(4):
            sweep(tmp_path, few, f"badnets: {{rate: 0.5, target: {target}}}")


def test_the_page_names_the_targets_folder_and_a_plan_tells_of_changed_files(
    tmp_path: Path,
) -> None:
    folder(tmp_path, ("0", "1", "2", "10"))
    file = tmp_path / "sweep.yaml"
    text = f"""
name: s
dataset: {{imagefolder: {{path: {tmp_path}, side: 8, clean_size: 4}}}}
model: linear
recipe: {{epochs: 1}}
attacks: [none, badnets: {{rate: [0, 0.2], target: 2, size: 2}}]
defenses: [none]
track: {{wandb: disabled}}
"""
    file.write_text(text)
    done = launch(load_sweep(file), text, str(tmp_path / "store"), inline=True)
    said = "target 2 is folder '10'"
    (note,) = [one for one in gather("s", str(tmp_path / "store")).notes if "target" in one]
    assert note.endswith(f": {said}") and note in done.notes
    page = Path(done.report).read_text("utf-8")
    assert page.count(f": {said}") + page.count(f": {said}".replace("'", "&#39;")) == 1
    # A plan says that the files have changed since.
    changed = "its files are not those that the records of 20"
    store = Store(str(tmp_path / "store"))
    assert not [one for one in preview(load_sweep(file), store).forecasts if changed in one]
    (tmp_path / "train" / "1" / "0.png").write_bytes(png(pixels(SIDE, SIDE, 3)))
    planned = preview(load_sweep(file), store)
    assert len([one for one in planned.forecasts if changed in one]) == 1
    assert str(planned.kinds[0].nearest) == "the files of the dataset are others"


LARGE = "files are larger than -1 MiB: the plan looks at labels and first images alone"


def test_of_large_data_a_plan_looks_at_the_first_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (Npz, Parquet, ImageFolder):
        monkeypatch.setattr(kind, "AT_PLAN", -1)
    npz(tmp_path, test_images=pixels(20, 12, 12, 3))
    with pytest.raises(PlanError, match="test images are 12 x 12 x 3, training images 8 x 8 x 3"):
        sweep(tmp_path, "{npz: {path: d.npz}}")
    npz(tmp_path, train_images=pixels(30, SIDE, SIDE, 3).astype(np.int16))
    with pytest.raises(PlanError, match=r"must be uint8 .*got int16"):
        sweep(tmp_path, "{npz: {path: d.npz}}")
    npz(tmp_path, train_images=pixels(30, SIDE, SIDE))
    with pytest.raises(PlanError, match="test images are 8 x 8 x 3, training images 8 x 8 x 1"):
        sweep(tmp_path, "{npz: {path: d.npz}}")
    npz(tmp_path)
    planned = sweep(tmp_path, "{npz: {path: d.npz}}", "badnets: {rate: 0.2, size: 9}")
    assert any(LARGE in sentence for sentence in _forecasts(planned, ""))
    with pytest.raises(PlanError, match=r"size .* must fit the image, got 9 .* on 8 x 8"):
        check_fits(planned)
    (tmp_path / "files").mkdir()
    shard(tmp_path / "files" / "train.parquet", [0, 1, 0, 1], None)
    shard(tmp_path / "files" / "test.parquet", [0, 1] * 6, None, side=12)
    with pytest.raises(PlanError, match=r"test\.parquet, row 0: test images are 12 x 12 x 3"):
        sweep(tmp_path, "{parquet: {path: files}}")
    folder(tmp_path / "images")
    (tmp_path / "images" / "train" / "1" / "2.png").write_bytes(b"")
    with pytest.raises(PlanError, match=r"train/1/2\.png: is empty"):
        sweep(tmp_path, "{imagefolder: {path: images, side: 8}}")


def test_a_file_rewritten_with_the_same_size_and_time_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "RECENT_NS", -1)  # as if both writes were long ago
    file = tmp_path / "data"
    seen = []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        os.utime(file, ns=(10**18, 10**18))
        seen += [identity.files_digest([file]), identity.files_digest([file])]
    assert seen[0] == seen[1] != seen[2] == seen[3]


def test_a_file_that_has_just_changed_is_read_each_time(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"one")
    identity.files_digest([file])
    assert not (tmp_path / "cache" / "digests.json").exists()
