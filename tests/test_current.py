"""A stage under way: its progress, its limit, what it took, and the ways in which it may end."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.core.generated import common_pb2
from ray.exceptions import ActorDiedError, OutOfMemoryError

from raysweep.defenses.spectral_signatures import SpectralSignatures
from raysweep.errors import DeviceError, SpecError
from raysweep.jobs.launch import Conclusion, launch
from raysweep.plan.planner import Planner
from raysweep.reports.material import gather
from raysweep.results.table import read_table, write_tables
from raysweep.run import queue
from raysweep.run.cluster.death import UNKNOWN, Death, _from_ray
from raysweep.run.cluster.output import HEADING, Output, file_of, left_by, remove_left, with_output
from raysweep.run.limits import limits_of
from raysweep.run.preview import preview
from raysweep.run.queue import QueueTimes
from raysweep.run.run import Run
from raysweep.stages.current import CurrentStage, current, performing
from raysweep.stages.memory import Peak
from raysweep.stages.stage import Result
from raysweep.store import Store
from raysweep.store.heartbeat import RunningStage
from raysweep.sweep.loading import from_text
from raysweep.sweep.spec import Sweep, to_plain
from raysweep.sweep.yaml import parse
from raysweep.training import device

SWEEP = """
name: current
dataset: {digits: {size: 300}}
model: linear
recipe: {epochs: 1}
attacks: [{badnets: {rate: 0.1}}]
defenses: [none, spectral_signatures]
seeds: 1
track: {wandb: disabled}
"""


def sweep(text: str = "") -> Sweep:
    return from_text(parse("s.yaml", SWEEP + text))


def launched(folder: Path, watch: Callable[[Run], None] = lambda run: None) -> Conclusion:
    return launch(sweep(), SWEEP, str(folder), inline=True, watch=watch)


# Ends


@pytest.mark.parametrize(
    ("error", "told"),
    [(SystemExit(4), "SystemExit: 4"), (KeyboardInterrupt("its own"), "KeyboardInterrupt: its own"),
     (GeneratorExit(), "GeneratorExit: ")],
)  # fmt: skip
def test_what_would_end_the_process_costs_its_own_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, told: str
) -> None:
    def broken(self: Any, *given: Any) -> Any:
        raise error

    monkeypatch.setattr(SpectralSignatures, "run", broken)
    after = launched(tmp_path)
    rows = after.rows.set_index("defense_name")
    assert rows["status"].to_dict() == {"none": "ok", "spectral_signatures": "failed"}
    assert rows.loc["spectral_signatures", "error"] == told and not after.interrupted


def test_a_signal_stops_the_run_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Any, *given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SpectralSignatures, "run", stopped)
    after = launched(tmp_path)
    assert after.interrupted == signal.SIGINT
    assert "failed" not in after.rows["status"].tolist()


# Progress


def test_another_thread_sees_how_far_a_stage_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Run] = []
    seen: list[RunningStage] = []
    real = SpectralSignatures.run

    def watched(self: Any, inputs: Any, ctx: Any) -> Any:
        ctx.progress(0.25, "a quarter")
        asking = threading.Thread(target=lambda: seen.extend(runs[-1].running()))
        asking.start()
        asking.join()
        return real(self, inputs, ctx)

    monkeypatch.setattr(SpectralSignatures, "run", watched)
    after = launched(tmp_path, runs.append)
    (stage,) = seen
    row = after.rows.set_index("defense_name").loc["spectral_signatures"]
    assert (stage.key, stage.fraction, stage.doing) == (row["key_defend"], 0.25, "a quarter")
    assert (stage.pid, stage.device) == (os.getpid(), "cpu")
    assert runs[-1].running() == ()


def test_a_fraction_stays_one_and_a_text_short() -> None:
    now = CurrentStage("train-1")
    for given, kept in ((-1, 0.0), (2, 1.0), (float("nan"), 0.0), (np.float32(0.5), 0.5)):
        now.progress(given, "x" * 1000)
        assert now.state().fraction == kept and len(now.state().doing) == 200


def test_the_stage_of_a_thread_is_known_while_it_is_performed() -> None:
    here = threading.get_ident()
    with performing("train-1") as now:
        assert current(here) is now and current(here + 1) is None
    assert current(here) is None


# Limits


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("0.5", 0.5), ("90s", 90), ("30m", 1800), ("1.5h", 5400)]
)
def test_a_limit_is_of_a_kind_or_of_a_method_which_goes_first(text: str, seconds: float) -> None:
    chosen = sweep(f"resources: {{limits: {{train: {text}, defend: 1h, spectral_signatures: 2m}}}}")
    limit_of, planner = limits_of(chosen), Planner(chosen)
    for trial in planner.trials:
        planner.route(trial, {})
    limits = {(s.kind, s.method): limit_of(s) for s in planner.stages.values()}
    train = limits["train", "linear"]
    assert train is not None and train.seconds == seconds
    own = limits["defend", "spectral_signatures"]
    assert own is not None and own.name == "spectral_signatures" and own.seconds == 120
    assert "resources.limits.spectral_signatures" in own.exceeded and "2m" in own.exceeded
    named = {("train", "linear"), ("defend", "spectral_signatures")}
    rest = {one for one in limits if one not in named and one[1] != "spectral_signatures"}
    assert rest and all(limits[one] is None for one in rest)


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        *(
            (text, ": train: must be seconds above 0, or")
            for text in ("0", "-1", "2d", "soon", "''")
        ),
        (".inf", ".train: must be a finite number"),
    ],
)
def test_a_limit_that_is_no_time_is_refused_with_the_rule(value: str, rule: str) -> None:
    with pytest.raises(SpecError, match=f"resources.limits{rule}"):
        sweep(f"resources: {{limits: {{train: {value}}}}}")


def test_a_limit_of_nothing_is_refused_before_anything_runs(tmp_path: Path) -> None:
    chosen = sweep("resources: {limits: {trian: 2h}}")
    with pytest.raises(SpecError, match=r"resources.limits.trian: must be a stage kind .*'train'"):
        preview(chosen, Store(str(tmp_path)))
    with pytest.raises(SpecError, match="did you mean 'train'"):
        Run(chosen, Store(str(tmp_path)), SWEEP)


def test_a_limit_is_no_part_of_an_identity() -> None:
    chosen = sweep("resources: {limits: {train: 2h}}")
    keys = []
    for one in (sweep(), chosen):
        planner = Planner(one)
        keys.append([planner.route(trial, {}).keys for trial in planner.trials])
    assert keys[0] == keys[1]
    assert to_plain(chosen)["resources"]["limits"] == {"train": "2h"}
    assert "limits" not in to_plain(sweep())["resources"], "written as before where there is none"


# Output


def test_output_is_taken_with_what_c_code_writes_and_given_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with capfd.disabled():
        output = Output(tmp_path / "file")
        with output.taking("train-1"):
            os.write(1, b"first\n")
        with output.taking("train-2"):
            os.write(1, b"standard\n")
            os.write(2, b"errors\n")
        assert output.last() == "standard\nerrors\n"
    sys.stderr.write("after\n")
    assert capfd.readouterr().err == "after\n"
    assert left_by(tmp_path / "file") == ("train-2", "standard\nerrors\n")
    assert left_by(tmp_path / "file") is None, "once"
    output.close()


def test_the_end_of_much_output_is_kept(tmp_path: Path) -> None:
    output = Output(tmp_path / "file")
    with output.taking("train-1"):
        os.write(1, b"x" * (2 << 20) + b"the end")
        output.bound()
    assert output.size < 1 << 17 and output.last().endswith("xthe end")
    assert left_by(tmp_path / "file")[0] == "train-1"  # type: ignore[index]
    output.close()


def test_a_stage_runs_where_its_output_cannot_be_kept(tmp_path: Path) -> None:
    output = Output(tmp_path / "no" / "folder")
    with output.taking("train-1"):
        pass
    assert output.last() == "" and output.size == 0
    output.close()


def test_the_output_of_the_dead_is_removed_and_that_of_the_living_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own, dead = file_of("raysweep/run/left/1"), file_of("raysweep/run/left/2")
    living = Output(own)
    dead.write_text("train-1\nwords")
    remove_left()
    assert dead.exists(), "its driver may read it in a moment"
    for file in (own, dead):
        os.utime(file, (0, 0))
    remove_left()
    assert own.exists() and not dead.exists()
    living.close()
    assert not own.exists()


def test_a_log_has_the_trace_first() -> None:
    assert with_output("trace", "") == "trace"
    assert with_output("trace\n", "words") == f"trace\n\n{HEADING}\nwords"


# Deaths


def actor_died(*, preempted: bool) -> ActorDiedError:
    reasons = common_pb2.NodeDeathInfo.Reason
    reason = reasons.AUTOSCALER_DRAIN_PREEMPTED if preempted else reasons.UNEXPECTED_TERMINATION
    context = common_pb2.ActorDiedErrorContext(
        actor_id=b"0" * 16, node_death_info=common_pb2.NodeDeathInfo(reason=reason)
    )
    return ActorDiedError(context)


MEMORY = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: \
192.0.2.2, ID: f7f2) was 8.31GB used / 23.59GB limit (0.352428)
OOM kill reason: Memory usage 8892596224B exceeded threshold"""


