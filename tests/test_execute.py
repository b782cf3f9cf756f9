"""Execution for real: on Ray Tune, inline, killed, launched again."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raysweep.cli.app import main
from raysweep.environment import gathered
from raysweep.identity import kind_of
from raysweep.jobs.launch import Conclusion, launch
from raysweep.plan.planner import Planner
from raysweep.provenance import code_here
from raysweep.reports.material import gather
from raysweep.results import records
from raysweep.run.cluster.batch import Batch, pack_results, unpack_results
from raysweep.run.limits import Limit
from raysweep.run.preview import preview
from raysweep.stages.stage import Result
from raysweep.store import Store, ledger
from raysweep.store.events import Done
from raysweep.store.sweepfolder import SweepFolder
from raysweep.sweep.loading import load_sweep

ROOT = Path(__file__).parent.parent
VARYING = ("seconds", "host", "finished_at", "git_commit", "log", "run")
SWEEP = """
name: small
dataset: {digits: {size: 400}}
model: {tiny_cnn: {width: 8}}
recipe: {epochs: 3, batch_size: 64}
attacks: [none, badnets: {rate: 0.05}]
defenses:
  - none
  - spectral_signatures: {fraction: %s}
  - strip: {overlays: 4}
  - fine_tuning: {epochs: 2}
  - abl: {tuning_epochs: 1, unlearning_steps: 5}
  - neural_cleanse: {steps: 12}
  - random_filter
seeds: %s
track: {wandb: disabled}
"""


def write_sweep(folder: Path, *, fraction: float = 0.1, seeds: int = 1) -> Path:
    file = folder / f"small-{fraction}-{seeds}.yaml"
    text = (SWEEP % (fraction, seeds)).replace("[none, badnets: {", "[none, {badnets: {")
    file.write_text(text.replace("{rate: 0.05}]", "{rate: 0.05}}]"))
    return file


def run(file: Path, store: Path, **options: Any) -> Conclusion:
    return launch(load_sweep(file), file.read_text(), str(store), **options)


def values(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what must be equal however a sweep was run."""
    kept = [c for c in rows.columns if not any(word in c for word in VARYING)]
    return rows[sorted(kept)].reset_index(drop=True)


def assert_same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(values(one), values(other), check_exact=True)


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Conclusion]:
    """The sweep, run inline and undisturbed; tests may add to its store."""
    folder = tmp_path_factory.mktemp("inline")
    done = run(write_sweep(folder), folder / "store", inline=True)
    shutil.copytree(folder / "store", folder / "undisturbed")
    return folder / "store", done


@pytest.fixture(scope="module")
def before(inline: tuple[Path, Conclusion]) -> pd.DataFrame:
    """The undisturbed run's records, as a user loads them."""
    return records.load("small", str(inline[0].parent / "undisturbed"))


def test_inline_finishes_every_trial(inline: tuple[Path, Conclusion]) -> None:
    _, conclusion = inline
    assert (conclusion.rows["status"] == "ok").all(), conclusion.rows[["status", "error"]]
    assert len(conclusion.rows) == 14 and not conclusion.interrupted
    assert Path(conclusion.report).read_text().startswith("<!doctype html>")
    assert conclusion.rows["ca"].between(0, 1).all() and (conclusion.rows["ca_n"] == 400).all()
    assert conclusion.rows["asr"].isna().sum() == 7, "no trigger, no ASR"


