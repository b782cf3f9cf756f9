"""The device of a stage: a share without CUDA, faults that pass, leaks, what a process may see."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from raysweep import methods, training
from raysweep.attacks.none import NoAttack
from raysweep.datasets.digits import Digits
from raysweep.defenses.none import NoDefense
from raysweep.errors import DeviceError
from raysweep.identity import kind_of
from raysweep.methods.recipe import Recipe
from raysweep.models.linear import Linear
from raysweep.plan.planner import Planner
from raysweep.run.cluster.ray import run_on_ray
from raysweep.run.run import Run
from raysweep.stages import perform
from raysweep.store import Store
from raysweep.sweep.spec import Sweep
from raysweep.testing.pretend_cuda import pretended_cuda
from raysweep.training import device, resident, room, step

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
    result = perform.perform(stage.packed(), Store(str(tmp_path)), {}, 0.5)
    assert result.status == "failed" and not result.lasting
    built = "built without CUDA" if torch.version.cuda is None else "built for CUDA"
    for told in (socket.gethostname(), torch.__version__, built, "0.5 GPUs", "raysweep doctor"):
        assert told in result.error
    assert perform.perform(stage.packed(), Store(str(tmp_path)), {}, 0).status == "done"


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


@pytest.fixture
def quick_and_rough() -> Iterator[None]:
    """Let torch round and choose kernels as it pleases, and in the end as it did before."""
    backends = torch.backends
    flags = ((backends.cuda.matmul, "allow_tf32", True), (backends.cudnn, "allow_tf32", True),
             (backends.cudnn, "deterministic", False))  # fmt: skip
    before = [getattr(owner, name) for owner, name, _ in flags]
    for owner, name, value in flags:
        setattr(owner, name, value)
    yield
    for (owner, name, _), value in zip(flags, before, strict=True):
        setattr(owner, name, value)


@pytest.mark.usefixtures("quick_and_rough")
def test_a_claim_makes_float32_float32_and_holds_a_stage_to_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    monkeypatch.setattr(device, "_total_bytes", lambda: 80 << 30)
    with pretended_cuda(graphs=True):
        assert device.claim(0) == "cpu" and torch.backends.cudnn.allow_tf32 and not shares
        assert device.claim(0.25) == "cuda"
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.deterministic
    assert shares == [device.memory_share(0.25, 80 << 30)]


def test_one_kernel_is_tried_on_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is patched inside the pretended GPU is undone before it ends: both restore torch."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    with pretended_cuda(graphs=True):
        assert device.try_kernel() == "card 0"
        with monkeypatch.context() as inner:
            inner.setattr(torch, "ones", lambda count, device: torch.zeros(count, device=device))
            assert device.try_kernel() == "card 0: a sum of 1,000 ones gave 0.0"
    with pytest.raises(RuntimeError, match="there is one device"), pretended_cuda(graphs=True):
        with monkeypatch.context() as inner:
            inner.setattr(torch.cuda, "device_count", lambda: 2)
            first, second = device.try_kernel().split(", ", 1)
        assert first == "card 0" and second.startswith("card 1: a kernel fails (pretended CUDA")


def test_what_is_free_lies_within_a_stages_share(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"current_device": 0, "memory_reserved": 20, "memory_allocated": 12}
    for name, value in known.items():
        monkeypatch.setattr(torch.cuda, name, lambda device=None, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 100))
    for share, free in ((1.0, 38), (0.25, 13), (0.1, 0)):
        monkeypatch.setattr(
            torch.cuda, "get_per_process_memory_fraction", lambda device, share=share: share
        )
        assert room.free_bytes() == free


def test_a_leak_is_what_a_clean_worker_did_not_hold() -> None:
    leaks = device.Leaks()
    assert not leaks.exceeded(100 << 20)  # cuBLAS's workspaces, say
    assert not leaks.exceeded(160 << 20)
    assert leaks.exceeded(165 << 20)
    assert not leaks.exceeded(10 << 20)
    assert leaks.exceeded(100 << 20)
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
    assert resident.known(images, "meta") is None
    there = resident.resident(images, "meta")
    assert resident.known(images, "meta") is there is resident.resident(images, "meta")
    assert resident.known(images, "cpu") is None
    images[0] = 1
    assert resident.known(images, "meta") is None
    again = resident.resident(images, "meta")
    assert again is not there
    resident.forget()
    assert resident.known(images, "meta") is None
    assert resident.resident(images, "cpu").is_contiguous(memory_format=torch.channels_last)


def test_a_training_is_captured_only_on_a_gpu_that_is_there() -> None:
    network = torch.nn.Linear(3, 2)
    optimizer = training.make_optimizer(network, Recipe())
    eager = step.EagerStep(network, optimizer, {}, training.cross_entropy, Recipe(), "cuda")
    if not torch.cuda.is_available():
        assert step.step_of(eager, 10_000, captured=True) is eager
    assert step.step_of(eager, 10_000, captured=False) is eager
    assert step.step_of(eager, 10, captured=True) is eager


def test_batches_are_counted_as_torch_counts_them() -> None:
    layers = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3, momentum=None))
    step.count_on(layers, "meta")
    assert layers[0].num_batches_tracked.is_meta and not layers[1].num_batches_tracked.is_meta
    layers = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    step.count_on(layers, "cpu")
    layers(torch.rand(4, 3))
    assert layers.state_dict()["0.num_batches_tracked"] == 1


def test_what_a_network_keeps_of_an_image_in_closed_form() -> None:
    """A linear layer keeps its input; a ReLU its output, which is the next layer's input."""
    layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10), torch.nn.ReLU(),
                                 torch.nn.Linear(10, 4))  # fmt: skip
    image = torch.rand(1, 3, 4, 4)
    recipe = Recipe(precision="float32")
    assert room.kept_bytes(layers, image, recipe, "cpu") == 4 * (48 + 10)


