"""The device of a stage: a share without CUDA, faults that pass, leaks, what a process may see."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from raysweep import device, resident, stages, training
from raysweep.attacks.none import NoAttack
from raysweep.datasets.digits import Digits
from raysweep.defenses.none import NoDefense
from raysweep.driver import Run
from raysweep.errors import DeviceError
from raysweep.execute import run_on_ray
from raysweep.graph import Result, Stage
from raysweep.models.linear import Linear
from raysweep.plan import Planner
from raysweep.recipe import Recipe
from raysweep.spec import Sweep
from raysweep.store import Store

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA can be used here")


def sweep(**given: Any) -> Sweep:
    values: dict[str, Any] = {
        "name": "t", "dataset": Digits(), "model": Linear(), "attacks": [NoAttack()],
        "defenses": [NoDefense()], "seeds": 6, "track": {"wandb": "disabled"},
        "recipe": Recipe(epochs=1, precision="float32"),
    }  # fmt: skip
    return Sweep.model_validate({**values, **given})


@needs_no_gpu
def test_a_share_of_a_gpu_without_cuda_is_no_cpu(tmp_path: Path) -> None:
    planner = Planner(sweep())
    planner.route(planner.trials[0], {})
    (stage,) = (s for s in planner.stages.values() if s.kind == "prepare")
    result = stages.perform(stage, Store(str(tmp_path)), {}, 0.5)
    assert result.status == "failed" and not result.lasting
    built = "built without CUDA" if torch.version.cuda is None else "built for CUDA"
    for told in (socket.gethostname(), torch.__version__, built, "0.5 GPUs", "raysweep doctor"):
        assert told in result.error
    assert stages.perform(stage, Store(str(tmp_path)), {}, 0).status == "done"


def test_errors_of_the_device_pass() -> None:
    for error in (
        DeviceError("no CUDA"),
        torch.OutOfMemoryError("CUDA out of memory"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
    ):
        assert device.passing(error)
    for error in (RuntimeError("shapes differ"), ValueError("no"), AssertionError()):
        assert not device.passing(error)


def test_a_stage_that_shares_a_gpu_leaves_room_for_its_context() -> None:
    total = 80 << 30
    assert device.memory_share(1.0, total) == device.memory_share(2.0, total) == 1.0
    four = 4 * device.memory_share(0.25, total)
    assert four * total + 4 * device.CONTEXT_BYTES == pytest.approx(total)
    assert device.memory_share(0.01, 8 << 30) == pytest.approx(0.005)


def test_a_leak_is_what_a_clean_worker_did_not_hold() -> None:
    leaks = device.Leaks()
    assert not leaks.found(100 << 20)  # cuBLAS's workspaces, say
    assert not leaks.found(160 << 20)
    assert leaks.found(165 << 20)
    assert not leaks.found(10 << 20)
    assert leaks.found(100 << 20)
    assert device.held_bytes() == 0 and not device.broken()


def test_a_seed_opens_no_context_on_gpus_that_are_merely_visible(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def opened(*_: Any) -> None:
        raise AssertionError("asked a GPU for its state")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", opened)
    before = torch.get_rng_state()
    with training.global_seed(1):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with training.global_seed(1):
        assert torch.equal(torch.rand(3), first)


def test_copies_on_a_device_follow_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    assert resident.known(images) is None
    there = resident.resident(images, "meta")
    assert resident.known(images) is there is resident.resident(images, "meta")
    images[0] = 1
    assert resident.known(images) is None
    again = resident.resident(images, "meta")
    assert again is not there
    resident.forget()
    assert resident.known(images) is None
    assert resident.resident(images, "cpu").is_contiguous(memory_format=torch.channels_last)


def test_a_training_is_captured_only_on_a_gpu_that_is_there() -> None:
    network = torch.nn.Linear(3, 2)
    optimizer = training.make_optimizer(network, Recipe())
    eager = training.EagerStep(network, optimizer, {}, training.cross_entropy, Recipe(), "cuda")
    if not torch.cuda.is_available():
        assert training.step_of(eager, 10_000, captured=True) is eager
    assert training.step_of(eager, 10_000, captured=False) is eager
    assert training.step_of(eager, 10, captured=True) is eager


def test_batches_are_counted_as_torch_counts_them() -> None:
    layers = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3, momentum=None))
    training.count_on(layers, "meta")
    assert layers[0].num_batches_tracked.is_meta and not layers[1].num_batches_tracked.is_meta
    layers = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    training.count_on(layers, "cpu")
    layers(torch.rand(4, 3))
    assert layers.state_dict()["0.num_batches_tracked"] == 1


def _seen(stage: Stage, store: Store, provenance: Any, gpus: float) -> Result:
    """What a worker does in the test below: the first batch of all loses its device."""
    folder = Path(store.uri) / "seen"
    folder.mkdir(exist_ok=True)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    (folder / f"{stage.key}.{os.getpid()}").write_text(f"{stage.kind} {gpus:g} {visible}")
    result = stages.perform(stage, store, provenance, 0)
    try:
        (folder / "lost").touch(exist_ok=False)
    except FileExistsError:
        return result
    device.broken = lambda: True
    return result


@pytest.mark.slow
@pytest.mark.ray
def test_workers_see_their_gpus_alone_and_end_when_a_device_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 3, "GPU": 1}')
    given = sweep(resources={"gpu": {"cpu": 1, "gpu": 0.5}})
    run = Run(given, Store(str(tmp_path)), "")
    run_on_ray(run, address=None, most=1, perform=_seen)
    run.close()
    assert not run.schedule.failed and run.complete
    told = {f.name: f.read_text() for f in (tmp_path / "seen").iterdir() if f.name != "lost"}
    assert len(told) == len(run.schedule.wanted)  # each stage was begun once
    for text in told.values():
        _, gpus, visible = (text + " ").split(" ")[:3]
        assert visible == ("0" if gpus == "0.5" else ""), text
    assert {text.split(" ")[1] for text in told.values()} == {"0", "0.5"}
    first = min((tmp_path / "seen").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    gone = first.name.rpartition(".")[2]
    assert sum(name.endswith(f".{gone}") for name in told) == 1
    assert not any(run.schedule._tries.values())
