"""Export: what other projects read is what the sweep trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from raysweep import exchange
from raysweep.datasets import Shape
from raysweep.errors import PlanError
from raysweep.exchange import Poisoned, backdoorbench, toolbox
from raysweep.exchange.folder import Foreign, read_foreign
from raysweep.jobs.launch import launch
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.store import Store
from raysweep.sweep.loading import load_sweep

# What a file of BackdoorBench's shape holds beside tensors.
ATTACKS = ["badnets", "wanet", "badnets_clean_label"]
ALLOWED = [
    np._core.multiarray._reconstruct, np.ndarray, np.dtype, np.dtypes.Float64DType,
    np.dtypes.Int64DType,
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A sweep over color images, run; its file and its store."""
    folder = tmp_path_factory.mktemp("exported")
    draw = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 120), ("test", 60)):
        arrays[f"{split}_images"] = draw.integers(0, 256, (count, 16, 16, 3), np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 3
    np.savez(folder / "data.npz", **arrays)
    file = folder / "sweep.yaml"
    file.write_text(f"""
name: exported
dataset: {{npz: {{path: {folder / "data.npz"}, size: 100}}}}
model: {{tiny_cnn: {{width: 8}}}}
recipe: {{epochs: 2, batch_size: 32}}
attacks:
  - none
  - badnets: {{rate: [0.0, 0.1]}}
  - wanet: {{rate: 0.1, cover_rate: 0.2}}
  - badnets_clean_label: {{rate: 0.1, cover_rate: 0.2}}
defenses: [none, perfect_filter]
seeds: 1
track: {{wandb: disabled}}
""")
    store = folder / "store"
    rows = launch(load_sweep(file), file.read_text(), str(store), inline=True).rows
    assert (rows["status"] == "ok").all()
    return file, store


def given(finished: tuple[Path, Path]) -> dict[str, Poisoned]:
    file, store = finished
    return {p.attack: p for p in exchange.poisoned_sets(load_sweep(file), Store(str(store)))}


def loaded(file: Path) -> Any:
    with torch.serialization.safe_globals(ALLOWED):
        return torch.load(file, weights_only=True)


def picture(top: Path, path: str) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(top / path))).permute(2, 0, 1)


def test_every_attacked_setting_is_given_once(finished: tuple[Path, Path]) -> None:
    assert set(given(finished)) == set(ATTACKS), "rate 0 and no attack poison nothing"