def test_rays_errors_are_told_by_their_type() -> None:
    memory = _from_ray(OutOfMemoryError(MEMORY), "train-1", "words")
    assert memory.of_memory and "8.31GB of 23.59GB were in use" in memory.reason
    assert memory.log.startswith(memory.reason) and memory.log.endswith("words")
    preempted = _from_ray(actor_died(preempted=True), "train-1", "")
    assert not preempted.counts and "preempted" in preempted.reason
    assert _from_ray(None, "", "") == Death(reason=UNKNOWN)
    crash = _from_ray(None, "", "words\nFatal Python error: Aborted\n\nThread 0x1")
    assert crash.reason == "its worker process crashed: Aborted" and crash.counts
    signal_of_ray = _from_ray(None, "", "*** SIGBUS received at time=1 ***\n")
    assert signal_of_ray.reason == "its worker process crashed: SIGBUS"


# Rows


def test_the_peak_is_that_of_the_stage() -> None:
    peak = Peak()
    peak.begin("cpu")
    before = peak.host_bytes
    large = np.ones(256 << 20, dtype=np.uint8)  # more than what was held before can give back
    assert before is not None and peak.host_bytes is not None and peak.gpu_bytes is None
    most = peak.host_bytes
    assert most >= before + (200 << 20)
    del large
    peak.begin("cpu")
    assert peak.host_bytes <= most - (200 << 20)


