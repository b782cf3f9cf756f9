"""The upkeep of a storage: what it holds, damage, litter, and that nothing needed ever goes."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from raysweep.cli.app import app
from raysweep.errors import StoreError
from raysweep.jobs.launch import launch
from raysweep.results.description import described, write_description
from raysweep.results.needs import needs
from raysweep.store import Store, heartbeat
from raysweep.store.files import temporary
from raysweep.store.heartbeat import Heartbeat
from raysweep.store.upkeep import living, select, survey
from raysweep.sweep.loading import load_sweep

SWEEP = """
name: {name}
dataset: {{digits: {{size: 200}}}}
model: linear
recipe: {{epochs: 1}}
attacks: [{{badnets: {{rate: {rate}}}}}]
defenses: [none]
track: {{wandb: disabled}}
{more}
"""
SPACE = "{strip: {overlays: {min: 2, max: 4}}}"
TUNE = f"tune: {{trials: 2, metric: tpr, labels: oracle, parameters: {SPACE}}}"
DAYS = 86_400


def age(root: Path, seconds: float, pattern: str = "**/*") -> None:
    then = time.time() - seconds
    for path in root.glob(pattern):
        if path.is_file():
            os.utime(path, (then, then))


def carry_out(folder: Path, name: str, rate: float, more: str = "") -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(SWEEP.format(name=name, rate=rate, more=more))
    launch(load_sweep(file), file.read_text(), str(folder / "store"), inline=True)
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sweeps that share their data, and have victims of their own."""
    folder = tmp_path_factory.mktemp("finished")
    for name, rate in (("first", 0.1), ("second", 0.2)):
        carry_out(folder, name, rate)
    return folder


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy" / "store"


def command(root: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["store", *words, "--storage", str(root)])
    if isinstance(result.exception, Exception):
        raise result.exception
    return result.exit_code, result.output


def whole(root: Path, name: str) -> bool:
    store = Store(str(root))
    keys = needs(store, name)
    return keys <= store.done() and not [key for key in keys if store.verify(key)]


# What a sweep needs


def test_a_sweep_needs_what_its_records_and_earlier_versions_name(root: Path) -> None:
    store = Store(str(root))
    first, second = needs(store, "first"), needs(store, "second")
    assert first | second == store.done()
    assert first & second
    before = first
    carry_out(root.parent, "first", 0.3)  # keeps the records so far as a version
    after = needs(store, "first")
    assert before < after <= store.done()


def test_a_killed_launch_needs_what_its_description_plans(root: Path) -> None:
    store = Store(str(root))
    before = needs(store, "first")
    write_description(store, "first", replace(described(store, "first"), concluded=False))
    for file in ("records.parquet", "stages.parquet"):
        (root / "sweeps/first" / file).unlink()
    assert needs(store, "first") == before
    (root / "sweeps/first/sweep.json").write_bytes(b"{}")
    with pytest.raises(StoreError, match=r"cannot be known.*raysweep rm first"):
        needs(store, "first")


def test_a_damaged_table_of_stages_is_refused(root: Path) -> None:
    (root / "sweeps/first/stages.parquet").write_bytes(b"")
    with pytest.raises(StoreError, match="table of stages"):
        needs(Store(str(root)), "first")


def test_a_tuning_needs_what_it_wanted_and_is_refused_without_an_end(root: Path) -> None:
    file, store = root.parent / "tuned.yaml", Store(str(root))
    text = SWEEP.format(name="tuned", rate=0.1, more=TUNE).replace("[none]", "[strip]")
    file.write_text(text)
    words = ["tune", str(file), "--inline", "--storage", str(root)]
    app(words, standalone_mode=False)
    found = needs(store, "tuned")
    assert found <= store.done() and len(found) > 4
    assert {key.split("-")[0] for key in found} >= {"train", "defend"}
    (ledger,) = (root / "sweeps/tuned/tune/ledger").iterdir()
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(line for line in lines if b'"event":"end"' not in line))
    with pytest.raises(StoreError, match="has not come to its end"):
        needs(store, "tuned")


