"""The unified framework's four detectors on planted activations, through `run` and `decide`."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from raysweep import training
from raysweep.datasets import ImageSet, Shape
from raysweep.datasets.digits import Digits
from raysweep.defenses import Defense, DefenseInputs, Findings, lid
from raysweep.defenses.activation_sequence import ActivationSequence
from raysweep.defenses.kernel_density import BANDWIDTHS, KernelDensity, best_bandwidth, spreads
from raysweep.defenses.model_mutation import ModelMutation
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.metrics.ranking import ranking
from raysweep.models.linear import Linear
from raysweep.models.two_conv import TwoConv
from raysweep.testing import toy

PIXELS = 6
DIGITS = Shape(channels=1, height=16, width=16, num_classes=10, mean=(0.3,), std=(0.3,))


def planted(labels: np.ndarray, seed: int, last: int = 7) -> torch.Tensor:
    """Return images (N, 1, 1, 6): class 0 near 60, class 1 near 190; the last pixel idles."""
    pixels = np.random.default_rng(seed).normal(0, 8, (len(labels), 1, 1, PIXELS))
    pixels += np.where(labels == 1, 190, 60)[:, None, None, None]
    pixels[..., -1] = last
    return torch.from_numpy(pixels.round().astype(np.uint8))


def run(defense: Defense, pixels: int = PIXELS, given: np.ndarray | None = None) -> Findings:
    """Run a detector on planted images, whose class the first pixel says.

    `given` are the labels of a training set, whose images are of class 0 and 1 in turn.
    """
    shape = Shape(channels=1, height=1, width=pixels, num_classes=2, mean=(0.0,), std=(1.0,))
    network = training.build(Linear(), shape, Context(seed=0)).eval()
    weights = torch.zeros(2, pixels)
    weights[1, 0] = 1.0
    network.load_state_dict({**network.state_dict(), "head.weight": weights,
                             "head.bias": torch.tensor([0.5, 0.0])})  # fmt: skip
    labels = np.arange(80) % 2
    clean = ImageSet(images=planted(labels, 1)[..., :pixels], labels=labels)
    values: dict[str, Any] = {"victim": network, "clean_set": clean, "model": Linear()}
    values |= {"shape": shape, "recipe": toy.RECIPE}
    if given is not None:
        images = planted(np.arange(len(given)) % 2, 9)
        values |= {"training_set": ImageSet(images=images, labels=given), "labels": given}
    return defense.run(DefenseInputs(defense.name, defense.needs(), values), Context(seed=3))


def scores(found: Findings, images: torch.Tensor) -> np.ndarray:
    assert found.score_inputs is not None
    return np.asarray(found.score_inputs(images.float() / 255, np.arange(len(images))))


def auroc(clean: np.ndarray, bad: np.ndarray) -> float:
    truth = np.arange(len(clean) + len(bad)) >= len(clean)
    return ranking(np.concatenate([clean, bad]), truth).auroc


def test_the_density_is_that_of_the_predicted_class() -> None:
    ones, zeros = planted(np.ones(60, int), 2), planted(np.zeros(60, int), 3)
    bad = zeros.clone()
    bad[..., 0] = ones[..., 0]  # of class 1 to the network, of class 0 in all else
    found = run(KernelDensity())
    assert auroc(scores(found, ones), scores(found, bad)) == 1.0
    assert auroc(scores(found, zeros), scores(found, bad)) == 1.0
    assert auroc(scores(found, zeros), scores(found, ones)) == pytest.approx(0.5, abs=0.2)
    wide = run(KernelDensity(bandwidth=1e9))
    assert auroc(scores(wide, ones), scores(wide, bad)) == 0.5, "it tells nothing apart"


def test_the_bandwidth_is_inside_the_grid_where_classes_have_collapsed() -> None:
    draw = np.random.default_rng(0)
    for deviation in (0.1, 1.0):
        groups = [draw.normal(center, deviation, (40, 512)) for center in (-1, 0, 1)]
        found = best_bandwidth(groups)
        assert found == pytest.approx(2**0.5 * deviation, rel=0.4), "neighbors' distance / sqrt(D)"
        place = found / 512**0.5
        assert BANDWIDTHS[0] * 3 < place < BANDWIDTHS[-1] / 3


def test_features_that_do_not_vary_change_nothing_until_they_do() -> None:
    images = planted(np.arange(40) % 2, 5)
    whole, without = run(KernelDensity()), run(KernelDensity(), PIXELS - 1)
    np.testing.assert_allclose(scores(whole, images), scores(without, images[..., :-1]), rtol=1e-5)
    fired = planted(np.arange(40) % 2, 5, last=7 + 51)
    found = run(KernelDensity(bandwidth=0.7))
    gained = scores(found, fired) - scores(found, images)
    # 51 levels are 0.2, in units of a spread of 65 levels and of the bandwidth.
    assert gained == pytest.approx((0.2 / (65 / 255) / 0.7) ** 2 / 2, rel=0.1)


def test_units_are_spreads_and_their_median_for_what_idles() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(0, [1.0, 2.0, 4.0, 0.0], (4000, 4)) + 0.1
    units, alive = spreads(values)
    assert alive.tolist() == [True, True, True, False]
    np.testing.assert_allclose(units, [1, 2, 4, 2], rtol=0.05)
    with pytest.raises(ValueError, match="features that vary"):
        spreads(np.full((7, 3), 0.1))


def test_the_sequence_ends_with_the_prediction() -> None:
    ones, bad = planted(np.ones(60, int), 2), planted(np.zeros(60, int), 3)
    bad[..., 0] = ones[..., 0]  # its neighbors are of class 0, as the network would not have it
    found = run(ActivationSequence())
    assert auroc(scores(found, ones), scores(found, bad)) == 1.0


def test_dimensions_below_and_above_the_usual_are_both_unusual(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def by_the_first_pixel(points: np.ndarray, base: np.ndarray, neighbors: int) -> np.ndarray:
        del base, neighbors
        return np.exp(points[:, 0])

    monkeypatch.setattr(lid, "local_dimension", by_the_first_pixel)
    found = run(lid.LID())
    usual = scores(found, planted(np.arange(60) % 2, 2))
    for level in (0, 255):
        assert auroc(usual, scores(found, torch.full((20, 1, 1, PIXELS), level))) == 1.0


def test_a_filter_counts_changes_from_the_given_label() -> None:
    given = np.arange(60) % 2
    wrong = np.isin(np.arange(60), [4, 7, 20, 33])
    given[wrong] = 1 - given[wrong]
    method = ModelMutation(on="training_set", sign="adversarial", variance=0.01, mutants=20)
    found = run(method, given=given).train_scores
    assert found is not None
    assert np.asarray(found)[wrong].min() > np.asarray(found)[~wrong].max()


@functools.cache
def backdoored() -> tuple[torch.nn.Module, ImageSet, ImageSet, torch.Tensor]:
    """Return a network of two dense layers, clean and test images of digits, and triggered ones."""
    train, test = Digits().decode()
    clean, train = train.take(np.arange(200)), train.take(np.arange(200, len(train)))
    rows = np.flatnonzero(train.labels != 1)[:110]
    images, labels = train.images.clone(), train.labels.copy()
    images[rows], labels[rows] = toy.stamped(images[rows]), 1
    network = training.build(TwoConv(), DIGITS, Context(seed=0))
    recipe = Recipe(epochs=8, batch_size=64, learning_rate=1e-3, optimizer="adam",
                    weight_decay=0.0, precision="float32")  # fmt: skip
    training.fit(network, ImageSet(images=images, labels=labels), recipe, Context(seed=0))
    others = torch.from_numpy(test.labels != 1)
    return network.eval(), clean, test, toy.stamped(test.images[others])


@pytest.mark.parametrize(("variance", "least"), [(0.65, 0.6), (1.5, 0.75)])
def test_few_changes_of_label_find_a_backdoor_in_hidden_dense_layers(
    variance: float, least: float
) -> None:
    network, clean, test, triggered = backdoored()
    predicted = training.predict(network, triggered, toy.RECIPE, "cpu").argmax(1)
    assert float((predicted == 1).float().mean()) > 0.8
    found = {}
    for sign in ("backdoor", "adversarial"):
        method = ModelMutation(variance=variance, mutants=50, sign=sign)  # type: ignore[arg-type]
        values = {"victim": network, "clean_set": clean, "model": TwoConv()}
        values |= {"shape": DIGITS, "recipe": toy.RECIPE}
        run = method.run(DefenseInputs(method.name, method.needs(), values), Context(seed=3))
        found[sign] = auroc(scores(run, test.images), scores(run, triggered))
    assert ModelMutation().sign == "backdoor"
    assert found["backdoor"] > least and found["adversarial"] < 1 - least
