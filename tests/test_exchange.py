"""Export: what other projects read is what the sweep trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from raysweep import exchange
from raysweep.errors import PlanError
from raysweep.exchange import Poisoned, backdoorbench, toolbox
from raysweep.launch import launch
from raysweep.loading import load_sweep
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.store import Store

# What a file of BackdoorBench's shape holds beside tensors.
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
    assert set(given(finished)) == {"badnets", "wanet"}, "rate 0 and no attack poison nothing"


@pytest.mark.parametrize("attack", ["badnets", "wanet"])
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
    assert indicator.sum() == 10 and len(indicator) == 120
    assert (indicator[one.train_rows] == one.poison).all()
    assert (loaded(folder / "train_poison_index_list.pickle") == indicator).all()
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
    assert folder.name == "wanet_0.100_cover=0.200_poison_seed=0"
    clean = tmp_path / "clean_set" / "npz"
    labels = torch.load(clean / "clean_split" / "clean_labels", weights_only=True)
    assert (labels.numpy() == one.clean_labels).all() and len(labels) == 12
    assert len(list((clean / "test_split" / "data").iterdir())) == 48


def test_exported_weights_are_the_victims(finished: tuple[Path, Path], tmp_path: Path) -> None:
    one = given(finished)["badnets"]
    folder = toolbox.write(one, tmp_path)
    state = torch.load(folder / "full_base_aug_seed=0.pt", weights_only=True)
    assert not any(name.startswith(("normalize", "net")) for name in state)
    assert all(torch.equal(tensor, one.state[name]) for name, tensor in state.items())
    assert state["head.weight"].shape == (3, 4 * TinyCNN(width=8).width)


def test_an_unfinished_sweep_is_refused(finished: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"badnets @ 0\.1, seed 0: .* launch the sweep first"):
        list(exchange.poisoned_sets(load_sweep(finished[0]), Store(str(tmp_path / "empty"))))