# What goes


def test_litter_is_what_killed_writers_left_a_day_ago(root: Path) -> None:
    store = Store(str(root))
    key = min(key for key in store.done() if key.startswith("train"))
    litter = {
        f"objects/train/ab/{key}-0123456789ab.safetensors": b"1",
        "objects/train/ab/.0123.tmp": b"22",
        "manifests/train/.4567.tmp": b"",
        "sweeps/first/.89ab.tmp": b"333",
        "scratch/.probe-77": b"probe",
        f"scratch/{key}.checkpoint": b"4444",
    }
    kept = {"scratch/train-running.checkpoint": b"5", "objects/README": b"6"}
    for path, data in {**litter, **kept}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    now = time.time_ns()
    assert survey(store).litter(now) == {}  # a writer may be at work
    age(root, 2 * DAYS)
    assert survey(store).litter(now) == {path: len(data) for path, data in litter.items()}
    code, output = command(root, "prune")
    assert code == 0 and "6 files of litter, 15 B" in output and "nothing was removed" in output
    assert all((root / path).exists() for path in litter)
    command(root, "prune", "--yes")
    assert not any((root / path).exists() for path in litter)
    assert all((root / path).exists() for path in kept)
    assert whole(root, "first") and whole(root, "second")


def test_objects_of_a_damaged_manifest_are_no_litter(root: Path) -> None:
    store = Store(str(root))
    key = min(key for key in store.done() if key.startswith("train"))
    (root / f"manifests/train/{key}.json").write_bytes(b"")
    age(root, 2 * DAYS)
    assert survey(store).litter(time.time_ns()) == {}


def test_what_only_one_sweep_needs_goes_and_its_records_stay(root: Path) -> None:
    store = Store(str(root))
    alone = needs(store, "first") - needs(store, "second")
    shared = needs(store, "first") & needs(store, "second")
    assert alone and shared
    code, output = command(root, "prune", "--sweep", "first")
    assert code == 0 and f"{len(alone)} of {len(store.done())} artifacts" in output
    assert whole(root, "first")
    command(root, "prune", "--sweep", "first", "--yes")
    assert store.done() == needs(store, "second") and whole(root, "second")
    assert (root / "sweeps/first/records.parquet").exists()
    named = {path for key in store.done() for path in (store.manifest(key) or key).files}
    assert set(store.list("objects")) == named  # type: ignore[union-attr]


@pytest.mark.parametrize("condition", [["--older-than", "0s"], ["--to", "1kB"]])
def test_nothing_goes_that_a_sweep_with_records_needs(root: Path, condition: list[str]) -> None:
    before = Store(str(root)).done()
    command(root, "prune", *condition, "--yes")
    assert Store(str(root)).done() == before
    shutil.rmtree(root / "sweeps/first")
    command(root, "prune", *condition, "--yes")
    assert Store(str(root)).done() == needs(Store(str(root)), "second") < before


def test_age_and_size_choose_the_oldest(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "root"))
    for number in range(6):
        store.put(f"train-{number}", arrays={"x": np.zeros(1000, np.uint8)})
        age(tmp_path, (6 - number) * DAYS, f"root/manifests/train/train-{number}.json")
    found, now = survey(store), time.time_ns()
    size = found.artifacts["train-0"].size
    assert size > 1000

    def chosen(kept: set[str], **conditions: object) -> list[str]:
        one = select(found, kept, now, **conditions)  # type: ignore[arg-type]
        return [artifact.key for artifact in one.artifacts]

    old = chosen({"train-1"}, older_seconds=3.5 * DAYS)
    assert old == ["train-0", "train-2"]
    assert chosen(set(), to_bytes=4.5 * size) == ["train-0", "train-1"]
    assert chosen({"train-0"}, to_bytes=4.5 * size, among={"train-0", "train-5"}) == ["train-5"]
    assert chosen(set(), among={"train-4"}) == ["train-4"] and chosen(set()) == []
    assert chosen(set(), to_bytes=99 * size) == []


