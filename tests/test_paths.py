"""Paths and settings: resolved once, in the driver, wherever workers stand; never part of a key."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import typing
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysweep import environment, methods
from raysweep.datasets.npz import Npz
from raysweep.environment import Environment
from raysweep.errors import FilesError, SpecError, StoreError
from raysweep.exchange.folder import Foreign, save
from raysweep.identity import cache_folder
from raysweep.jobs.launch import launch
from raysweep.plan.planner import Planner
from raysweep.stages import perform
from raysweep.stages.stage import Stage
from raysweep.store import Store
from raysweep.sweep.loading import load_sweep
from raysweep.sweep.spec import Sweep, to_yaml
from tests.contracts.test_datasets import (
    PLACES,
    write_ember,
    write_folder,
    write_imagenet,
    write_npz,
    write_parquet,
    write_tiny_imagenet,
)
from tests.s3 import S3

ROOT = Path(__file__).parent.parent
WITH_PATHS = [
    (role, name)
    for role in methods.ROLES
    for name in methods.available(role)
    if methods.path_fields(methods.load(role, name))
]
THIRD_PARTY = """
from typing import Any, ClassVar
import numpy as np
from raysweep.attacks import Attack
from raysweep.paths import DataPath

class Mask(Attack):
    mask: DataPath | None = None

    def stamp(self, images_BCHW: Any, *, ids: Any, part: Any, artifact: Any, seed: int) -> Any:
        import torch
        shown = torch.from_numpy(np.load(self.mask)).to(images_BCHW)
        return torch.maximum(images_BCHW, shown)
"""
SWEEP = """
name: placed
datasets:
  - imagefolder: {path: data}
  - parquet: {path: ./data, train: user-train.parquet, test: user-test.parquet}
  - npz: {path: data/user.npz}
  - ember: {path: $PLACED/data/ember, features: 7}
  - imagenet: {path: data/imagenet, side: 16}
  - imagenette: {path: data/imagenet, side: 16}
  - tiny_imagenet: {path: data/tiny-imagenet-200, side: 16}
  - cifar10
model: linear
recipe: {epochs: 1, batch_size: 16}
attacks:
  - none
  - imported: {path: record, trigger: badnets}
  - mask: {mask: mask.npy, rate: 0.2}
exclude:
  - attack: [imported, mask]
    dataset: [imagefolder, parquet, ember, imagenet, imagenette, tiny_imagenet, cifar10]
defense: none
track: {wandb: disabled}
"""


def write_record(folder: Path) -> None:
    """Write what `raysweep import` leaves, for the data of `write_npz`."""
    with np.load(folder.parent / "data" / "user.npz") as data:
        images, labels = data["train_images"].transpose(0, 3, 1, 2), data["train_labels"]
    rows = np.flatnonzero(labels == 1)[:3]
    save(
        Foreign(
            source="tests", attack="badnets", dataset="user", train_total=30, split_total=30,
            target=0, sources=None, poison_rows=rows, poison_images=images[rows],
            poison_labels=np.zeros(3, np.int64), cover_rows=np.empty(0, np.int64),
            cover_images=images[:0], test_rows=np.empty(0, np.int64), test_images=images[:0],
            known_rows=np.arange(30), known_labels=labels,
        ),
        folder,
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A sweep file, data beside it, and a third party's attack; we stand elsewhere."""
    folder, data = tmp_path / "project", tmp_path / "project" / "data"
    data.mkdir(parents=True)
    for name in ("cifar10", "user"):
        write_parquet(data / f"{name}-train.parquet", 30, first=0)
        write_parquet(data / f"{name}-test.parquet", 20, first=1000)
    write_folder(data)
    write_tiny_imagenet(data / "tiny-imagenet-200")
    write_imagenet(data / "imagenet")
    write_npz(data / "user.npz")
    write_ember(data / "ember")
    write_record(folder / "record")
    np.save(folder / "mask.npy", np.eye(12, dtype=np.float32))
    (folder / "sweep.yaml").write_text(SWEEP)
    facts = tmp_path / "third" / "mask-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: mask\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[raysweep.attacks]\nmask = mask\n")
    (tmp_path / "third" / "mask.py").write_text(THIRD_PARTY)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.syspath_prepend(str(tmp_path / "third"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "third"), str(ROOT)]))
    monkeypatch.setenv("PLACED", str(folder))
    monkeypatch.setenv("RAYSWEEP_DATA", "../project/data")
    monkeypatch.setenv("RAYSWEEP_CACHE", "cache")
    forget = (methods.available.cache_clear, methods.load.cache_clear)
    for clear in forget:
        clear()
    yield folder
    for clear in forget:
        clear()
    sys.modules.pop("mask", None)


def run(file: Path, storage: str, **options: Any) -> Any:
    return launch(load_sweep(file), file.read_text(), storage, **options)