@pytest.mark.parametrize("attack", ATTACKS)
def test_backdoorbench_records_hold_the_poisoned_set(
    attack: str, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    one = given(finished)[attack]
    folder = backdoorbench.write(one, tmp_path)
    result = loaded(folder / "attack_result.pt")
    assert set(result) == {
        "model_name", "num_classes", "model", "data_path", "img_size", "clean_data", "bd_train",
        "bd_test",
    }  # fmt: skip
    assert result["img_size"] == (16, 16, 3) and result["num_classes"] == 3
    source = np.load(finished[0].parent / "data.npz")
    images = torch.from_numpy(source["train_images"]).permute(0, 3, 1, 2).clone()
    labels = source["train_labels"].copy()
    for row, entry in result["bd_train"]["bd_data_container"]["data_dict"].items():
        assert entry["other_info"][1] == labels[row]
        images[row] = picture(tmp_path, entry["path"])
        labels[row] = entry["other_info"][0]
    assert torch.equal(images[one.train_rows], one.images)
    assert (labels[one.train_rows] == one.labels).all()
    indicator = result["bd_train"]["poison_indicator"]
    listed = loaded(folder / "train_poison_index_list.pickle")
    assert len(indicator) == len(listed) == 120 and listed.sum() == 10
    assert (indicator[one.train_rows] == one.poison | one.cover).all()
    assert (listed[one.train_rows] == one.poison).all()
    tested = result["bd_test"]["bd_data_container"]["data_dict"]
    assert set(tested) == set(result["bd_test"]["original_index_array"].tolist())
    assert len(tested) == int((one.test_labels != 0).sum())
    for row, entry in tested.items():
        at = int(np.flatnonzero(one.test_rows == row)[0])
        assert entry["other_info"] == [0, source["test_labels"][row]]
        assert torch.equal(picture(tmp_path, entry["path"]), one.test_images[at])
    assert loaded(folder / "info.pickle")["pratio"] == 0.1
    summary = pd.read_csv(folder / "attack_df_summary.csv")
    assert summary["test_asr"][0] == pytest.approx(one.asr)
    with pytest.raises(PlanError, match="is there already and is not overwritten"):
        backdoorbench.write(one, tmp_path)


def test_backdoor_toolbox_holds_the_whole_training_set(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    sets = given(finished)
    for one in sets.values():
        folder = toolbox.write(one, tmp_path)
        images = torch.load(folder / "imgs", weights_only=True)
        assert torch.equal(images.mul(255).round().to(torch.uint8), one.images)
        labels = torch.load(folder / "labels", weights_only=True)
        assert (labels.numpy() == one.labels).all()
        for name, mask in (("poison", one.poison), ("cover", one.cover)):
            rows = torch.load(folder / f"{name}_indices", weights_only=True)
            assert rows == np.flatnonzero(mask).tolist()
    assert folder.name == "badnets_clean_label_0.100_cover=0.200_poison_seed=0"
    clean = tmp_path / "clean_set" / "npz"
    labels = torch.load(clean / "clean_split" / "clean_labels", weights_only=True)
    assert (labels.numpy() == one.clean_labels).all() and len(labels) == 12
    assert len(list((clean / "test_split" / "data").iterdir())) == 48


def pasted(foreign: Foreign, rows: Any, data: Any) -> tuple[torch.Tensor, Any]:
    """Return the training set of these rows, with what an import holds pasted into it."""
    images, labels = data["train_images"].transpose(0, 3, 1, 2).copy(), data["train_labels"].copy()
    for part in ("poison", "cover"):
        images[getattr(foreign, f"{part}_rows")] = getattr(foreign, f"{part}_images")
    labels[foreign.poison_rows] = foreign.poison_labels
    return torch.from_numpy(images[rows]), labels[rows]


def their_training_set(top: Path, folder: Path, data: Any) -> tuple[torch.Tensor, Any]:
    """Return what BackdoorBench's data set gives, item by item.

    Item i is a row of the source. Where the indicator of this row is 0 the item is the clean image
    and label, otherwise the stored image and the first of its labels.
    """
    part = loaded(folder / "attack_result.pt")["bd_train"]
    items = []
    for row in part["original_index_array"].tolist():
        if part["poison_indicator"][row] == 0:
            image = torch.from_numpy(data["train_images"][row]).permute(2, 0, 1)
            items.append((image, data["train_labels"][row]))
        else:
            entry = part["bd_data_container"]["data_dict"][row]
            items.append((picture(top, entry["path"]), entry["other_info"][0]))
    images, labels = zip(*items, strict=True)
    return torch.stack(images), np.array(labels)


@pytest.mark.parametrize("attack", ATTACKS)
def test_backdoorbench_and_an_import_train_on_what_was_exported(
    attack: str, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    one, data = given(finished)[attack], dict(np.load(finished[0].parent / "data.npz"))
    folder = backdoorbench.write(one, tmp_path)
    images, labels = their_training_set(tmp_path, folder, data)
    assert torch.equal(images, one.images) and (labels == one.labels).all()
    foreign = backdoorbench.read(folder)
    assert (foreign.poison_rows == one.train_rows[one.poison]).all()
    assert (foreign.cover_rows == one.train_rows[one.cover]).all()
    assert (foreign.target, foreign.ignored, foreign.unsure) == (0, 0, 0)
    images, labels = pasted(foreign, one.train_rows, data)
    assert torch.equal(images, one.images) and (labels == one.labels).all()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("listed", [True, False])
def test_a_record_is_read_as_backdoorbench_reads_it(
    attack: str, listed: bool, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    """Some stored images are marked 0, others not shown; without a list labels tell the covers."""
    one, data = given(finished)[attack], dict(np.load(finished[0].parent / "data.npz"))
    folder = backdoorbench.write(one, tmp_path)
    result = loaded(folder / "attack_result.pt")
    part = result["bd_train"]
    stored = np.array(sorted(part["bd_data_container"]["data_dict"]))
    left_out = stored[np.arange(len(stored)) % 4 != 0]
    part["poison_indicator"][stored[1::2]] = 0
    part["original_index_array"] = np.setdiff1d(one.train_rows, stored[2::4])
    torch.save(result, folder / "attack_result.pt")
    if not listed:
        (folder / "train_poison_index_list.pickle").unlink()
    images, labels = their_training_set(tmp_path, folder, data)
    foreign = backdoorbench.read(folder)
    ours, our_labels = pasted(foreign, part["original_index_array"], data)
    assert foreign.train_total == len(labels) == 100 - len(stored[2::4])
    assert torch.equal(ours, images) and (our_labels == labels).all()
    assert foreign.ignored == len(left_out) and f"\n{len(left_out)} stored images" in str(foreign)
    poison, cover = (
        np.setdiff1d(one.train_rows[mask], left_out) for mask in (one.poison, one.cover)
    )
    either = cover[data["train_labels"][cover] == 0] if not listed else cover[:0]
    assert (foreign.poison_rows == np.union1d(poison, either)).all()
    assert (foreign.cover_rows == np.setdiff1d(cover, either)).all()
    keeping = int((data["train_labels"][foreign.poison_rows] == 0).sum())
    assert foreign.unsure == (0 if listed or attack == "badnets" else keeping)
    assert ("may be covers" in str(foreign)) == (foreign.unsure > 0)


@pytest.mark.parametrize("attack", ATTACKS)
def test_without_test_inputs_the_training_labels_tell_the_target(
    attack: str, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    one = given(finished)[attack]
    nothing = dataclasses.replace(one, eligible=np.zeros_like(one.eligible))
    foreign = backdoorbench.read(backdoorbench.write(nothing, tmp_path))
    assert foreign.target == 0 and not len(foreign.test_rows)
    assert (foreign.poison_rows == one.train_rows[one.poison]).all()


def test_covers_of_an_attack_on_all_classes_are_those_that_keep_their_label(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    one = given(finished)["wanet"]
    labels = np.where(one.poison, (one.original_labels + 1) % 3, one.original_labels)
    mapped, all_inputs = (one.test_labels + 1) % 3, np.ones_like(one.eligible)
    one = dataclasses.replace(one, labels=labels, mapped=mapped, eligible=all_inputs)
    folder = backdoorbench.write(one, tmp_path)
    (folder / "train_poison_index_list.pickle").unlink()
    foreign = backdoorbench.read(folder)
    assert (foreign.target, foreign.sources, foreign.unsure) == (None, None, 0)
    assert (foreign.poison_rows == one.train_rows[one.poison]).all()
    assert (foreign.poison_labels == labels[one.poison]).all()
    assert (foreign.cover_rows == one.train_rows[one.cover]).all()


def test_a_record_that_lacks_an_image_it_marks_is_refused(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    one = given(finished)["badnets"]
    folder = backdoorbench.write(one, tmp_path)
    clean = int(one.train_rows[~one.poison][0])
    result = loaded(folder / "attack_result.pt")
    result["bd_train"]["poison_indicator"][clean] = 1
    torch.save(result, folder / "attack_result.pt")
    with pytest.raises(PlanError, match=rf"bd_train marks row {clean} in poison_indicator, but"):
        backdoorbench.read(folder)


@pytest.mark.parametrize(
    "top", ["D:\\exp\\record\\{}\\{}\\{}\\{}", "/u/record/b/record/{}/{}/{}/{}"]
)
def test_a_record_of_another_machine_is_read(
    top: str, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = backdoorbench.write(given(finished)["badnets"], tmp_path)
    before = backdoorbench.read(folder)
    result = loaded(folder / "attack_result.pt")
    for part in ("bd_train", "bd_test"):
        for entry in result[part]["bd_data_container"]["data_dict"].values():
            entry["path"] = top.format(*entry["path"].split("/")[2:])
    torch.save(result, folder / "attack_result.pt")
    assert (backdoorbench.read(folder).poison_images == before.poison_images).all()


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_toolbox_and_an_import_train_on_what_was_exported(
    attack: str, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    """Item i of theirs is image i of the tensor, floats that are normalized next, and label i."""
    one = given(finished)[attack]
    folder = toolbox.write(one, tmp_path)
    images = torch.load(folder / "imgs", weights_only=True)
    assert torch.equal(images, one.images.float() / 255)
    foreign = toolbox.read(folder)
    for part, mask in (("poison", one.poison), ("cover", one.cover)):
        assert (getattr(foreign, f"{part}_rows") == np.flatnonzero(mask)).all()
        assert (getattr(foreign, f"{part}_images") == one.images.numpy()[mask]).all()
    assert (foreign.poison_labels == one.labels[one.poison]).all()


@pytest.mark.parametrize(
    "form",
    [
        lambda images: (images * 255).round().to(torch.uint8),
        lambda images: (images * 255).round().long(),
        lambda images: (images * 255).round(),
        lambda images: images.double() + 1e-4,
        lambda images: images.half(),
        lambda images: images.permute(0, 2, 3, 1),
        lambda images: (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1),
    ],
)  # fmt: skip
def test_toolbox_images_of_any_form_are_the_same_levels(
    form: Any, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    one = given(finished)["wanet"]
    folder = toolbox.write(one, tmp_path)
    torch.save(form(torch.load(folder / "imgs", weights_only=True)), folder / "imgs")
    foreign = toolbox.read(folder)
    for part, mask in (("poison", one.poison), ("cover", one.cover)):
        assert (getattr(foreign, f"{part}_images") == one.images.numpy()[mask]).all()


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (lambda images: (images - 0.5) / 0.25, r"values must be .*float32 from -2 to 2"),
        (lambda images: images * 1.5, r"values must be .*float32 from 0 to 1\.5"),
        (lambda images: images * 300, r"values must be .*float32 from 0 to 300"),
        (lambda images: images.where(images < 1, torch.nan), "values must be .* from nan to nan"),
        (lambda images: images.to(torch.uint8), "values must be .*uint8 from 0 to 1"),
        (lambda images: images > 0.5, "values must be .*bool from 0 to 1"),
        (lambda images: images[:, 0], r"must be a dense tensor \(N, C, H, W\) or \(N, H, W, C\)"),
        (lambda images: images[:, :, :3, :3], "with 1 or 3 channels"),
        (lambda images: images[1:], "one image for each of 100 labels"),
        (lambda images: {"images": images}, "got dict of shape"),
    ],
)
def test_toolbox_images_that_may_mean_anything_are_refused(
    form: Any, said: str, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = toolbox.write(given(finished)["badnets"], tmp_path)
    torch.save(form(torch.load(folder / "imgs", weights_only=True)), folder / "imgs")
    with pytest.raises(PlanError, match=said):
        read_foreign(toolbox.read, folder)


def test_an_export_that_fails_leaves_no_folder(finished: tuple[Path, Path], tmp_path: Path) -> None:
    lost: Any = None
    one = dataclasses.replace(given(finished)["badnets"], state=lost)
    for form in (backdoorbench, toolbox):
        with pytest.raises(AttributeError):
            form.write(one, tmp_path)
    assert not list(tmp_path.rglob("*badnets*"))


def test_exported_weights_are_the_victims(finished: tuple[Path, Path], tmp_path: Path) -> None:
    one = given(finished)["badnets"]
    folder = toolbox.write(one, tmp_path)
    state = torch.load(folder / "full_base_aug_seed=0.pt", weights_only=True)
    assert not any(name.startswith(("normalize", "net")) for name in state)
    assert all(torch.equal(tensor, one.state[name]) for name, tensor in state.items())
    # BackdoorBench renames the tensors one after the other to its network's names.
    network = TinyCNN(width=8).build(Shape.of(one.images, 3))
    names = [n.removeprefix("net.") for n in network.state_dict() if not n.startswith("normalize")]
    assert list(state) == names
    assert state["head.weight"].shape == (3, 4 * TinyCNN(width=8).width)


def test_an_unfinished_sweep_is_refused(finished: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"badnets @ 0\.1, seed 0: .* launch the sweep first"):
        list(exchange.poisoned_sets(load_sweep(finished[0]), Store(str(tmp_path / "empty"))))
