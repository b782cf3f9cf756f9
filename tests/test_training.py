"""The training loop: determinism, streams, phases, schedules, augmentation, non-finite losses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raysweep import augmentation, training
from raysweep.context import Context
from raysweep.datasets import ImageSet
from raysweep.errors import NonFiniteLoss
from raysweep.recipe import Recipe
from raysweep.training import Batch, Stream
from tests import toy

FAST = Recipe(epochs=2, batch_size=100, precision="float32")


def trained(seed: int = 1, recipe: Recipe = FAST) -> tuple[dict[str, torch.Tensor], list[float]]:
    network = training.build(toy.MODEL, toy.SHAPE, Context(seed=seed))
    losses = training.fit(network, toy.toy().train, recipe, Context(seed=seed))
    return network.state_dict(), losses


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_bytes(precision: str) -> None:
    recipe = FAST.model_copy(update={"precision": precision, "augment": ("crop", "flip")})
    state = torch.get_rng_state()
    (one, losses), (two, again) = trained(recipe=recipe), trained(recipe=recipe)
    assert torch.equal(torch.get_rng_state(), state)
    assert losses == again and all(torch.equal(one[k], two[k]) for k in one)
    other, _ = trained(seed=2, recipe=recipe)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_a_non_finite_loss_names_its_step() -> None:
    calls = 0

    def objective(model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = training.cross_entropy(model, batches)
        return loss * float("nan") if calls == 9 else loss

    network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
    with pytest.raises(NonFiniteLoss, match="loss of step 8 is nan; lower learning_rate"):
        training.fit(network, toy.toy().train, FAST, Context(seed=1), objective=objective)


def test_streams_are_mixed_every_so_often_and_seen_once_a_pass() -> None:
    case = toy.toy()
    seen: list[tuple[int, ...]] = []
    rows: list[int] = []

    def objective(model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        seen.append(tuple(len(batches[n].labels) if n in batches else 0 for n in ("a", "b")))
        rows.extend(batches["a"].rows.tolist())
        logits = [model(batch.images) for batch in batches.values()]
        return sum(x.square().mean() for x in logits)  # type: ignore[return-value]

    streams = {"a": Stream(data=case.train), "b": Stream(data=case.clean, every=3, batch_size=40)}
    network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
    training.fit(network, streams, FAST, Context(seed=1), objective=objective)
    assert seen == [(100, 40 if step % 3 == 0 else 0) for step in range(12)]
    assert sorted(rows[:600]) == sorted(rows[600:]) == list(range(600))
    assert rows[:600] != rows[600:], "reshuffled"


def test_phases_have_their_own_order_and_carry_an_optimizer() -> None:
    orders: dict[str, list[int]] = {"one": [], "two": []}
    network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
    optimizer = training.make_optimizer(network, FAST)
    for phase in orders:

        def objective(
            model: nn.Module, batches: Mapping[str, Batch], kept: list[int] = orders[phase]
        ) -> torch.Tensor:
            kept.extend(batches["data"].rows.tolist())
            return training.cross_entropy(model, batches)

        training.fit(
            network, toy.toy().train, FAST, Context(seed=1), objective=objective, phase=phase,
            optimizer=optimizer,
        )  # fmt: skip
    assert orders["one"] != orders["two"]
    assert optimizer.state


def test_training_stops_when_asked() -> None:
    network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
    losses = training.fit(
        network, toy.toy().train, FAST.model_copy(update={"epochs": 9}), Context(seed=1),
        on_epoch=lambda epoch, model: epoch == 3,
    )  # fmt: skip
    assert len(losses) == 3 and not network.training


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("cosine", [1, 0.854, 0.5, 0.146, 0.0]),
        ("multistep", [1, 1, 0.1, 0.01, 0.01]),
        ("one_cycle", [0.05, 0.9375, 0.625, 0.3125, 0.0]),
    ],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    recipe = Recipe(learning_rate=1.0, schedule=schedule)  # type: ignore[arg-type]
    found = [training.learning_rate(recipe, step, 100) for step in (0, 25, 50, 75, 100)]
    assert found == pytest.approx(expected, abs=1e-3)


def test_sgd_agrees_with_a_plain_loop() -> None:
    """One full batch, one step, no momentum: w - lr * (gradient + decay * w)."""
    case = toy.toy()
    few = ImageSet(images=case.train.images[:64], labels=case.train.labels[:64])
    recipe = Recipe(
        epochs=1, batch_size=64, learning_rate=0.5, momentum=0.0, weight_decay=0.01,
        schedule="constant", precision="float32",
    )  # fmt: skip
    network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
    network.train()
    before = network.get_parameter("head.weight").detach().clone()
    logits = network(few.images.float() / 255)
    F.cross_entropy(logits, torch.from_numpy(few.labels)).backward()
    gradient = network.get_parameter("head.weight").grad
    assert gradient is not None
    expected = before - 0.5 * (gradient + 0.01 * before)
    network = training.build(toy.MODEL, toy.SHAPE, Context(seed=1))
    training.fit(network, few, recipe, Context(seed=1))
    torch.testing.assert_close(
        network.get_parameter("head.weight").detach(), expected, atol=1e-5, rtol=1e-4
    )


def test_augmentations_move_pixels_and_keep_shapes() -> None:
    images = torch.rand(64, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    for name in ("crop", "flip", "rotate", "cutout"):
        noise = torch.Generator().manual_seed(1)
        out = augmentation.augment(images, (name,), noise)  # type: ignore[arg-type]
        assert out.shape == images.shape and not torch.equal(out, images)
        again = augmentation.augment(images, (name,), torch.Generator().manual_seed(1))  # type: ignore[arg-type]
        assert torch.equal(out, again)
        assert float(out.min()) >= 0 and float(out.max()) <= 1 + 1e-5
    flipped = augmentation.flip(images, torch.Generator().manual_seed(1))
    same = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all() and 10 < int(mirrored.sum()) < 54
    blank = augmentation.cutout(torch.ones(64, 1, 16, 16), torch.Generator().manual_seed(1))
    share = 1 - blank.flatten(1).mean(1)
    assert float(share.max()) <= 25 / 256 and float(share.min()) > 0
    cropped = augmentation.crop(images, torch.Generator().manual_seed(1))
    padded = F.pad(images, (2, 2, 2, 2))
    windows = padded.unfold(2, 16, 1).unfold(3, 24, 1)
    found = (windows == cropped[:, :, None, None]).flatten(4).all(4).all(1).flatten(1).any(1)
    assert found.all(), "every crop is a window of the padded image"


def test_predictions_do_not_depend_on_batches() -> None:
    case = toy.toy()
    network = toy.network(case.weights)
    whole = training.predict(network, case.test.images, toy.RECIPE, "cpu")
    parts = training.predict(network, case.test.images, toy.RECIPE, "cpu", batch_size=7)
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-4)
    assert whole.shape == (200, toy.CLASSES) and np.isfinite(whole.numpy()).all()
