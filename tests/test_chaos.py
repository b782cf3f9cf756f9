"""Faults of the main kinds against one sweep; and the judge of such sweeps sees what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raysweep.run.run import Run
from raysweep.stages.stage import Result
from raysweep.store import Store
from raysweep.store.events import Dispatch, Done, Event
from raysweep.sweep.loading import load_sweep
from tests import hosts
from tests.chaos import deck, told, verdict_on, world_of
from tests.chaos_faults import (
    ArtifactDamaged,
    DriverReplaced,
    Fault,
    NodeLost,
    WorkerKilled,
    kinds,
)
from tests.chaos_judge import Struck, judge
from tests.chaos_launch import Launch
from tests.chaos_world import SHORT, SWEEP

MAIN = ("full-disk", "worker", "drained-node", "driver", "node")
KEY = "train-1"


def survives(sweep: str, names: Collection[str]) -> None:
    """Let a fault of each of these kinds strike a sweep; it comes to what it does undisturbed."""
    if reason := hosts.lacking():
        pytest.skip(reason)
    with world_of(sweep) as world:
        verdict = verdict_on(world, [kinds()[name]() for name in names], seed=1)
    assert not verdict.faults, told(verdict)
    assert {name: row.struck for name, row in verdict.waste.items()} == dict.fromkeys(names, 1)


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_survives_faults_of_the_main_kinds() -> None:
    survives(SHORT, MAIN)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_survives_a_fault_of_every_kind() -> None:
    survives(SWEEP % 1, kinds())


def test_a_deck_holds_every_kind_by_its_share_and_is_the_same_for_a_seed() -> None:
    faults = [fault.NAME for fault in deck([*kinds()], 50, seed=1)]
    assert {name: faults.count(name) for name in kinds()} == {
        name: kind.SHARE for name, kind in kinds().items()
    }
    assert faults == [fault.NAME for fault in deck([*kinds()], 50, seed=1)]
    assert faults != [fault.NAME for fault in deck([*kinds()], 50, seed=2)]
    assert sorted(fault.NAME for fault in deck(MAIN, 5, seed=3)) == sorted(MAIN)


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    """Two storages with the same sweep of two stages, one of which has an object."""
    for name in ("calm", "disturbed"):
        store = Store(str(tmp_path / name))
        info = {"seconds": 2.0}
        store.put(KEY, arrays={"w": np.arange(9)}, info=info)
        store.put("evaluate-1", outcome={"asr": 0.5}, info=info)
        folder = tmp_path / name / "sweeps" / "chaos"
        (folder / "ledger").mkdir(parents=True)
        pd.DataFrame({"ca": [0.5], "host": [name]}).to_parquet(folder / "records.parquet")
    return tmp_path / "calm", tmp_path / "disturbed"


def wrote(root: Path, *events: Event) -> None:
    lines = b"".join(event.pack() + b"\n" for event in events)
    (root / "sweeps" / "chaos" / "ledger" / "1.jsonl").write_bytes(lines)


def struck(fault: Fault, at: float) -> Struck:
    return Struck(fault=fault, said="", began=at, ended=at + 0.5)


def handed(t: float, *keys: str) -> Dispatch:
    return Dispatch(t=t, keys=keys, ready=0)


def done(t: float, key: str) -> Done:
    return Done(t=t, key=key, seconds=1, host="h", pid=1)


def test_a_sweep_that_nothing_disturbed_is_found_well(stores: tuple[Path, Path]) -> None:
    calm, root = stores
    wrote(root, handed(1, KEY), done(2, KEY), handed(3, "evaluate-1"), done(4, "evaluate-1"))
    verdict = judge(calm, root, [])
    assert not verdict.faults and not verdict.waste


def flipped(root: Path) -> None:
    (file,) = root.glob("objects/train/*/*")
    file.write_bytes(file.read_bytes()[:-1] + b"x")


def remade(root: Path) -> None:
    Store(str(root)).put(KEY, arrays={"w": np.arange(8)}, info={})


PLANTED: dict[str, Callable[[Path], object]] = {
    "train-1 is lost": lambda root: Store(str(root)).discard(KEY),
    "train-2 is of no trial": lambda root: Store(str(root)).put("train-2"),
    "train-1 has another content": remade,
    "is damaged, and by none of the faults": flipped,
    "is litter that no fault explains": lambda root: (root / "objects/x").write_text(""),
    "the records differ": lambda root: pd.DataFrame({"ca": [0.6]}).to_parquet(
        root / "sweeps/chaos/records.parquet"
    ),
    "train-1 is done twice, and no fault explains it": lambda root: wrote(
        root, handed(1, KEY), done(2, KEY), handed(3, KEY), done(4, KEY)
    ),
    "train-1 is begun twice, and no fault explains it": lambda root: wrote(
        root, handed(1, KEY), handed(3, KEY), done(4, KEY)
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_the_judge_names_what_is_wrong(stores: tuple[Path, Path], fault: str) -> None:
    calm, root = stores
    PLANTED[fault](root)
    (found,) = judge(calm, root, [struck(WorkerKilled(), 9)]).faults
    assert fault in found


def test_work_done_again_is_counted_for_the_fault_that_cost_it(stores: tuple[Path, Path]) -> None:
    """Of a batch that is lost, the first stage that is not stored was under way."""
    calm, root = stores
    batch = (KEY, "evaluate-1")
    wrote(root, handed(1, *batch), handed(3, *batch), done(4, KEY), done(5, "evaluate-1"))
    verdict = judge(calm, root, [struck(WorkerKilled(), 2)])
    row = verdict.waste["worker"]
    assert not verdict.faults and (row.struck, row.stages, row.seconds) == (1, 1, 2.0)


def test_a_stage_may_go_to_a_lost_host_until_its_loss_is_known(stores: tuple[Path, Path]) -> None:
    calm, root = stores
    wrote(root, handed(10, KEY), handed(30, KEY), done(31, KEY))
    assert not judge(calm, root, [struck(NodeLost(), 5)]).faults
    for late in (struck(NodeLost(), 10 - NodeLost.FELT - 1), struck(WorkerKilled(), 5)):
        (found,) = judge(calm, root, [late]).faults
        assert "begun twice, and no fault explains it" in found
    wrote(root, handed(10, KEY), done(11, KEY), handed(30, KEY), done(31, KEY))
    assert judge(calm, root, [struck(NodeLost(), 5)]).faults  # done twice is another thing


def test_a_damaged_stage_may_be_done_twice_and_leave_litter(stores: tuple[Path, Path]) -> None:
    calm, root = stores
    damage = ArtifactDamaged()
    damage.hit.add(KEY)
    (file,) = root.glob("objects/train/*/*")
    shutil.copy(file, file.with_name(f"{KEY}-0123456789ab.safetensors"))
    wrote(root, handed(1, KEY), done(2, KEY), handed(4, KEY), done(5, KEY))
    assert not judge(calm, root, [struck(damage, 3)]).faults
    assert judge(calm, root, [struck(WorkerKilled(), 3)]).faults
    assert len(judge(calm, root, [struck(DriverReplaced(), 3)]).faults) >= 1


def test_a_launch_that_shows_a_trace_or_ends_otherwise_is_faulty(tmp_path: Path) -> None:
    def ended(text: str, code: int) -> list[str]:
        command = ["sh", "-c", f"echo '{text}'; exit {code}"]
        launch = Launch(command, {}, tmp_path, tmp_path / "log")
        launch.process.wait()
        launch.allow(3)
        return launch.faults()

    assert ended("all is well", 0) == [] == ended("stopped", 3)
    assert "'Traceback' is printed" in ended("Traceback (most recent call last)", 0)[0]
    assert "'ray::' is printed" in ended("ray::StageWorker", 0)[0]
    assert "exit code 1, expected one of [0, 3]" in ended("error", 1)[0]


def test_a_log_that_cannot_be_written_loses_no_stage(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("{name: s, dataset: digits, model: linear, attacks: [none], defenses: [none]}")
    store = Store(str(tmp_path / "store"))
    run = Run(load_sweep(file), store, "")
    (stage,) = run.take({"cpu": 1, "gpu": 0})
    (tmp_path / "store" / run.folder.log(stage.key)).parent.write_text("in its way")
    failed = Result(key=stage.key, status="failed", error="no room", trace="trace", lasting=True)
    run.finished([failed])
    assert run.schedule.failed == {stage.key: failed} and run.over