def test_a_stage_has_waited_since_its_inputs_came_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(queue.time, "monotonic", lambda: clock[0])
    run = Run(sweep(), Store(str(tmp_path)), SWEEP)
    times = QueueTimes(run)
    stages = run.planner.stages
    first = next(key for key, stage in stages.items() if not stage.needs)
    second = next(key for key, stage in stages.items() if set(stage.needs) == {first})
    third = next(key for key, stage in stages.items() if set(stage.needs) - {first, second})

    def waited(key: str, at: float, seconds: float) -> float | None:
        clock[0] = at
        (result,) = times.timed([Result(key=key, status="done", seconds=seconds)])
        return result.queue_seconds

    assert waited(first, 103.0, 2.0) == 1.0
    assert waited(second, 110.0, 1.5) == 5.5
    assert waited(third, 120.0, 1.0) is None, "an input came in another way"
    run.close()


def test_stages_tell_what_they_took_and_old_tables_are_read(tmp_path: Path) -> None:
    after = launched(tmp_path / "store")
    store = Store(str(tmp_path / "store"))
    stages = gather("current", store.uri).stages
    assert (stages["device_name"] != "").all() and (stages["peak_memory_bytes"] > 1 << 26).all()
    assert stages["peak_gpu_memory_bytes"].isna().all() and (stages["queue_seconds"] >= 0).all()
    again = launched(tmp_path / "store")
    stages = gather("current", store.uri).stages
    assert again.ran == 0 and stages["queue_seconds"].isna().all(), "this launch ran none"
    assert (stages["peak_memory_bytes"] > 1 << 26).all()
    new = ["device_name", "peak_memory_bytes", "peak_gpu_memory_bytes", "queue_seconds"]
    write_tables(store, "current", after.rows, stages.drop(columns=new))
    assert read_table(store, "current", "stages") is not None
    shutil.rmtree(tmp_path / "store" / "manifests")
    assert len(gather("current", store.uri).stages) == len(stages)


# Devices


def test_a_host_without_cuda_says_why_it_can_do_no_gpu_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert device.refusal(0) == ""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert device.refusal(0.5) == ""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "is given no GPU work" in device.refusal(0.5) and "torch" in device.refusal(0.5)
    with pytest.raises(DeviceError, match="is given no GPU work"):
        device.claim(0.5)
