"""The unified framework's four detectors against closed forms and simulated curves."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import nn

from raysweep import training
from raysweep.datasets import ImageSet, Shape
from raysweep.defenses import Evidence, model_mutation
from raysweep.defenses import _scored as scored
from raysweep.defenses._layers import layer_values
from raysweep.defenses.activation_sequence import ActivationSequence, surprise, switches
from raysweep.defenses.kernel_density import KernelDensity, best_bandwidth, log_density
from raysweep.defenses.lid import LID, local_dimension
from raysweep.defenses.model_mutation import ModelMutation, Mutants, sprt, trailing_dense
from raysweep.methods.context import Context
from raysweep.metrics.ranking import ranking
from raysweep.models import Model
from raysweep.models.ember_mlp import EmberMLP
from raysweep.models.six_conv import SixConv
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.models.vgg16_bn import VGG16BN
from raysweep.testing import toy

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
    drawn = mutants(network, 0.65, 3000)
    made = torch.stack([drawn.weights(number)[1] for number in range(3000)])
    noise = made - weight
    assert float(noise.mean()) == pytest.approx(float(weight.mean()), abs=0.01)
    assert float(noise.std()) == pytest.approx(0.65 * float(weight.max()), rel=0.02)


def test_cached_features_give_what_a_whole_forward_gives() -> None:
    with torch.random.fork_rng():
        network = dense()
    images = torch.rand(30, 1, 3, 3, generator=NOISE().manual_seed(3))
    made = mutants(network, 0.3, 5)
    found = made.predicted(images)
    own, changed = found.own_B, found.mutated_MB
    with torch.no_grad():
        assert (own == network(images).argmax(1).numpy()).all()
        for number in range(5):
            import copy

            mutant = copy.deepcopy(network)
            for layer, weights in zip((1, 3), made.weights(number), strict=True):
                mutant[layer].weight.copy_(weights)
            assert (changed[number] == mutant(images).argmax(1).numpy()).all()


def hidden(count: int) -> Shape:
    return Shape(channels=count, height=1, width=1, num_classes=3, mean=(0.0,) * count,
                 std=(1.0,) * count)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "shape", "first", "dense"),
    [
        (EmberMLP(widths=(9, 7, 5)), hidden(6), "hidden1.0", 4),
        (SixConv(), toy.SHAPE, "head.0", 2),
        (TinyCNN(width=4), toy.SHAPE, "head", 1),
    ],
    ids=["nested", "siblings", "head"],
)
def test_every_trailing_dense_layer_mutates_in_nested_sequences_too(
    model: Model, shape: Shape, first: str, dense: int
) -> None:
    network = training.build(model, shape, Context(seed=0)).eval()
    draw = NOISE().manual_seed(3)
    size = (shape.channels, shape.height, shape.width)
    images = torch.rand(40, *size, generator=draw)
    made = Mutants(network, model.HEAD, 8, 0.8, NOISE().manual_seed(1))
    assert made.first == first and len(made.weights(0)) == dense
    found = made.predicted(images)
    own, changed = found.own_B, found.mutated_MB
    every = [m for m in network.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        assert (own == network(images).argmax(1).numpy()).all()
        for number in range(8):
            for layer, weights in zip(every, made.weights(number), strict=True):
                layer.weight.copy_(weights)
            assert (changed[number] == network(images).argmax(1).numpy()).all()
    assert (changed != own).any()


def test_a_large_networks_dense_layers_are_found_up_to_what_is_not_elementwise() -> None:
    shape = Shape(channels=3, height=96, width=96, num_classes=5, mean=(0.5,) * 3, std=(0.2,) * 3)
    with torch.device("meta"):
        network = VGG16BN().build(shape)
    first, layers = trailing_dense(network, VGG16BN.HEAD)
    assert first == "net.classifier.hidden.0"
    assert sum(isinstance(layer, nn.Linear) for layer in layers) == 3
    relu = nn.ReLU()
    tail = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 2))
    first, layers = trailing_dense(nn.Sequential(nn.Linear(8, 8), nn.Flatten(), tail), "2.4")
    assert first == "2.0" and layers == list(tail), "a layer may stand in several places"


def test_mutants_beyond_a_bound_are_drawn_again_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with torch.random.fork_rng():
        network = dense()
    images = torch.rand(30, 1, 3, 3, generator=NOISE().manual_seed(3))
    held = mutants(network, 0.65, 40)
    monkeypatch.setattr(model_mutation, "KEPT", 40 * 4 * (9 * 16 + 16 * 4) - 1)
    drawn = mutants(network, 0.65, 40)
    for number in (3, 0, 39):  # in any order
        for one, other in zip(held.weights(number), drawn.weights(number), strict=True):
            assert torch.equal(one, other)
    found, again = held.predicted(images), drawn.predicted(images)
    for one, other in ((found.own_B, again.own_B), (found.mutated_MB, again.mutated_MB)):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found.certainty_B, again.certainty_B)

    most = 0

    def counted(*given: torch.Tensor) -> torch.Tensor:
        nonlocal most
        alive = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.shape == (16, 9)]
        most = max(most, len(alive))
        return linear(*given)

    linear = torch.nn.functional.linear
    del held, drawn, one, other
    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    gc.collect()
    gc.freeze()  # what there is already is not looked through again
    try:
        mutants(network, 0.65, 40).predicted(images)
    finally:
        gc.unfreeze()
    assert 1 <= most <= 3


def test_without_noise_or_with_one_class_nothing_changes() -> None:
    with torch.random.fork_rng():
        network = dense()
    images = torch.rand(20, 1, 3, 3, generator=NOISE().manual_seed(3))
    made = mutants(network, 0.0)
    assert all(torch.equal(made.weights(n)[1], network[3].weight) for n in range(100))
    found = made.predicted(images)
    own, changed = found.own_B, found.mutated_MB
    assert (changed == own).all()
    with torch.no_grad():
        network[3].bias[2] = 1e6
    found = mutants(network, 0.65).predicted(images)
    assert (found.own_B == 2).all() and (found.mutated_MB == 2).all()
    np.testing.assert_allclose(found.certainty_B, 1)


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


@pytest.mark.parametrize(("rate", "high"), [(0.1, 0.04), (0.15, 0.43), (0.2, 0.87), (0.25, 0.99)])
def test_the_operating_curve_is_binomial(rate: float, high: float) -> None:
    changes = np.random.default_rng(0).random((100, 40_000)) < rate
    for sign, share in (("adversarial", high), ("backdoor", 1 - high)):
        method = ModelMutation(rule="sprt", sign=sign)  # type: ignore[arg-type]
        cut = method.decide(Evidence("model_mutation", method.needs(), {})).threshold
        assert cut is not None
        scores = method._scores(changes, np.ones(changes.shape[1])).astype(np.float32)
        found = float((scores > cut).mean())
        assert found == pytest.approx(share, abs=0.01)
    at_least_16 = float(stats.binom.sf(15, 100, rate))
    assert float((sprt(changes, 0.0124, 0.1) >= np.log(19)).mean()) == pytest.approx(
        at_least_16, abs=0.01
    )


def test_a_fixed_rate_decides_whatever_clean_images_score() -> None:
    changes = np.arange(50)[:, None] < np.array([0, 7, 8, 9, 50])
    for sign, rejected in (("adversarial", [2, 3, 4]), ("backdoor", [0, 1])):
        method = ModelMutation(tau=0.16, mutants=50, sign=sign)  # type: ignore[arg-type]
        cut = method.decide(Evidence("model_mutation", method.needs(), {})).threshold
        scores = method._scores(changes, np.ones(changes.shape[1])).astype(np.float32)
        assert np.flatnonzero(scores > cut).tolist() == rejected
    for wrong in ({"rule": "sprt"}, {"on": "training_set"}):
        with pytest.raises(ValidationError, match="leave tau out"):
            ModelMutation(tau=0.16, **wrong)  # type: ignore[arg-type]


def test_as_a_filter_the_sequential_test_is_calibrated_by_clean_images() -> None:
    method = ModelMutation(rule="sprt", on="training_set", fpr=0.1)
    reference = np.arange(100.0)
    values = {"train_scores": np.array([80.0, 95.0]), "statistics": {"reference": reference}}
    decided = method.decide(Evidence("model_mutation", method.needs(), values))
    assert decided.flags is not None and decided.flags.tolist() == [False, True]


def test_low_rates_mean_a_backdoor_and_high_rates_an_adversary() -> None:
    changes = np.zeros((10, 2), bool)
    changes[:6, 1] = True
    low, high = ModelMutation()._scores(changes, np.ones(2))
    assert low > high
    low, high = ModelMutation(sign="adversarial")._scores(changes, np.ones(2))
    assert low < high


def test_inputs_of_one_rate_are_ordered_by_certainty_and_none_passes_a_cut() -> None:
    changes = np.arange(50)[:, None] < np.array([7, 7, 7, 8])
    certainty = np.array([0.0, 0.5, 1.0, 1.0])
    for sign, order in (("adversarial", [2, 1, 0, 3]), ("backdoor", [3, 0, 1, 2])):
        method = ModelMutation(mutants=50, tau=0.16, sign=sign)  # type: ignore[arg-type]
        scores = method._scores(changes, certainty).astype(np.float32)
        assert np.argsort(scores).tolist() == order and len(set(scores.tolist())) == 4
        cut = method.decide(Evidence("model_mutation", method.needs(), {})).threshold
        assert (scores > cut).tolist() == ([False] * 3 + [True] if sign == "adversarial"
                                           else [True] * 3 + [False])  # fmt: skip


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
    assert ranking(wide.round(6), truth).auroc == pytest.approx(0.5, abs=1e-6)


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


def test_as_many_neighbors_as_there_are_leave_one_out() -> None:
    draw = np.random.default_rng(0)
    base, points = draw.normal(size=(10, 3)), draw.normal(size=(5, 3))
    expected = local_dimension(points, base, 9)
    for neighbors in (10, 11, 1000):
        np.testing.assert_array_equal(local_dimension(points, base, neighbors), expected)
    assert (local_dimension(points, base, 8) != expected).all()


@pytest.mark.parametrize("kind", [ActivationSequence, LID])
def test_a_class_without_clean_neighbors_is_an_error(kind: type[scored.Scored]) -> None:
    case = toy.toy()
    without = case.clean.take(np.flatnonzero(case.clean.labels != 2))
    method = kind(on="training_set")
    with pytest.raises(ValueError, match=r"classes \[2\] have \[0\]; raise clean_size"):
        method.run(toy.inputs(method, case, clean_set=without), Context(seed=0))


def test_flat_layers_hold_every_entry_and_averaged_ones_a_channel_each() -> None:
    case = toy.toy()
    given = toy.inputs(LID(), case)
    images = case.clean.images[:5]
    flat = layer_values(given, images, Context(seed=0), pool="flat")
    mean = layer_values(given, images, Context(seed=0))
    assert sum(whole.shape[1] for whole in flat) > sum(averaged.shape[1] for averaged in mean)
    for whole, averaged in zip(flat, mean, strict=True):
        channels = averaged.shape[1]
        np.testing.assert_allclose(
            whole.reshape(5, channels, -1).mean(2), averaged, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("seed", range(5))
def test_a_rare_class_is_in_the_part_that_others_are_compared_with(seed: int) -> None:
    """Halves of all images, drawn whatever their class, left out a class of few images."""
    counts = np.array([1, 2, 3, 4, 9, 30])
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(6), counts))
    rows = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None]
    clean = ImageSet(images=rows, labels=labels)
    ctx = Context(seed=seed)
    parts = scored.parts_of_each_class("x", clean, ctx, least=4, of_class=1, num_classes=6)
    assert np.bincount(parts.near.labels).tolist() == [1, 1, 1, 1, 3, 8]
    assert np.bincount(parts.others.labels, minlength=6).tolist() == [0, 0, 1, 1, 2, 7]
    assert np.bincount(labels[parts.calibration], minlength=6).tolist() == [0, 1, 1, 2, 4, 15]
    used = [*parts.near.images.flatten(), *parts.others.images.flatten(), *parts.calibration]
    assert sorted(map(int, used)) == [*range(len(labels))], "each image is in one part"
    with pytest.raises(ValueError, match=r"classes \[0, 1, 2, 3\] have \[1, 1, 1, 1\]; raise"):
        scored.parts_of_each_class("x", clean, ctx, least=4, of_class=3, num_classes=6)


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


KINDS = {"m": ModelMutation, "a": ActivationSequence, "k": KernelDensity, "l": LID}
DIVISIONS = 4  # of the clean set of 120, of which a quarter or less serves each purpose


def rejected(method: scored.On, name: str) -> tuple[float, float]:
    """Return the shares of clean and of poisoned samples that are rejected at a nominal 0.1."""
    case = toy.toy()
    defense = KINDS[name](on=method, fpr=0.1)  # type: ignore[operator]
    clean, poison = [], []
    for seed in range(DIVISIONS):
        found = toy.found(defense, case, seed)
        decided = defense.decide(toy.evidence(defense, case, found))
        if method == "inputs":
            images = case.test.images.float() / 255
            assert found.score_inputs is not None and decided.threshold is not None
            scores = found.score_inputs(images, np.arange(len(images)))
            clean.append((scores > decided.threshold).mean())
        else:
            assert decided.flags is not None
            clean.append(decided.flags[~case.mask].mean())
            poison.append(decided.flags[case.mask].mean())
    return float(np.mean(clean)), float(np.mean(poison or [np.nan]))


@pytest.mark.parametrize("name", ["m", "a", "k", "l"])
def test_the_nominal_rate_holds_on_clean_inputs(name: str) -> None:
    clean, _ = rejected("inputs", name)
    assert 0 < clean < 0.2, "0.1 was asked for"


@pytest.mark.parametrize("name", ["m", "a", "k", "l"])
def test_as_filters_they_are_badged_and_calibrated(name: str) -> None:
    clean, poison = rejected("training_set", name)
    assert 0 < clean < 0.2, "0.1 was asked for"
    # A network without hidden dense layers: mutation flips its trigger first.
    assert name == "m" or poison > 4 * clean
    assert "extension: as a filter" in KINDS[name](on="training_set").badges()  # type: ignore[operator]


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
