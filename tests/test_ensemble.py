"""Many members as one: equal to plain training, each on its own samples, in both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from raysweep import training
from raysweep.datasets import ImageSet
from raysweep.errors import NonFiniteLoss, StageError
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.models.tiny_groupnorm import TinyGroupNorm
from raysweep.testing import toy
from raysweep.training import Batch, ensemble
from raysweep.training.ensemble import Way

MODEL = TinyGroupNorm(width=8)
RECIPE = Recipe(
    epochs=3, batch_size=100, precision="float32", augment=("crop",), label_smoothing=0.1
)
WAYS: tuple[Way, ...] = ("vmap", "one by one")
# Two orders of the same float32 sums: about 1e-7 a step, which a rate of 0.1 and the kinks of ReLU
# and max pooling amplify over 18 steps; found are differences up to 2e-4.
CLOSE = {"atol": 2e-3, "rtol": 2e-3}


def masks(members: int = 4, share: float = 0.5) -> np.ndarray:
    return np.random.default_rng(3).random((members, 600)) < share


def fitted(
    given: np.ndarray, way: Way, recipe: Recipe = RECIPE, seed: int = 1
) -> dict[str, torch.Tensor]:
    train = toy.toy().train
    return ensemble.fit_many(MODEL, train, given, recipe, Context(seed=seed), toy.SHAPE, way=way)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_all_at_once_equals_one_by_one(optimizer: str) -> None:
    rate = {"sgd": 0.1, "adam": 0.003}[optimizer]
    # Adam divides by the root of its second moment, so it is compared after one epoch alone.
    recipe = RECIPE.model_copy(
        update={"optimizer": optimizer, "learning_rate": rate, "epochs": 3 if rate == 0.1 else 1}
    )
    states = [fitted(masks(), way, recipe) for way in WAYS]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], **CLOSE, msg=lambda m, n=name: n + m)
        assert len(tensor) == 4
    images = toy.toy().test.images
    logits = [
        ensemble.predict_many(
            MODEL, state, images, RECIPE, Context(seed=1), toy.SHAPE, way=way, batch_size=70
        )
        for state, way in zip(states, WAYS, strict=True)
    ]
    assert logits[0].shape == (4, 200, toy.CLASSES)
    torch.testing.assert_close(logits[0], logits[1], atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("way", WAYS)
def test_a_member_equals_plain_training_with_its_weights(way: Way) -> None:
    given = masks(2)
    state = fitted(given, way)
    weights = torch.from_numpy(given[1]).float()

    def objective(model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
        batch = batches["data"]
        chosen = weights[batch.rows] > 0
        return F.cross_entropy(
            model(batch.images)[chosen], batch.labels[chosen], label_smoothing=0.1
        )

    ctx = Context(seed=1)
    network = training.build(MODEL, toy.SHAPE, ctx, "member", 1)
    training.fit(network, toy.toy().train, RECIPE, ctx, objective=objective)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(state[name][1], tensor, **CLOSE)


@pytest.mark.parametrize("way", WAYS)
def test_masks_and_initialization_tell_members_apart_and_runs_repeat(way: Way) -> None:
    given = np.stack([masks(1)[0]] * 3)
    state, again = fitted(given, way), fitted(given, way)
    assert all(torch.equal(state[n], again[n]) for n in state)
    head = state["head.weight"]
    assert not torch.allclose(head[0], head[1], atol=1e-2), "initializations differ"
    given[2] = ~given[2]
    other = fitted(given, way)["head.weight"]
    torch.testing.assert_close(other[:2], head[:2], **CLOSE)
    assert not torch.allclose(other[2], head[2], atol=1e-3), "masks matter"


@pytest.mark.further
@pytest.mark.parametrize("way", WAYS)
def test_a_member_without_a_class_does_not_know_it(way: Way) -> None:
    """Planted: member c has no sample of class c; the last has everything."""
    train, test = toy.toy(rate=0.0).train, toy.toy(rate=0.0).test
    given = np.stack([train.labels != c for c in range(toy.CLASSES)] + [np.ones(600, bool)])
    recipe = RECIPE.model_copy(update={"epochs": 12, "augment": ()})
    ctx = Context(seed=2)
    state = ensemble.fit_many(MODEL, train, given, recipe, ctx, toy.SHAPE, way=way)
    logits = ensemble.predict_many(MODEL, state, test.images, recipe, ctx, toy.SHAPE, way=way)
    hit = logits.argmax(2).numpy() == test.labels
    for c in range(toy.CLASSES):
        assert hit[c, test.labels == c].mean() < 0.05
        assert hit[c, test.labels != c].mean() > 0.8
    assert hit[-1].mean() > 0.9


@pytest.mark.parametrize("way", WAYS)
def test_a_member_without_samples_keeps_finite_weights(way: Way) -> None:
    given = np.zeros((2, 600), bool)
    given[1, :3] = True
    recipe = RECIPE.model_copy(update={"weight_decay": 0.0})
    state = fitted(given, way, recipe)
    start = training.build(MODEL, toy.SHAPE, Context(seed=1), "member", 0).state_dict()
    assert all(torch.equal(state[n][0], start[n]) for n in start), "nothing to learn from"
    assert all(bool(torch.isfinite(t).all()) for t in state.values())


class Convolutions(TorchDispatchMode):
    """Records the precision of every convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "convolution" in str(func):
            self.seen.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_bfloat16_reaches_the_convolutions_of_both_ways() -> None:
    recipe = RECIPE.model_copy(update={"precision": "bfloat16", "epochs": 1})
    images = toy.toy().test.images
    heads, logits = [], []
    for way in WAYS:
        with Convolutions() as log:
            state = fitted(masks(2), way, recipe)
        assert set(log.seen) == {torch.bfloat16}
        assert all(t.dtype == torch.float32 for t in state.values())
        heads.append(state["head.weight"])
        logits.append(
            ensemble.predict_many(MODEL, state, images, recipe, Context(seed=1), toy.SHAPE, way=way)
        )
    # 8 bits of mantissa: 0.4 % a product.
    torch.testing.assert_close(heads[0], heads[1], atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(logits[0], logits[1], atol=1e-1, rtol=1e-1)


@pytest.mark.parametrize("way", WAYS)
def test_a_non_finite_loss_names_step_and_member(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    build = training.build

    def planted(model: object, shape: object, ctx: Context, *names: str | int) -> nn.Module:
        network = build(MODEL, toy.SHAPE, ctx, *names)
        if names == ("member", 2):
            network.get_parameter("head.bias").data[0] = float("nan")
        return network

    monkeypatch.setattr(training, "build", planted)
    with pytest.raises(NonFiniteLoss, match="member 2: the loss of step 0 is nan"):
        fitted(masks(), way)


def test_what_cannot_be_right_is_refused() -> None:
    case = toy.toy()
    with pytest.raises(StageError, match=r"layer block1\.1 is batch norm.*tiny_groupnorm"):
        ensemble.fit_many(toy.MODEL, case.train, masks(), RECIPE, Context(seed=1), toy.SHAPE)
    few = ImageSet(images=case.train.images[:5], labels=case.train.labels[:5])
    for bad in (masks(), masks()[0, :5], np.ones((2, 5)), np.ones((0, 5), bool)):
        with pytest.raises(StageError, match=r"masks must be \(members, 5\) booleans"):
            ensemble.fit_many(MODEL, few, bad, RECIPE, Context(seed=1), toy.SHAPE)


@pytest.mark.parametrize("together", [1, 2])
def test_members_in_blocks_are_those_of_one_block(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = masks()
    whole = fitted(given, "vmap")
    monkeypatch.setattr(ensemble, "members_at_once", lambda *_: together)
    blocks = fitted(given, "vmap")
    for name, tensor in whole.items():
        torch.testing.assert_close(blocks[name], tensor, **CLOSE)


def test_the_device_decides() -> None:
    given = masks(2)
    states = [fitted(given, way) for way in ("auto", "one by one")]  # type: ignore[arg-type]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