def test_what_fits_is_bounded_by_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda: 1000)
    assert room.fitting(6, 10**9) == 100
    assert room.fitting(6, 50) == 50
    assert room.fitting(10_000, 50) == room.fitting(0, 1) == 1


PEEK = """
'''Peek: tells what its process may see; the first process of all then loses its device.'''
import os
from pathlib import Path
from raysweep.attacks import Attack

class Peek(Attack):
    def stamp(self, images_BCHW, *, ids, part, artifact, seed):
        if str(os.getpid()) == os.environ["PLANNER"]:
            return images_BCHW  # a plan tries each trigger
        from raysweep.training import device
        folder = Path(os.environ["PEEK"])
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
        (folder / f"{os.getpid()} {len(ids)}").write_text(visible)
        try:
            (folder / "lost").touch(exist_ok=False)
            device.broken = lambda: True
        except FileExistsError:
            pass
        return images_BCHW
"""


@pytest.mark.long
@needs_no_gpu
@pytest.mark.slow
@pytest.mark.ray
def test_workers_see_their_gpus_alone_and_end_when_a_device_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = tmp_path / "third" / "peek-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: peek\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[raysweep.attacks]\npeek = peek\n")
    (tmp_path / "third" / "peek.py").write_text(PEEK)
    seen = tmp_path / "seen"
    seen.mkdir()
    monkeypatch.setenv("PEEK", str(seen))
    monkeypatch.setenv("PLANNER", str(os.getpid()))
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 2, "GPU": 1}')
    root = Path(device.__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "third"), str(root)]))
    monkeypatch.syspath_prepend(str(tmp_path / "third"))
    methods.available.cache_clear()
    peek = methods.load("attacks", "peek")
    given = sweep(
        attacks=[peek(rate=rate) for rate in (0.1, 0.2, 0.3)],
        seeds=1,
        resources={"gpu": {"cpu": 1, "gpu": 0.5}},
    )
    run = Run(given, Store(str(tmp_path / "store")), "")
    run_on_ray(run, address=None, max_concurrent=1)
    run.close()
    methods.available.cache_clear()
    told = {file.name: file.read_text() for file in seen.iterdir() if file.name != "lost"}
    assert set(told.values()) == {""}, "a worker without a share of a GPU sees none"
    assert len(told) == 3, "each stage was begun once"
    assert len({name.split()[0] for name in told}) == 2, "the process that lost its device ended"
    failed = {kind_of(key): result for key, result in run.schedule.failed.items()}
    assert failed.keys() == {"train"}, "what needs no GPU is done"
    for result in failed.values():
        assert "0.5 GPUs and CUDA cannot be used" in result.error and result.host in result.error
        assert not result.lasting
