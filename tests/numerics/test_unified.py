"""The unified framework's four detectors against closed forms and simulated curves."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from raysweep import metrics
from raysweep.context import Context
from raysweep.defenses import _scored as scored
from raysweep.defenses.activation_sequence import ActivationSequence, surprise, switches
from raysweep.defenses.kernel_density import KernelDensity, best_bandwidth, log_density
from raysweep.defenses.lid import LID, local_dimension
from raysweep.defenses.model_mutation import ModelMutation, Mutants, sprt, trailing_dense
from tests import toy

NOISE = torch.Generator


def dense(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 4))


def mutants(network: nn.Module, variance: float, count: int = 100) -> Mutants:
    return Mutants(network, "3", count, variance, NOISE().manual_seed(1))


def test_mutants_have_the_noise_of_the_definition() -> None:
    with torch.random.fork_rng():
        network = dense()
    first, layers = trailing_dense(network, "3")
    assert first == "1" and len(layers) == 3
    weight = network[3].weight.detach()
    # The mean is far from 0, and the largest weight is not the largest magnitude.
    weight.mul_(2).sub_(0.2)
    assert float(weight.mean()) < -0.1 and float(weight.abs().max()) > 1.3 * float(weight.max())
    made = torch.stack(mutants(network, 0.65, 3000).weights[2])
    noise = made - weight
    assert float(noise.mean()) == pytest.approx(float(weight.mean()), abs=0.01)
    assert float(noise.std()) == pytest.approx(0.65 * float(weight.max()), rel=0.02)


def test_cached_features_give_what_a_whole_forward_gives() -> None:
    with torch.random.fork_rng():
        network = dense()
    images = torch.rand(30, 1, 3, 3, generator=NOISE().manual_seed(3))
    made = mutants(network, 0.3, 5)
    own, changed = made.labels(images)
    with torch.no_grad():
        assert (own == network(images).argmax(1).numpy()).all()
        for number in range(5):
            import copy

            mutant = copy.deepcopy(network)
            mutant[1].weight.copy_(made.weights[0][number])
            mutant[3].weight.copy_(made.weights[2][number])
            assert (changed[number] == mutant(images).argmax(1).numpy()).all()


def test_without_noise_or_with_one_class_nothing_changes() -> None:
    with torch.random.fork_rng():
        network = dense()
    images = torch.rand(20, 1, 3, 3, generator=NOISE().manual_seed(3))
    made = mutants(network, 0.0)
    assert all(torch.equal(m, network[3].weight) for m in made.weights[2])
    own, changed = made.labels(images)
    assert (changed == own).all()
    with torch.no_grad():
        network[3].bias[2] = 1e6
    own, changed = mutants(network, 0.65).labels(images)
    assert (own == 2).all() and (changed == 2).all()


def test_the_sequential_test_is_a_fixed_cut() -> None:
    def ratio(changes: int) -> float:
        # The changes last, so that no bound is met before all are counted.
        return float(sprt((np.arange(100) >= 100 - changes)[:, None], 0.0124, 0.1)[0])

    bound = np.log(19)
    assert ratio(16) >= bound > ratio(15)
    assert ratio(0) > -bound, "it never accepts a low rate"
    assert float(sprt(np.ones((100, 1), bool), 0.0124, 0.1)[0]) == pytest.approx(
        15 * 0.2007, rel=0.01
    )


@pytest.mark.parametrize("rate", [0.10, 0.15, 0.20, 0.25])
def test_the_operating_curve_is_binomial(rate: float) -> None:
    changes = np.random.default_rng(0).random((100, 40_000)) < rate
    found = float((sprt(changes, 0.0124, 0.1) >= np.log(19)).mean())
    assert found == pytest.approx(float(stats.binom.sf(15, 100, rate)), abs=0.01)
    # The released code looks before it counts the change, hence 17 of 100: 2, 33, 81 and 98 %.
    released = {0.10: 0.02, 0.15: 0.33, 0.20: 0.81, 0.25: 0.98}[rate]
    assert float(stats.binom.sf(16, 100, rate)) == pytest.approx(released, abs=0.02)


def test_low_rates_mean_a_backdoor_and_high_rates_an_adversary() -> None:
    changes = np.zeros((10, 2), bool)
    changes[:6, 1] = True
    low, high = ModelMutation()._scores(changes)
    assert low > high
    low, high = ModelMutation(sign="adversarial")._scores(changes)
    assert low < high


def test_densities_are_kernel_means() -> None:
    group = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    points = np.array([[0.5, 0.5], [4.0, 4.0]])
    for bandwidth in (0.3, 1.2):
        kernel = [
            np.mean([stats.multivariate_normal.pdf(p, g, bandwidth**2 * np.eye(2)) for g in group])
            for p in points
        ]
        np.testing.assert_allclose(log_density(points, group, bandwidth), np.log(kernel))
    draw = np.random.default_rng(0)
    inside, outside = draw.normal(size=(200, 2)), draw.normal(size=(200, 2)) + 3
    wide = np.concatenate(
        [-log_density(x, draw.normal(size=(50, 2)), 1e9) for x in (inside, outside)]
    )
    truth = np.arange(400) >= 200
    assert metrics.ranking(wide.round(6), truth).auroc == pytest.approx(0.5, abs=1e-6)


def test_the_bandwidth_of_a_normal_sample_is_near_the_best() -> None:
    sample = np.random.default_rng(0).normal(size=(400, 1))
    assert 0.1 < best_bandwidth([sample]) < 0.6, "Silverman's rule says 0.32"
    with pytest.raises(ValueError, match="two reserved clean images"):
        best_bandwidth([sample[:1]])


@pytest.mark.parametrize("dimension", [2, 5, 10])
def test_balls_have_their_dimension(dimension: int) -> None:
    draw = np.random.default_rng(dimension)
    directions = draw.normal(size=(20_000, dimension))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    ball = directions * draw.random((20_000, 1)) ** (1 / dimension)
    found = local_dimension(np.zeros((1, dimension)), ball, 500)
    assert float(found[0]) == pytest.approx(dimension, rel=0.12)
    padded = np.pad(ball, ((0, 0), (0, 3)))
    again = local_dimension(np.zeros((1, dimension + 3)), padded, 500)
    np.testing.assert_allclose(again, found)


def test_duplicates_and_small_bases_are_met() -> None:
    base = np.zeros((10, 3))
    base[8:] = [[1, 0, 0], [2, 0, 0]]
    found = local_dimension(np.zeros((1, 3)), base, 5)
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx(2 / np.log(2)), "of the two distances that are not 0"
    assert np.isfinite(local_dimension(np.zeros((1, 3)), np.zeros((9, 3)), 5)).all()
    with pytest.raises(ValueError, match="at least 3 clean neighbors, got 2"):
        local_dimension(np.zeros((1, 3)), base[:2], 5)


def test_rare_switches_surprise() -> None:
    labels = np.array([[0, 0, 1], [0, 1, 1], [0, 1, 1]])
    assert switches(labels).tolist() == [[False, True, False], [False, False, False]]
    rates = np.array([0.1, 0.5])
    scores = surprise(switches(labels), rates)
    assert scores[1] == pytest.approx(-np.log(0.1) - np.log(0.5))
    assert scores[0] == scores[2] == pytest.approx(-np.log(0.9) - np.log(0.5))


@functools.cache
def calibrated(method: scored.On, name: str) -> tuple[np.ndarray, np.ndarray, float]:
    kinds = {"m": ModelMutation, "a": ActivationSequence, "k": KernelDensity, "l": LID}
    case = toy.toy()
    defense = kinds[name](on=method, fpr=0.1)  # type: ignore[operator]
    found = toy.found(defense, case)
    decided = defense.decide(toy.evidence(defense, case, found))
    if method == "inputs":
        assert found.score_inputs is not None and decided.threshold is not None
        images = case.test.images.float() / 255
        rejected = found.score_inputs(images, np.arange(len(images))) > decided.threshold
        return rejected, np.zeros(0), decided.threshold
    assert decided.flags is not None
    return decided.flags[~case.mask], decided.flags[case.mask], 0.0


@pytest.mark.parametrize("name", ["m", "a", "k", "l"])
def test_the_nominal_rate_holds_on_clean_inputs(name: str) -> None:
    rejected, _, _ = calibrated("inputs", name)
    assert rejected.mean() < 0.3


@pytest.mark.parametrize("name", ["m", "a", "k", "l"])
def test_as_filters_they_are_badged_and_calibrated(name: str) -> None:
    clean, _, _ = calibrated("training_set", name)
    assert clean.mean() < 0.4
    kinds = {"m": ModelMutation, "a": ActivationSequence, "k": KernelDensity, "l": LID}
    assert "extension: as a filter" in kinds[name](on="training_set").badges()  # type: ignore[operator]


def test_scores_within_classes_are_in_units_of_their_spread() -> None:
    labels = np.array([0] * 50 + [1] * 50)
    draw = np.random.default_rng(0)
    scores = np.concatenate([draw.normal(5, 1, 50), draw.normal(-3, 4, 50)])
    moved = scored.within_classes(scores, labels, scores, labels)
    assert abs(np.median(moved[:50])) < 1e-9 and abs(np.median(moved[50:])) < 1e-9
    assert np.std(moved[:50]) == pytest.approx(np.std(moved[50:]), rel=0.4)
    constant = scored.within_classes(np.ones(4), np.zeros(4, int), np.ones(4), np.zeros(4, int))
    assert np.isfinite(constant).all()


def test_too_small_a_clean_set_is_refused() -> None:
    case = toy.toy()
    few = case.clean.take(np.arange(3))
    for defense in (ModelMutation(), ActivationSequence(), KernelDensity(), LID()):
        with pytest.raises(ValueError, match=r"needs at least \d+ reserved clean images, got 3"):
            defense.run(toy.inputs(defense, case, clean_set=few), Context(seed=0))