@pytest.mark.parametrize("given", ["30", "d", "-1d", "3 fortnights", ""])
def test_a_wrong_age_is_refused(root: Path, given: str) -> None:
    with pytest.raises(Exception, match=f"--older-than must be.*{re.escape(repr(given))}"):
        command(root, "prune", "--older-than", given)


# Drivers

BEAT = Heartbeat(
    run="20260101-000000-1", folder="first", host="far", pid=1, count=5, state="running", started=1
)


def write(store: Store, beat: Heartbeat) -> None:
    store.write(heartbeat.path_of(beat.run), beat.pack())


def test_a_driver_lives_while_its_count_rises(tmp_path: Path) -> None:
    store, waits = Store(str(tmp_path)), []

    def waiting(act: Callable[[int], None]) -> Callable[[float], None]:
        def wait(seconds: float) -> None:
            waits.append(seconds)
            act(len(waits))

        return wait

    assert living(store, 1.0, waiting(lambda n: None)) == [] and waits == []
    write(store, BEAT)
    assert living(store, 1.0, waiting(lambda n: None)) == []
    assert len(waits) == heartbeat.BEATS_UNTIL_DEAD
    (alive,) = living(store, 1.0, waiting(lambda n: write(store, replace(BEAT, count=n))))
    assert alive.run == BEAT.run
    write(store, replace(BEAT, state="ended"))
    assert living(store, 1.0, waiting(lambda n: write(store, replace(BEAT, state="ended")))) == []


def test_nothing_is_removed_while_a_driver_works(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(root))
    write(store, BEAT)
    monkeypatch.setattr("raysweep.store.upkeep.living.__defaults__", (0.0, lambda s: write(
        store, replace(BEAT, count=time.monotonic_ns()))))  # fmt: skip
    before = store.done()
    with pytest.raises(StoreError, match="first on far"):
        command(root, "prune", "--sweep", "first", "--yes")
    assert store.done() == before


# Looking


def test_ls_lists_kinds_and_sweeps(root: Path) -> None:
    store = Store(str(root))
    (root / "sweeps/second/stages.parquet").write_bytes(b"")
    found = json.loads(command(root, "ls", "--json")[1])
    assert sum(kind["stages"] for kind in found["kinds"]) == len(store.done())
    size = sum(file.stat().st_size for part in ("manifests", "objects")
               for file in (root / part).rglob("*.*"))  # fmt: skip
    assert sum(kind["size_bytes"] for kind in found["kinds"]) == size
    first, second = found["sweeps"]
    assert (
        first["stages"] == len(needs(store, "first")) and abs(first["newest"] - time.time()) < 600
    )
    assert "cannot be known" in second["unknown"]
    assert "second" in command(root, "ls")[1]
    assert "nothing is stored" in command(root / "nothing", "ls")[1]


def test_verify_names_every_kind_of_damage(root: Path) -> None:
    assert command(root, "verify")[0] == 0
    store = Store(str(root))
    store.done()
    with_files = [key for key in sorted(store.done()) if (store.manifest(key) or BEAT).files]  # type: ignore[union-attr]
    flipped, gone, manifest = with_files[:3]
    for key, change in ((flipped, lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")),
                        (gone, Path.unlink)):  # fmt: skip
        (path,) = (store.manifest(key) or BEAT).files  # type: ignore[union-attr]
        change(root / path)
    (root / f"manifests/{manifest.split('-')[0]}/{manifest}.json").write_bytes(b"{}")
    code, output = command(root, "verify", "--json")
    assert code == 1 and set(json.loads(output)["damaged"]) == {flipped, gone, manifest}
    code, output = command(root, "verify")
    assert code == 1 and "3 damaged" in output and f"{flipped}: " in output


def test_no_file_of_a_finished_store_is_litter(root: Path) -> None:
    age(root, 2 * DAYS)
    assert survey(Store(str(root))).litter(time.time_ns()) == {}
    assert not [path for path in root.rglob("*") if temporary(path.name)]