@pytest.mark.further
def test_feature_vectors_are_swept_like_images(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for split, count in (("train", 1500), ("test", 800)):
        labels = np.arange(count) % 2
        table = draw.normal(0, 1, (count, 20)).astype(np.float32)
        table[:, :4] += 1.5 * labels[:, None]
        table.tofile(tmp_path / f"X_{split}.dat")
        labels.astype(np.float32).tofile(tmp_path / f"y_{split}.dat")
    file = tmp_path / "programs.yaml"
    file.write_text(f"""
name: programs
dataset: {{ember: {{path: {tmp_path}, features: 20}}}}
model: {{ember_mlp: {{widths: [64, 32, 16], dropout: 0.0}}}}
recipe: {{epochs: 8, batch_size: 64, learning_rate: 0.05}}
attacks:
  - ember_watermark:
      {{rate: [0.0, 0.1], attacker: constrained, feasible: [10, 11, 12, 13, 14, 15], samples: 400}}
defenses: [none, perfect_filter, activation_clustering]
seeds: 1
track: {{wandb: disabled}}
""")
    rows = run(file, tmp_path / "store", inline=True).rows
    assert (rows["status"] == "ok").all(), rows["error"].tolist()
    asr = rows.set_index(["defense_name", "rate"])["asr"]
    assert (rows["ca"] > 0.8).all() and asr["none", 0.1] > asr["none", 0.0] + 0.3
    assert asr["perfect_filter", 0.1] < asr["none", 0.0] + 0.1
    assert (rows.query("rate > 0")["relabeled_count"] == 0).all(), "labels are kept"


def test_records_are_loaded_as_they_were_made(inline: tuple[Path, Conclusion]) -> None:
    store, conclusion = inline
    loaded = records.load("small", str(store))
    assert list(loaded.columns) == list(conclusion.rows.columns)
    for metric in ("ca", "asr", "tpr", "fpr", "poison_count", "own_seconds"):
        pd.testing.assert_series_equal(
            loaded[metric].astype(float), conclusion.rows[metric].astype(float)
        )
    assert loaded["trial"].is_unique
    assert loaded.attrs["sweep"]["versions"]["torch"]
    total = loaded["own_seconds"].sum() + loaded["shared_seconds"].sum()
    stages = gather("small", str(store)).stages
    assert total == pytest.approx(stages["seconds"].sum())


def test_a_second_launch_runs_nothing(inline: tuple[Path, Conclusion], tmp_path: Path) -> None:
    store, before = inline
    again = run(write_sweep(tmp_path), store, inline=True)
    assert again.ran == 0
    assert_same(again.rows, before.rows)


def test_a_changed_threshold_reruns_decisions_and_what_really_changes(
    inline: tuple[Path, Conclusion], tmp_path: Path
) -> None:
    store, _ = inline
    before = Store(str(store)).done()
    run(write_sweep(tmp_path, fraction=0.1001), store, inline=True)
    new = {kind_of(key) for key in Store(str(store)).done() - before}
    assert new == {"decide", "evaluate"}, "the same samples are kept, so nothing is retrained"
    before = Store(str(store)).done()
    run(write_sweep(tmp_path, fraction=0.3), store, inline=True)
    new = {kind_of(key) for key in Store(str(store)).done() - before}
    assert new == {"decide", "train", "features", "evaluate"}


@pytest.mark.further
def test_more_seeds_run_only_the_new_ones(inline: tuple[Path, Conclusion], tmp_path: Path) -> None:
    store, _ = inline
    more = run(write_sweep(tmp_path, seeds=2), store, inline=True)
    finished = more.rows[more.rows["seed"] == 0]
    assert len(more.rows) == 28 and len(finished) == 14
    keys = set(finished["key_evaluate"])
    stages = gather("small", str(store)).stages.set_index("key")
    assert set(stages.loc[sorted(keys), "status"]) == {"cached"}


def test_a_damaged_artifact_is_recomputed(inline: tuple[Path, Conclusion], tmp_path: Path) -> None:
    store, before = inline
    victim = before.rows.iloc[0]["key_victim"]
    (file,) = store.glob(f"objects/train/*/{victim}-*")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    evaluated = before.rows.iloc[0]["key_evaluate"]
    for key in (evaluated, before.rows.iloc[0]["key_tested"]):
        Store(str(store)).discard(key)
    again = run(write_sweep(tmp_path), store, inline=True)
    assert again.ran == 3
    assert_same(again.rows, before.rows)


def test_a_failure_is_a_row_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raysweep.defenses.fine_tuning import FineTuning

    def fail(self: FineTuning, inputs: Any, ctx: Any) -> Any:
        return inputs.poison_mask  # which it does not declare

    real = FineTuning.run
    monkeypatch.setattr(FineTuning, "run", fail)
    conclusion = run(write_sweep(tmp_path), tmp_path / "store", inline=True)
    bad = conclusion.rows[conclusion.rows["status"] != "ok"]
    assert set(bad["defense_name"]) == {"fine_tuning"} and set(bad["status"]) == {"failed"}
    assert "KnowledgeError: fine_tuning read 'poison_mask'" in bad.iloc[0]["error"]
    assert "Traceback" in Path(bad.iloc[0]["log"]).read_text()
    monkeypatch.setattr(FineTuning, "run", real)
    again = run(write_sweep(tmp_path), tmp_path / "store", inline=True)
    assert (again.rows["status"] == "ok").all()


def test_an_upstream_failure_names_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raysweep import training
    from raysweep.errors import NonFiniteLoss

    def diverge(*args: Any, **options: Any) -> Any:
        raise NonFiniteLoss("the loss of step 3 is nan")

    monkeypatch.setattr(training, "fit", diverge)
    rows = run(write_sweep(tmp_path), tmp_path / "store", inline=True).rows
    below = rows[rows["defense_name"] != "abl"]
    assert set(below["status"]) == {"upstream_failed"}
    assert below["error"].str.contains("step 3 is nan").all()
    assert below["error_stage"].str.startswith("train-").all()


def test_a_preview_lists_stage_kinds_in_the_order_of_work(tmp_path: Path) -> None:
    seen = preview(load_sweep(write_sweep(tmp_path)), Store(str(tmp_path / "store")))
    order = [kind.kind for kind in seen.kinds if kind.kind != "shard"]
    assert order == ["prepare", "poison", "train", "features", "defend", "decide", "evaluate"]


def test_a_batch_travels_as_text_and_comes_back_the_same(tmp_path: Path) -> None:
    planner = Planner(load_sweep(write_sweep(tmp_path)))
    for trial in planner.trials:
        planner.route(trial, {})
    stages = tuple(stage.packed() for stage in planner.stages.values())
    batch = Batch(
        resource="gpu", code=code_here(["json"]), ticket="t", refusing="r/", lacking="l/",
        marker="sweeps/a/sweep.json", prefix="p/", trial="1", larger={"memory": 1e9},
        limits={stages[0].key: Limit(name="train", seconds=2.0, text="2s")},
        gpus=0.25, store="s3://bucket/root", environment=gathered(local=True),
        provenance={"run": "r"}, refused=("node",), stages=stages,
    )  # fmt: skip
    config = batch.pack()
    assert {type(value) for value in config.values()} == {str}
    assert Batch.unpack(config) == batch
    results = [
        Result(key="train-1", status="done", seconds=0.1),
        Result(key="x-1", status="failed"),
    ]
    assert unpack_results(pack_results(results)) == results


WITHOUT_RAYSWEEP = """
import pickle, sys
sys.modules["raysweep"] = None
import ray.cloudpickle
worker, shape = pickle.load(open(sys.argv[1], "rb"))
print(worker.__name__, shape({"resource": "cpu", "refused": '["node"]', "larger": "{}"}).refused)
"""


def test_a_host_without_raysweep_can_read_what_is_asked_of_it_first(tmp_path: Path) -> None:
    from ray import cloudpickle

    from raysweep.run.cluster import ray as on_ray
    from raysweep.run.cluster.nodes import shape_of

    file, sweep = tmp_path / "worker", load_sweep(write_sweep(tmp_path))
    with on_ray._by_value():
        file.write_bytes(cloudpickle.dumps((on_ray.StageWorker, shape_of(sweep))))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAYSWEEP, str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "StageWorker ['node']\n", done.stderr


def driver(file: Path, store: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "raysweep", "launch", str(file), "--storage", str(store)], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
    )  # fmt: skip