def test_every_parameter_that_holds_a_path_says_so() -> None:
    for role in methods.ROLES:
        for name in methods.available(role):
            kind = methods.load(role, name)
            for field, info in kind.model_fields.items():
                words = f"{field} {info.description}".lower()
                plain = str in (info.annotation, *typing.get_args(info.annotation))
                if plain and any(word in words for word in ("path", "folder that", "file that")):
                    assert field in methods.path_fields(kind), f"{name}.{field}: use DataPath"
    assert {name for _, name in WITH_PATHS} == {*PLACES, "parquet", "imported"}, (
        "give the new method a line in SWEEP above"
    )
    assert all(f"- {name}: {{" in SWEEP for _, name in WITH_PATHS)


@pytest.mark.long
@pytest.mark.ray
def test_a_launch_finds_all_paths_from_another_folder_and_keys_know_none(
    project: Path, s3_server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, options = s3_server.uri("placed").partition("endpoint_override=")
    monkeypatch.setenv(
        "AWS_ENDPOINT_URL", f"http://{options.partition('&')[0].replace('%3A', ':')}"
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "password")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    storage = "s3://bucket/placed"
    done = run(project / "sweep.yaml", storage, max_concurrent=1)
    assert (done.rows["status"] == "ok").all(), done.rows["error"].tolist()
    assert len(done.rows) == 8 + 2 and done.ran > 30
    assert "npz(path=user.npz)" in set(done.rows["dataset"])
    other = Path(shutil.copytree(project, project.parent / "other" / "place"))
    monkeypatch.setenv("PLACED", str(other))
    again = run(other / "sweep.yaml", storage, inline=True)
    assert again.ran == 0, "the same files in another folder are the same work"
    assert (again.rows["trial"] == done.rows["trial"]).all() and again.rows["trial"].is_unique
    np.save(other / "mask.npy", np.ones((12, 12), np.float32))
    same, changed = (planned(load_sweep(folder / "sweep.yaml")) for folder in (project, other))
    moved = [stage for key, stage in changed.items() if key not in same]
    assert {"mask"} < {stage.method for stage in moved} <= {"mask", "linear"}
    assert len(moved) == 4, "poison, training, predictions and metrics of one trial"


def planned(sweep: Sweep) -> dict[str, Stage]:
    """Return the stages of a sweep by their keys."""
    planner = Planner(sweep)
    for trial in planner.trials:
        planner.route(trial, {})
    return planner.stages


HEADER = "name: x\nmodel: linear\nattack: none\ndefense: none\n"


def written(folder: Path, dataset: str, header: str = HEADER) -> Path:
    file = folder / "x.yaml"
    file.write_text(f"{header}dataset: {dataset}\n")
    return file


@pytest.mark.parametrize(
    "path", ["data/user.npz", "./deep/../data/user.npz", "$PLACED/data/user.npz"]
)
def test_a_path_starts_at_the_sweep_file(project: Path, path: str) -> None:
    (dataset,) = load_sweep(written(project, f"{{npz: {{path: {path}}}}}")).datasets
    assert isinstance(dataset, Npz) and dataset.path == str(project / "data" / "user.npz")


def test_a_path_may_start_at_home(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(project / "data"))
    (dataset,) = load_sweep(written(project, "{npz: {path: ~/user.npz}}")).datasets
    assert isinstance(dataset, Npz) and dataset.path == str(project / "data" / "user.npz")


def test_in_python_a_path_starts_at_the_file_or_where_one_stands(project: Path) -> None:
    file = project / "x.py"
    file.write_text(
        "from raysweep import Sweep\n"
        "from raysweep.datasets.npz import Npz\n"
        "from raysweep.models.linear import Linear\n"
        "from raysweep.attacks.none import NoAttack\n"
        "from raysweep.defenses.none import NoDefense\n"
        "sweep = Sweep(name='x', dataset=Npz(path='data/user.npz'), model=Linear(),\n"
        "              attack=NoAttack(), defense=NoDefense())\n"
    )
    (dataset,) = load_sweep(file).datasets
    assert isinstance(dataset, Npz)
    assert (
        dataset.path
        == Npz(path="../project/data/user.npz").path
        == str(project / "data" / "user.npz")
    )
    file.write_text(file.read_text().replace("user.npz", "lost.npz"))
    with pytest.raises(
        SpecError, match=r"x\.py:1: datasets\.0\.npz\.path: must be there, got '/.*"
    ):
        load_sweep(file)


def test_a_lost_path_is_named_with_its_line_and_from_the_root(project: Path) -> None:
    file = written(project, "\n  - digits\n  - npz:\n      path: lost.npz")
    place = str(project / "lost.npz")
    with pytest.raises(SpecError) as caught:
        load_sweep(file)
    assert str(caught.value) == (
        f"{file}:8: dataset.1.npz.path: must be there, got {place!r}; a relative path starts at "
        f"the sweep file's folder"
    )


def test_a_record_that_is_not_there_is_named_from_the_root(project: Path) -> None:
    file = written(project, "digits", HEADER.replace("none", "{imported: {path: rec}}", 1))
    with pytest.raises(SpecError, match=r"x\.yaml:3: .* got '/.*/project/rec' \(.*No such file"):
        load_sweep(file)


def test_a_resolved_sweep_is_the_same_from_any_folder(project: Path, tmp_path: Path) -> None:
    sweep = load_sweep(project / "sweep.yaml")
    (tmp_path / "elsewhere" / "again.yaml").write_text(to_yaml(sweep))
    assert load_sweep(tmp_path / "elsewhere" / "again.yaml") == sweep


def test_two_folders_of_one_name_are_refused(project: Path) -> None:
    shutil.copytree(project / "data", project / "other" / "data")
    file = written(project, "{imagefolder: {path: [data, other/data]}}")
    with pytest.raises(
        SpecError, match=r"imagefolder\(path=data\) stands for .*/other/data, which"
    ):
        load_sweep(file)


def test_the_cache_lies_where_the_driver_stands(project: Path, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "elsewhere" / "cache"


# Settings


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No setting at all; those of the test go with it."""
    for name in (*environment.PATHS, *environment.NAMES, *environment.SECRETS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield monkeypatch
    environment.apply(Environment(values={}, secrets=(), local=True))


def test_settings_are_gathered_from_the_root_and_without_secrets(
    settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings.chdir(tmp_path)
    settings.setenv("RAYSWEEP_DATA", "./data")
    settings.setenv("AWS_ENDPOINT_URL", "http://here:9000")
    settings.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    found = environment.gathered(local=False)
    assert found.values == {
        "RAYSWEEP_DATA": str(tmp_path / "data"), "AWS_ENDPOINT_URL": "http://here:9000"
    }  # fmt: skip
    assert found.secrets == ("AWS_SECRET_ACCESS_KEY",) and "hidden" not in str(asdict(found))


@pytest.mark.parametrize("local", [True, False])
def test_on_a_cluster_a_host_keeps_its_own_settings(
    settings: pytest.MonkeyPatch, tmp_path: Path, local: bool
) -> None:
    settings.setenv("RAYSWEEP_DATA", "/own")
    given = {"RAYSWEEP_DATA": str(tmp_path), "RAYSWEEP_CACHE": str(tmp_path), "AWS_REGION": "x"}
    environment.apply(Environment(values=given, secrets=(), local=local))
    assert os.environ["RAYSWEEP_DATA"] == (str(tmp_path) if local else "/own")
    assert os.environ["RAYSWEEP_CACHE"] == str(tmp_path) and os.environ["AWS_REGION"] == "x"


def test_what_a_host_lacks_is_said_with_its_name_and_tried_again(
    settings: pytest.MonkeyPatch, project: Path, tmp_path: Path
) -> None:
    settings.delenv("RAYSWEEP_DATA")
    planner = Planner(load_sweep(written(project, "{npz: {path: data/user.npz}}")))
    stage = planner.stages[planner.data(planner.trials[0].dataset)]
    (project / "data" / "user.npz").unlink()
    away = str(project / "away")
    given = Environment(values={"RAYSWEEP_DATA": away}, secrets=("AWS_ACCESS_KEY_ID",), local=False)
    environment.apply(given)
    result = perform.perform(stage.packed(), Store(str(tmp_path / "store")), {}, 0.0)
    assert result.status == "failed" and not result.lasting
    assert result.error == (
        f"FilesError: host {socket.gethostname()}: dataset npz: path must name a file, got "
        f"{str(project / 'data' / 'user.npz')!r}; RAYSWEEP_DATA is not set there, and the driver's "
        f"{away!r} is not there"
    )
    assert environment.explained(StoreError("no access")) == (
        f"host {socket.gethostname()}: no access; AWS_ACCESS_KEY_ID is not set there, but it is "
        f"where the sweep was launched"
    )


def test_a_third_partys_files_are_those_of_the_plan(project: Path) -> None:
    kind = methods.load("attacks", "mask")
    identity = kind.model_validate({"mask": str(project / "mask.npy")}).identity()
    assert methods.restore("attacks", identity).identity() == identity
    np.save(project / "mask.npy", np.zeros((12, 12), np.float32))
    with pytest.raises(FilesError, match=r"mask: /.*mask\.npy differs from what was planned"):
        methods.restore("attacks", identity)
    (project / "mask.npy").unlink()
    with pytest.raises(FilesError, match=r"mask: mask must be there, got '/.*mask\.npy'"):
        methods.restore("attacks", identity)
