"""Import: another project's poisoned set takes part in sweeps, and what is hostile is refused."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from raysweep import exchange
from raysweep.cli.app import app
from raysweep.errors import PlanError, SpecError
from raysweep.exchange import Poisoned, backdoorbench, toolbox
from raysweep.exchange.folder import read_foreign, save
from raysweep.jobs.launch import Conclusion, launch
from raysweep.plan.fits import check_fits
from raysweep.plan.planner import Planner
from raysweep.store import Store
from raysweep.sweep.loading import load_sweep

HEADER = """
name: {name}
dataset: {{npz: {{path: {data}{cut}}}}}
model: {{tiny_cnn: {{width: 8}}}}
recipe: {{epochs: 2, batch_size: 32}}
defenses: [none, perfect_filter]
seeds: 1
track: {{wandb: disabled}}
"""


def run(folder: Path, name: str, attacks: str, cut: str = "", own: bool = False) -> Conclusion:
    file = folder / f"{name}.yaml"
    head = HEADER.format(name=name, data=folder / "data.npz", cut=cut)
    file.write_text(f"{head}attacks: {attacks}\n")
    store = folder / (f"{name}-store" if own else "store")
    return launch(load_sweep(file), file.read_text(), str(store), inline=True)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A sweep, run and exported in both formats: its folder and its records."""
    folder = tmp_path_factory.mktemp("imported")
    draw = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 120), ("test", 60)):
        arrays[f"{split}_images"] = draw.integers(0, 256, (count, 16, 16, 3), np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 3
    np.savez(folder / "data.npz", **arrays)
    attacks = (
        "[badnets: {rate: 0.1, target: 1}, wanet: {rate: 0.1, cover_rate: 0.2}, "
        "badnets_clean_label: {rate: 0.1, cover_rate: 0.2}]"
    )
    rows = run(folder, "origin", attacks).rows
    store = Store(str(folder / "store"))
    for given in exchange.poisoned_sets(load_sweep(folder / "origin.yaml"), store):
        backdoorbench.write(given, folder)
        toolbox.write(given, folder)
    return folder, rows


def record(folder: Path, attack: str = "badnets") -> Path:
    return folder / "record" / f"npz_tiny_cnn_{attack}_0_1_seed0"


def outcome(rows: pd.DataFrame, attack: str) -> pd.DataFrame:
    mine = rows[rows["attack_name"] == attack].sort_values("defense")
    assert (mine["status"] == "ok").all(), mine["error"].tolist()
    columns = ["ca", "asr", "rate", "tpr", "fpr", "poison_count", "relabeled_count", "asr_n"]
    return mine[columns].reset_index(drop=True)


def trained_on(folder: Path, sweep: str, attack: str) -> Poisoned:
    sets = exchange.poisoned_sets(
        load_sweep(folder / f"{sweep}.yaml"), Store(str(folder / "store"))
    )
    return next(given for given in sets if given.attack == attack)


@pytest.mark.further
@pytest.mark.parametrize(
    ("attack", "target", "covers"),
    [("badnets", 1, 0), ("wanet", 0, 24), ("badnets_clean_label", 0, 24)],
)
def test_an_exported_attack_comes_back_as_it_was(
    attack: str, target: int, covers: int, origin: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    folder, rows = origin
    path = save(backdoorbench.read(record(folder, attack)), folder / f"back-{attack}")
    again = run(folder, f"again-{attack}", f"[imported: {{path: {path}}}]").rows
    pd.testing.assert_frame_equal(outcome(again, "imported"), outcome(rows, attack))
    assert set(again["attack"]) == {f"imported(back-{attack})"}
    assert set(again["target"]) == {target} and set(again["cover_count"]) == {covers}
    before, after = (trained_on(folder, sweep, attack) for sweep in ("origin", f"again-{attack}"))
    assert torch.equal(before.images, after.images) and (before.labels == after.labels).all()
    assert (before.poison == after.poison).all() and (before.cover == after.cover).all()
    for write, first in ((backdoorbench.write, record(folder, attack)), (toolbox.write, None)):
        first = first or write(before, tmp_path / "first")
        second = write(after, tmp_path / "second")
        assert first.name == second.name
        files = [file for file in first.rglob("*") if file.is_file()]
        assert len(files) >= 4
        for file in files:
            assert file.read_bytes() == (second / file.relative_to(first)).read_bytes(), file


def test_the_victims_weights_come_back_too(origin: tuple[Path, pd.DataFrame]) -> None:
    folder, rows = origin
    path = save(backdoorbench.read(record(folder)), folder / "weights")
    # A store of its own, so that a victim that is trained shows.
    rows_alone = run(
        folder, "weights", f"[imported: {{path: {path}, victim: true}}]", own=True
    ).rows
    pd.testing.assert_frame_equal(outcome(rows_alone, "imported"), outcome(rows, "badnets"))
    trained = list((folder / "weights-store" / "objects").rglob("train-*"))
    assert len(trained) == 1, "the perfect filter retrains; the victim is the folder's"


def test_the_toolbox_set_needs_an_attack_that_stamps_test_inputs(
    origin: tuple[Path, pd.DataFrame],
) -> None:
    folder, rows = origin
    source = folder / "poisoned_train_set" / "npz" / "badnets_0.100_poison_seed=0"
    path = save(toolbox.read(source), folder / "toolbox")
    with pytest.raises(SpecError, match="holds no triggered test inputs; name the attack"):
        run(folder, "lacking", f"[imported: {{path: {path}}}]")
    again = run(folder, "toolbox", f"[imported: {{path: {path}, trigger: badnets}}]").rows
    pd.testing.assert_frame_equal(outcome(again, "imported"), outcome(rows, "badnets"))


def test_a_record_without_a_list_of_the_poisoned_rows_trains_the_same_victim(
    origin: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    folder, rows = origin
    copy = changed(record(folder, "wanet"), tmp_path, lambda result: None)
    (copy / "train_poison_index_list.pickle").unlink()
    foreign = backdoorbench.read(copy)
    known = outcome(rows, "wanet")["poison_count"][0]
    poison = len(foreign.poison_rows)
    assert poison > known and poison + len(foreign.cover_rows) == 12 + 24
    path = save(foreign, folder / "covers")
    again = run(folder, "covers", f"[imported: {{path: {path}}}]").rows
    for column in ("ca", "asr"):
        values = [
            outcome(of, name)[column][0] for of, name in ((again, "imported"), (rows, "wanet"))
        ]
        assert values[0] == values[1]
    assert set(again["cover_count"]) == {36 - poison}


def test_rate_0_is_the_floor_and_other_rates_are_refused(
    origin: tuple[Path, pd.DataFrame],
) -> None:
    folder, _ = origin
    path = save(backdoorbench.read(record(folder)), folder / "floor")
    rows = run(folder, "floor", f"[imported: {{path: {path}, rate: 0.0}}]").rows
    assert set(rows["poison_count"]) == {0} and (rows["status"] == "ok").all()
    with pytest.raises(SpecError, match=r"rate is the folder's, 0\.1, got 0\.2; leave it out"):
        run(folder, "other", f"[imported: {{path: {path}, rate: 0.2}}]")


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (", size: 60", "poison rows are not in the training set"),
        (", clean_seed: 3", "has no triggered form of .* that count, row [0-9]+ first"),
        (", label_noise: 0.3", "has label"),
    ],
)
def test_other_data_than_the_folders_fail_by_name(
    cut: str, said: str, origin: tuple[Path, pd.DataFrame]
) -> None:
    folder, _ = origin
    path = folder / f"cut{cut[2:6].strip()}"
    save(backdoorbench.read(record(folder)), path)
    with pytest.raises(PlanError, match=rf"dataset npz.*: attack imported\(cut.*\): .*{said}"):
        run(folder, "cut", f"[imported: {{path: {path}}}]", cut)


def test_a_folder_of_other_images_is_refused_by_the_plan(
    origin: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    folder, _ = origin
    path = save(backdoorbench.read(record(folder)), folder / "sizes")
    with np.load(folder / "data.npz") as held:
        arrays = dict(held)
    for split in ("train", "test"):
        arrays[f"{split}_images"] = np.pad(
            arrays[f"{split}_images"], [(0, 0), (1, 1), (0, 0), (0, 0)]
        )
    np.savez(tmp_path / "data.npz", **arrays)
    file = tmp_path / "sizes.yaml"
    text = HEADER.format(name="sizes", data=tmp_path / "data.npz", cut="")
    file.write_text(f"{text}attacks: [imported: {{path: {path}}}]\n")
    with pytest.raises(PlanError, match=r"attack imported.* the folder's images have shape"):
        check_fits(Planner(load_sweep(file)))


def test_a_folder_that_changed_is_noticed(origin: tuple[Path, pd.DataFrame]) -> None:
    folder, _ = origin
    path = save(backdoorbench.read(record(folder)), folder / "changing")
    first = load_sweep_of(folder, path)
    (path / "arrays.npz").write_bytes((path / "arrays.npz").read_bytes() + b" ")
    assert load_sweep_of(folder, path) != first


def load_sweep_of(folder: Path, path: Path) -> str:
    file = folder / "changing.yaml"
    head = HEADER.format(name="changing", data=folder / "data.npz", cut="")
    file.write_text(f"{head}attacks: [imported: {{path: {path}}}]\n")
    attack: Any = load_sweep(file).attacks[0]
    return str(attack.digest)


class Malicious:
    """Unpickled, it runs a program."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("form", ["backdoorbench", "backdoor-toolbox"])
def test_a_malicious_pickle_is_refused_and_not_run(form: str, tmp_path: Path) -> None:
    mark, folder = tmp_path / "ran", tmp_path / "evil"
    folder.mkdir()
    names = ["attack_result.pt"] if form == "backdoorbench" else ["imgs", "labels"]
    names += ["poison_indices"] if form != "backdoorbench" else []
    for name in names:
        torch.save({"model": Malicious(mark), "bd_train": {}}, folder / name)
    torch.load(folder / names[0], weights_only=False)
    assert mark.exists(), "the file does run a program where it is trusted"
    mark.unlink()
    with pytest.raises(PlanError, match=r"posix.system.*|not opened, since reading such a file"):
        read_foreign(backdoorbench.read if form == "backdoorbench" else toolbox.read, folder)
    assert not mark.exists()


def changed(source: Path, top: Path, change: Any) -> Path:
    """Return a copy of a record folder whose result was changed."""
    import shutil

    folder = Path(shutil.copytree(source, top / "record" / source.name))
    result = torch.load(folder / "attack_result.pt", weights_only=False)
    change(result)
    torch.save(result, folder / "attack_result.pt")
    return folder


def _escape(result: dict[str, Any]) -> None:
    entry = next(iter(result["bd_train"]["bd_data_container"]["data_dict"].values()))
    entry["path"] = "./record/x/../../../../etc/passwd"


def _picture(result: dict[str, Any]) -> None:
    result["bd_train"]["bd_data_container"]["data_dict"] = {0: (Image.new("RGB", (16, 16)), 1, 0)}


def _without(result: dict[str, Any]) -> None:
    result["bd_train"] = None


def _unmarked(result: dict[str, Any]) -> None:
    result["bd_train"]["poison_indicator"][:] = 0


def _weights(result: dict[str, Any]) -> None:
    result["model"] = {"network": "resnet", "epoch": 3}


def _odd(result: dict[str, Any]) -> None:
    del result["bd_train"]["bd_data_container"]["data_dict"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_escape, "leads out of the folder, and is not read"),
        (_picture, "holds more than tensors, arrays and plain values"),
        (_without, "attacks that train the victim themselves leave none"),
        (_unmarked, "has no poisoned image"),
        (_weights, r"a victim must be a state dict.* got dict \['network', 'epoch'\]"),
        (_odd, "is not of this format"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: Any, said: str, origin: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    folder = changed(record(origin[0]), tmp_path, change)
    with pytest.raises(PlanError, match=said):
        save(read_foreign(backdoorbench.read, folder), tmp_path / "taken")
    assert not (tmp_path / "taken").exists()


def test_a_list_of_other_length_is_refused(
    origin: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    folder = changed(record(origin[0]), tmp_path, lambda result: None)
    torch.save(np.ones(7), folder / "train_poison_index_list.pickle")
    with pytest.raises(PlanError, match=r"a 0 or 1 for each of 120 training images, got .*\(7,\)"):
        backdoorbench.read(folder)


@pytest.mark.parametrize(
    "kept_as",
    [
        lambda state: {f"module.module.{n}": t for n, t in state.items()},
        lambda state: {f"_orig_mod.module.{n}": t for n, t in state.items()},
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}, "lr": 0.1}},
        lambda state: {n: torch.nn.Parameter(t, t.is_floating_point()) for n, t in state.items()},
    ],
)
def test_weights_are_found_however_they_were_saved(
    kept_as: Any, origin: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    plain = backdoorbench.read(record(origin[0])).state
    folder = changed(
        record(origin[0]), tmp_path, lambda result: result.update(model=kept_as(result["model"]))
    )
    state = backdoorbench.read(folder).state
    assert list(state) == list(plain) and all((state[n] == plain[n]).all() for n in plain)


def test_weights_in_bfloat16_and_records_without_any_are_taken_in(
    origin: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    def rounded(result: dict[str, Any]) -> None:
        result["model"] = {n: t.bfloat16() for n, t in result["model"].items()}

    folder = changed(record(origin[0]), tmp_path / "rounded", rounded)
    path = save(backdoorbench.read(folder), tmp_path / "taken")
    with np.load(path / "victim.npz") as file:
        assert {file[name].dtype for name in file.files} == {np.dtype("float32")}
    folder = changed(record(origin[0]), tmp_path / "bare", lambda result: result.pop("model"))
    assert not backdoorbench.read(folder).state


def test_a_row_that_is_poison_and_cover_is_refused(
    origin: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    foreign = backdoorbench.read(record(origin[0], "wanet"))
    both = dataclasses.replace(
        foreign, cover_rows=foreign.poison_rows, cover_images=foreign.poison_images
    )
    with pytest.raises(PlanError, match=r"is both a poison and a cover, as are 12 rows in all"):
        save(both, tmp_path / "taken")


def test_numpy_1_files_are_read(origin: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    """What NumPy 1 wrote names numpy.core; the bytes of today's file, renamed, stand for it."""
    import zipfile

    folder = changed(record(origin[0]), tmp_path, lambda result: None)
    file = folder / "attack_result.pt"
    with zipfile.ZipFile(file) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    renamed = 0
    with zipfile.ZipFile(file, "w") as new:
        for name, data in parts.items():
            if name.endswith("data.pkl"):
                renamed = data.count(b"numpy._core.multiarray")
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            new.writestr(name, data)
    assert renamed
    assert len(backdoorbench.read(folder).poison_rows) == 12


def test_the_command_tells_how_to_go_on(
    origin: tuple[Path, pd.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "taken"
    app(["import", str(record(origin[0])), "--to", str(to)], standalone_mode=False)
    said = capsys.readouterr().out
    assert "12 poisons, 0 covers of 120 images" in said and "with a victim's weights" in said
    assert f"attacks: [{{imported: {{path: {to}}}}}]" in said
