"""Other projects' files in every form: taken in as they are meant, or refused with the reason."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raysweep.attacks.imported import Imported
from raysweep.errors import FilesError, PlanError
from raysweep.exchange import backdoorbench, new_folder, toolbox
from raysweep.exchange.folder import read_foreign, save
from raysweep.exchange.untrusted import read_untrusted, weights

ROWS = (2, 5, 7)
SIDE = 6


def record(top: Path, **changed: Any) -> Path:
    """Write a record of three poisoned images of a grey set of ten, changed by `part.entry`."""
    folder = top / "digits_net_badnet_0_3"
    entries = {}
    for row in ROWS:
        file = folder / "bd_train_dataset" / "1" / f"{row}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((SIDE, SIDE), row, np.uint8)).save(file)
        entries[row] = {"path": f"./record/x/bd_train_dataset/1/{row}.png", "other_info": [0, 1]}
    part = {
        "bd_data_container": {"data_dict": entries},
        "original_index_array": np.arange(10),
        "poison_indicator": np.isin(np.arange(10), ROWS).astype(float),
    }
    empty = {"bd_data_container": {"data_dict": {}}, "original_index_array": np.arange(0),
             "poison_indicator": np.zeros(4)}  # fmt: skip
    result = {
        "num_classes": 3, "img_size": (SIDE, SIDE, 1), "clean_data": "digits", "model": None,
        "bd_train": part, "bd_test": empty,
    }  # fmt: skip
    for name, value in changed.items():
        (result if name in result else part)[name] = value
    torch.save(result, folder / "attack_result.pt")
    torch.save({"attack": "badnet", "pratio": 0.3}, folder / "info.pickle")
    return folder


def bench(folder: Path) -> Any:
    return read_foreign(backdoorbench.read, folder)


def one_hot(label: int) -> Any:
    return torch.eye(3)[label]


@pytest.mark.parametrize(
    "labels", [[0, 1], (0.0, 1.0), np.array([0, 1]), torch.tensor([0, 1]),
               [torch.tensor(0), torch.tensor(1)], [one_hot(0), one_hot(1)],
               [[1, 0, 0], [0, 1, 0]]],
)  # fmt: skip
def test_labels_of_any_form_are_the_same(labels: Any, tmp_path: Path) -> None:
    folder = record(tmp_path)
    result = torch.load(folder / "attack_result.pt", weights_only=False)
    for entry in result["bd_train"]["bd_data_container"]["data_dict"].values():
        entry["other_info"] = labels
    torch.save(result, folder / "attack_result.pt")
    foreign = bench(folder)
    assert foreign.poison_labels.tolist() == [0] * 3 and foreign.known_labels.tolist() == [1] * 3
    assert foreign.poison_images[:, 0, 0, 0].tolist() == list(ROWS)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0.5, 1], "labels must be whole numbers"),
        ([-1, 1], "labels must be whole numbers from 0"),
        ([float("nan"), 1], "labels must be whole numbers"),
        ([3, 1], r"has labels \[3, 1\], but the record has 3 classes"),
        ([[1, 1, 0], [0, 1, 0]], "or one-hot rows"),
        (["0", "1"], "labels must be whole numbers"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: Any, said: str, tmp_path: Path) -> None:
    folder = record(tmp_path)
    result = torch.load(folder / "attack_result.pt", weights_only=False)
    result["bd_train"]["bd_data_container"]["data_dict"][5]["other_info"] = labels
    torch.save(result, folder / "attack_result.pt")
    with pytest.raises(PlanError, match=said):
        bench(folder)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"original_index_array": np.array([2, 5, -3])}, "indices must be whole numbers from 0 to"),
        ({"original_index_array": np.array([2, 5, 10])}, "indices must be whole numbers from 0 to"),
        ({"original_index_array": np.array([2, 5, 5])}, "indices must be distinct"),
        ({"original_index_array": np.array([2.5, 5])}, "indices must be whole numbers"),
        ({"poison_indicator": np.full(10, np.nan)}, "poison_indicator of bd_train must hold"),
        ({"poison_indicator": np.ones((10, 1))}, "poison_indicator of bd_train must hold"),
        ({"img_size": (SIDE, 7, 1)}, r"img_size says \(1, 6, 7\)"),
        ({"img_size": None}, "is not of this format"),
        ({"num_classes": None}, "is not of this format"),
        ({"model": [1, 2]}, "a victim must be a state dict"),
    ],
)
def test_rows_and_facts_that_do_not_fit_are_refused(
    changed: Any, said: str, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        save(bench(record(tmp_path, **changed)), tmp_path / "taken")
    assert str(tmp_path) in str(caught.value) and not (tmp_path / "taken").exists()


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.new("RGB", (SIDE, SIDE), (9, 0, 0)), "img_size says"),
        (Image.new("LA", (SIDE, SIDE)), "has transparent pixels"),
        (Image.new("I;16", (SIDE, SIDE)), "more than 8 bits"),
        (None, "is not there|cannot be decoded"),
    ],
)
def test_pictures_that_lose_something_are_refused(image: Any, said: str, tmp_path: Path) -> None:
    folder = record(tmp_path)
    file = folder / "bd_train_dataset" / "1" / "5.png"
    image.save(file) if image else file.unlink()
    with pytest.raises(PlanError, match=said):
        bench(folder)


def state() -> dict[str, torch.Tensor]:
    return {"conv.weight": torch.ones(2, 3), "conv.bias": torch.zeros(2), "n": torch.tensor(7)}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state().items()}


@pytest.mark.parametrize(
    "given",
    [
        prefixed("module."), prefixed("_orig_mod."), prefixed("module." * 3),
        prefixed("_orig_mod.module._orig_mod.module."),
        {"conv._orig_mod.weight": torch.ones(2, 3), "conv._orig_mod.bias": torch.zeros(2),
         "n": torch.tensor(7)},
        {"state_dict": state(), "epoch": 3}, {"a": {"b": {"model": state(), "best": 0.9}}},
        {"net": state(), "optimizer": {"state": {0: {"step": torch.ones(1)}}, "lr": 0.1}},
        {"x": {"net": state()}, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
        OrderedDict(state()), {n: t.numpy() for n, t in state().items()},
        {n: torch.nn.Parameter(t, requires_grad=t.is_floating_point()) for n, t in state().items()},
        {n: t.half() if t.is_floating_point() else t for n, t in state().items()},
        {n: t.bfloat16() if t.is_floating_point() else t for n, t in state().items()},
        {n: t.to(torch.float8_e5m2) if t.is_floating_point() else t for n, t in state().items()},
    ],
)  # fmt: skip
def test_weights_of_any_form_are_the_same(given: Any, tmp_path: Path) -> None:
    torch.save(given, tmp_path / "w.pt")
    taken = weights(read_untrusted(tmp_path / "w.pt"), tmp_path / "w.pt")
    assert list(taken) == list(state())
    assert all((taken[name] == tensor.numpy()).all() for name, tensor in state().items())


def test_a_network_whose_part_is_called_module_keeps_its_names() -> None:
    given = {"module.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert list(weights(given, Path("w"))) == list(given)


@pytest.mark.parametrize("given", [None, {}])
def test_absent_weights_are_none(given: Any, tmp_path: Path) -> None:
    assert bench(record(tmp_path, model=given)).state == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"net": state(), "ema": state()}, "with 2 of them"),
        ({"epoch": 3}, "with 0 of them"),
        ({"w": torch.tensor([torch.nan])}, "tensor 'w' of the victim must hold finite"),
        ({"w": torch.ones(1, dtype=torch.complex64)}, "must hold finite real numbers"),
        ({"w": torch.ones(2).to_sparse()}, "must hold plain tensors of real numbers"),
        ({"w": torch.ones(2, device="meta")}, "must hold plain tensors of real numbers"),
        ({"w": torch.ones(1), "_orig_mod.w": torch.ones(1)}, "have one name without _orig_mod"),
    ],
)
def test_weights_that_may_mean_anything_are_refused(given: Any, said: str) -> None:
    with pytest.raises(PlanError, match=rf"w\.pt: .*{said}"):
        weights(given, Path("w.pt"))


CUT = "cut off"
UNSAFE = "holds more than tensors, arrays and plain values"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: raw[: len(raw) // 2], CUT), (lambda raw: raw[:-20], CUT),
        (lambda raw: raw[:3], CUT), (lambda raw: b"", CUT), (lambda raw: bytes(300), CUT),
        (lambda raw: b"<!DOCTYPE html>\n<html>", "is a web page"),
        (lambda raw: b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS"),
        (lambda raw: pickle.dumps({"a": Path()}), UNSAFE),
    ],
)  # fmt: skip
@pytest.mark.parametrize("zipped", [True, False])
def test_a_cut_download_is_told_from_an_unsafe_file(
    damage: Any, said: str, zipped: bool, tmp_path: Path
) -> None:
    file = tmp_path / "w.pt"
    torch.save(state(), file, _use_new_zipfile_serialization=zipped)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(PlanError, match=rf"w\.pt: .*{said}") as caught:
        read_untrusted(file)
    assert (UNSAFE in str(caught.value)) == (said == UNSAFE) and "\n" not in str(caught.value)


def test_programs_are_unsafe_however_they_are_saved(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pt")
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / "script.pt"))
    for name in ("module.pt", "script.pt"):
        with pytest.raises(PlanError, match=UNSAFE):
            read_untrusted(tmp_path / name)


def toolbox_set(top: Path, **files: Any) -> Path:
    folder = top / "digits" / "badnet_0.300_poison_seed=0"
    folder.mkdir(parents=True)
    given = {"imgs": torch.rand(10, 1, SIDE, SIDE), "labels": torch.tensor([0, 1] * 5),
             "poison_indices": [2, 4]} | files  # fmt: skip
    for name, value in given.items():
        torch.save(value, folder / name.replace("__", "=").replace("_pt", ".pt"))
    return folder


@pytest.mark.parametrize(
    "files",
    [
        {"poison_indices": torch.tensor([4, 2])}, {"poison_indices": np.array([2.0, 4.0])},
        {"poison_indices": np.isin(np.arange(10), [2, 4])},
        {"poison_indices": torch.isin(torch.arange(10), torch.tensor([2, 4]))},
        {"labels": [0, 1] * 5}, {"labels": torch.tensor([0.0, 1.0] * 5)},
        {"labels": torch.eye(2)[[0, 1] * 5]}, {"labels": np.eye(2, dtype=bool)[[0, 1] * 5]},
        {"cover_indices": []}, {"labels": torch.tensor([0.0, 1.0] * 5).bfloat16()},
    ],
)  # fmt: skip
def test_rows_and_labels_of_the_toolbox_in_any_form(files: Any, tmp_path: Path) -> None:
    foreign = read_foreign(toolbox.read, toolbox_set(tmp_path, **files))
    assert foreign.poison_rows.tolist() == [2, 4] and foreign.target == 0
    assert foreign.known_labels.tolist() == [0, 1, 1, 1, 0, 1, 0, 1]
    assert (foreign.attack, foreign.rate) == ("badnet", 0.3)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"poison_indices": [2, 2]}, "indices must be distinct"),
        ({"poison_indices": [-1, 2]}, "indices must be whole numbers from 0 to 9"),
        ({"poison_indices": [2.5]}, "indices must be whole numbers"),
        ({"poison_indices": ["2"]}, "indices must be whole numbers"),
        ({"poison_indices": {"a": 1}}, "indices must be whole numbers"),
        ({"cover_indices": [2, 3]}, "row 2 is both a poison and a cover"),
        ({"labels": [0.5] * 10}, "labels must be whole numbers.* save one whole number"),
        ({"imgs": torch.rand(10, 1, SIDE, SIDE) + 0j}, "imgs: must be a dense tensor .* real num"),
        ({"labels": torch.ones(10, 2)}, "or one-hot rows"),
        ({"labels": [0, 1] * 4}, "one image for each of 8 labels"),
        ({"full_base_aug_seed__1_pt": state(), "full_base_aug_seed__2_pt": state()}, "2 victims, "),
    ],
)
def test_sets_of_the_toolbox_that_do_not_fit_are_refused(
    files: Any, said: str, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=said):
        save(read_foreign(toolbox.read, toolbox_set(tmp_path, **files)), tmp_path / "taken")
    assert not (tmp_path / "taken").exists()


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "to") as folder:
        (folder / "part").write_text("")
        assert not (tmp_path / "to").exists(), "a process that is killed here leaves no folder"
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for place, said in (("file", "is there already"), ("file/to", "cannot be made")):
        with pytest.raises(PlanError, match=said), new_folder(tmp_path / place):
            pass


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"), ("[]", "must hold a mapping, got list"), ("{}", "format is None"),
        ('"\\ud800"', "must hold a mapping"), ("[" * 9999, "recursion|Expecting"),
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_one_message(text: str, said: str, tmp_path: Path) -> None:
    path = save(bench(record(tmp_path)), tmp_path / "taken")
    assert Imported(path=str(path), trigger="badnets").origin() == ("badnet", 0.3, 0.0)
    (path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=rf"folder that `raysweep import` wrote.*({said})"):
        Imported(path=str(path), trigger="badnets")


@pytest.mark.parametrize(
    ("name", "value"),
    [("train_total", 0), ("train_total", "10"), ("poison", -1), ("poison", 11), ("target", "a"),
     ("sources", 3), ("victim", None), ("format", 2), ("mean", "0.5")],
)  # fmt: skip
def test_an_entry_of_the_manifest_that_is_wrong_is_named(
    name: str, value: Any, tmp_path: Path
) -> None:
    path = save(bench(record(tmp_path)), tmp_path / "taken")
    manifest = json.loads((path / "manifest.json").read_text()) | {name: value}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=rf"manifest\.json: ({name} is|11 of 10 images)"):
        Imported(path=str(path), trigger="badnets")


def test_a_folder_that_lacks_a_file_or_holds_a_damaged_one_is_named(tmp_path: Path) -> None:
    from raysweep.attacks._foreign import arrays_of

    path = save(bench(record(tmp_path)), tmp_path / "taken")
    raw = (path / "arrays.npz").read_bytes()
    (path / "arrays.npz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(FilesError, match=r"arrays\.npz: cannot be read"):
        arrays_of(path / "arrays.npz")
    (path / "arrays.npz").unlink()
    with pytest.raises(ValueError, match=r"lacks arrays\.npz; copy the whole folder"):
        Imported(path=str(path), trigger="badnets")