def heard(store: Path) -> list[Done]:
    """Return the stages that drivers have heard of: workers store them a moment before."""
    events = ledger.read(SweepFolder(Store(str(store)), "small"))
    return [event for event in events if isinstance(event, Done)]


def filled(done: list[Done]) -> bool:
    """Return whether 30 stages are done, and two workers did a fair part of them."""
    busiest = Counter(event.pid for event in done).most_common(2)
    return len(done) >= 30 and len(busiest) == 2 and busiest[1][1] >= len(done) / 8


@dataclass(frozen=True)
class Launched:
    """A launch on Ray that came to a bad end, and what its store held then."""

    file: Path
    store: Path
    done: dict[Path, int]  # manifest → when it was written
    heard: list[Done]
    status: int
    output: str

    @classmethod
    def after(
        cls, file: Path, store: Path, enough: Callable[[list[Done]], bool], number: int
    ) -> Launched:
        """Launch a sweep; signal its driver, or all its processes to kill it, at enough stages."""
        process = driver(file, store)
        limit = time.monotonic() + 400
        while process.poll() is None and not enough(heard(store)) and time.monotonic() < limit:
            time.sleep(0.05)
        if number == signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError):  # it came to its end before
                os.killpg(process.pid, number)
            process.wait()
        else:
            process.send_signal(number)
        said = "" if number == signal.SIGKILL else process.communicate(timeout=300)[0].decode()
        done = {f: f.stat().st_mtime_ns for f in (store / "manifests").rglob("*.json")}
        return cls(file, store, done, heard(store), process.returncode, said)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """The sweep on Ray, killed by force as soon as both workers did their part."""
    folder = tmp_path_factory.mktemp("killed")
    return Launched.after(write_sweep(folder, seeds=2), folder / "store", filled, signal.SIGKILL)


