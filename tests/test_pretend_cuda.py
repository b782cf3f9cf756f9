"""The pretended CUDA device itself, and training on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raysweep import training
from raysweep.datasets import ImageSet
from raysweep.methods.checkpoints import Checkpoints
from raysweep.methods.context import Context
from raysweep.methods.recipe import Augmentation, Recipe
from raysweep.models.tiny_groupnorm import TinyGroupNorm
from raysweep.store.manifest import pack, unpack
from raysweep.testing import toy
from raysweep.testing.devices import RECIPE, equal_on_both, plain, waits
from raysweep.testing.pretend_cuda import pretended_cuda
from raysweep.training import ensemble
from raysweep.training.ensemble import Way
from tests.contracts.test_devices import small


def on_cuda(shape: tuple[int, ...] = (3,)) -> torch.Tensor:
    return torch.zeros(shape, device="cuda")


# Twelve that a first run on a GPU would find, and the like.
FAULTS: dict[str, Callable[[], Any]] = {
    "numpy": lambda: on_cuda().numpy(),
    "asarray": lambda: np.asarray(on_cuda()),
    "from_numpy": lambda: torch.from_numpy(on_cuda()),
    "sum": lambda: on_cuda() + torch.zeros(3),
    "cat": lambda: torch.cat([on_cuda(), torch.zeros(3)]),
    "index of a CPU tensor": lambda: torch.zeros(3)[on_cuda().long()],
    "mask of the CPU": lambda: on_cuda().masked_fill(torch.zeros(3, dtype=torch.bool), 1),
    "network on the CPU": lambda: torch.nn.Linear(3, 3)(on_cuda((2, 3))),
    "labels on the CPU": lambda: F.cross_entropy(on_cuda((2, 3)), torch.zeros(2).long()),
    "generator of the CPU": lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
    "generator of CUDA": lambda: torch.randperm(3, generator=torch.Generator("cuda")),
    "filling by the CPU": lambda: on_cuda().uniform_(generator=torch.Generator()),
    "sum inside vmap": lambda: torch.vmap(lambda x: x + torch.zeros(3))(on_cuda((2, 3))),
    "second device": lambda: torch.zeros(3, device="cuda:1"),
    "assigned from the CPU": lambda: on_cuda().__setitem__(torch.tensor([0, 1]), torch.ones(2)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_cuda_refuses_is_refused(name: str) -> None:
    with pytest.raises((RuntimeError, TypeError)), pretended_cuda():
        FAULTS[name]()


def test_a_refusal_that_code_hides_is_told_at_the_end() -> None:
    def hidden() -> None:
        try:
            on_cuda() + torch.zeros(3)
        except RuntimeError:
            return

    with (
        pytest.raises(RuntimeError, match=r"went on after .*hidden:\d+: add: operands"),
        pretended_cuda(),
    ):
        hidden()


def test_honest_code_is_not_refused() -> None:
    with pretended_cuda() as counts:
        draw = torch.Generator("cuda").manual_seed(1)
        x = torch.rand(4, 3, device="cuda", generator=draw).requires_grad_()
        half = x * torch.tensor(0.5)  # a number is no operand of a device
        half[torch.tensor([0, 2])].sum().backward()
        assert x.grad is not None and x.grad.device == x.device == torch.device("cuda:0")
        x.data[:2] = torch.ones(2, 3)
        x.data[x > 0.9] = 0
        made = F.one_hot(torch.tensor([0, 2], device="cuda"), 3) + torch.zeros(3).to(x)
        inner = torch.vmap(lambda row: row + torch.ones(3, device=row.device))(x.detach())
        listed = torch.tensor([x[0, 0], x[1, 1]])
        assert made.is_cuda and inner.is_cuda and not listed.is_cuda
        assert torch.as_tensor(x, device="cuda") is x and x.new_zeros(2).is_cuda
        network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout()).cuda()
        assert network(x).is_cuda and np.asarray(
            next(network.cpu().parameters()).detach()
        ).shape == (3, 3)
        assert not torch.cuda.is_available() and not torch.cuda.is_initialized()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert (x @ x.T).dtype == torch.bfloat16
        kept = x.detach().cpu()
    assert counts.refusals == [] and counts.launches["addmm"] == 1
    assert kept[0].tolist() == [0, 0, 0] and not torch.nn.Linear(1, 1).weight.is_cuda
    with pytest.raises(RuntimeError, match="used after its end"):
        x + 1


def test_waits_are_counted_by_kind_and_place() -> None:
    with pretended_cuda() as counts:
        there = torch.arange(4.0).to("cuda")
        if there.sum() > 1:
            there[there > 1].cpu()
        (there == 2).nonzero()
        torch.cuda.synchronize()
        there[there > 1] = 0  # filled: its size is nobody's business
        _ = there + 1
    assert counts.kinds() == {
        "upload": 1, "_local_scalar_dense": 1, "mask": 1, "download": 1, "nonzero": 1,
        "synchronize": 1,
    }  # fmt: skip
    assert counts.copied == {"upload": 16, "download": 8}
    name = f"{__name__}.test_waits_are_counted_by_kind_and_place:"
    assert all(wait.place.startswith(name) for wait in counts.waits)
    assert "nonzero" in counts.table()


def test_copies_that_do_not_block_are_no_waits_from_pinned_memory() -> None:
    with pretended_cuda() as counts:
        pageable, pinned = torch.ones(4), torch.ones(4).pin_memory()
        assert pinned.is_pinned() and not pageable.is_pinned()
        there = pinned[:2].to("cuda", non_blocking=True)
        there.copy_(pinned[2:], non_blocking=True)
        there.to("cpu", non_blocking=True)
        assert counts.kinds() == {}
        pageable.to("cuda", non_blocking=True)
        there.copy_(pageable[2:], non_blocking=True)
        pinned.to("cuda")
    assert counts.kinds() == {"upload": 3} and counts.copied == {"upload": 56, "download": 8}


def fitted(recipe: Recipe, data: ImageSet, ctx: Context, **more: Any) -> tuple[Any, list[float]]:
    network = training.build(toy.MODEL, toy.SHAPE, ctx)
    return network, training.fit(network, data, recipe, ctx, **more)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_and_its_predictions(optimizer: str, precision: str) -> None:
    data = small()
    recipe = RECIPE.model_copy(
        update={"optimizer": optimizer, "precision": precision, "learning_rate": 0.01,
                "augment": get_args(Augmentation)}
    )  # fmt: skip

    def work(device: str) -> Any:
        network, losses = fitted(recipe, data.train, Context(seed=1, device=device))
        images, head = data.test.images, toy.MODEL.HEAD
        values = training.features(network, images, head, head, recipe, device)
        own = training.per_sample_losses(network, data.train, recipe, device)
        return network.state_dict(), losses, values, own

    equal_on_both(work)


def test_a_training_that_goes_on_after_a_kill() -> None:
    data = small().train
    recipe = RECIPE.model_copy(update={"optimizer": "adam", "augment": ("crop", "flip")})

    def work(device: str) -> Any:
        kept: list[Any] = []

        def keep(arrays: Mapping[str, Any]) -> None:
            kept.append(unpack("train-x", pack(arrays)))

        written = Checkpoints(keep, pause=lambda cost: 0.0)
        network, losses = fitted(recipe, data, Context(seed=1, device=device, kept=written.root))
        steps = recipe.epochs * -(-len(data) // recipe.batch_size)
        assert len(kept) == steps + 1, "after each step, and at the end"
        for before in (kept[1], kept[-2], kept[-1]):
            ctx = Context(seed=1, device=device, kept=Checkpoints(restored=before).root)
            resumed, again = fitted(recipe, data, ctx)
            assert again == losses
        whole, other = plain(network.state_dict()), plain(resumed.state_dict())
        np.testing.assert_equal(other, whole)
        return whole

    equal_on_both(work)


@pytest.mark.parametrize("way", ["vmap", "one by one"])
def test_many_members(way: Way) -> None:
    data, model = small(), TinyGroupNorm(width=4)
    masks = np.random.default_rng(3).random((3, len(data.train))) < 0.5

    def work(device: str) -> Any:
        ctx = Context(seed=1, device=device)
        state = ensemble.fit_many(model, data.train, masks, RECIPE, ctx, toy.SHAPE, way=way)
        images = data.test.images
        logits = ensemble.predict_many(model, state, images, RECIPE, ctx, toy.SHAPE, way=way)
        return state, logits

    equal_on_both(work)


@pytest.mark.parametrize("steps_an_epoch", [2, 12])
def test_the_waits_of_an_epoch_do_not_grow_with_its_steps(steps_an_epoch: int) -> None:
    data = small().train
    size = len(data) // steps_an_epoch

    def work(epochs: int) -> None:
        recipe = RECIPE.model_copy(update={"epochs": epochs, "batch_size": size})
        fitted(recipe, data, Context(seed=1, device="cuda"))

    one, three = (waits(lambda epochs=epochs: work(epochs)) for epochs in (1, 3))  # type: ignore[misc]
    assert (three - one) / 2 <= 3, "the order of an epoch goes there, its losses come back"


def test_predicting_waits_for_a_batch_twice_at_most() -> None:
    """A ratchet: once for its images, once for its logits."""
    images = small().test.images

    def work(batch_size: int) -> None:
        network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1, device="cuda"))
        training.predict(network, images, RECIPE, "cuda", batch_size=batch_size)

    few, many = waits(lambda: work(len(images) // 2)), waits(lambda: work(len(images) // 10))
    assert many - few <= 2 * 8


def test_another_result_on_the_device_is_found() -> None:
    with pytest.raises(AssertionError, match="not equal"):
        equal_on_both(lambda device: torch.full((2,), 1.0 + (device == "cuda") * 1e-6))