@pytest.fixture(scope="module")
def stopped(killed: Launched) -> Launched:
    """The sweep that was killed, on Ray again, and stopped by Ctrl-C."""
    least = len(killed.heard) + 8
    return Launched.after(killed.file, killed.store, lambda done: len(done) >= least, signal.SIGINT)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one slot has one worker")
def test_stages_shorter_than_a_workers_start_still_fill_every_slot(killed: Launched) -> None:
    """One stage comes first, alone; those after it take a fraction of a worker's start."""
    assert filled(killed.heard), Counter(event.pid for event in killed.heard)


@pytest.mark.slow
@pytest.mark.ray
def test_ctrl_c_leaves_a_consistent_state(killed: Launched, stopped: Launched) -> None:
    assert stopped.status == 130, stopped.output
    assert "go on with: raysweep launch" in stopped.output and "Traceback" not in stopped.output
    cached = re.search(r"(\d+) stages ran, (\d+) were stored already", stopped.output)
    # Workers outlive a killed driver by a moment and may still finish what they hold.
    assert cached and int(cached[1]) >= 4 and len(killed.done) <= int(cached[2]), stopped.output
    rows = records.load("small", str(stopped.store))
    assert len(rows) == 28 and "pending" in set(rows["status"])


@pytest.mark.slow
@pytest.mark.ray
def test_ray_gives_the_same_bytes_as_inline_even_after_kill_9(
    killed: Launched, stopped: Launched, before: pd.DataFrame
) -> None:
    assert killed.status == -signal.SIGKILL and stopped.status == 130
    assert 30 <= len(killed.done) < len(stopped.done) < 156, "killed and stopped in the middle"
    run(write_sweep(killed.store.parent), killed.store, inline=True)
    for file, at in (killed.done | stopped.done).items():
        assert file.stat().st_mtime_ns == at, "no finished stage repeats"
    assert_same(records.load("small", str(stopped.store)), before)


def told(
    file: Path, patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str]:
    """Launch a sweep in this process as from the command line; return the status and the text."""
    store = str(file.parent / "store")
    patch.setattr(sys, "argv", ["raysweep", "launch", str(file), "--storage", store, *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), "".join(capfd.readouterr())


@pytest.mark.further
@pytest.mark.ray
def test_more_than_the_machine_has_is_one_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_sweep(tmp_path)
    file.write_text(file.read_text() + "resources: {gpu: {gpu: 64}}\n")
    status, output = told(file, monkeypatch, capfd)
    assert status == 2, output
    assert "resources.gpu.gpu: a stage asks for 64, this machine has" in output


@pytest.mark.ray
def test_no_cluster_at_an_address_is_one_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_sweep(tmp_path)
    status, output = told(file, monkeypatch, capfd, "--address", "127.0.0.1:1")
    assert status == 2, output
    assert "check that it runs (ray status)" in output and "Traceback" not in output
