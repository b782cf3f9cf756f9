"""RED: order statistics against SciPy and planted matrices, the search against a linear model."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from raysweep import training
from raysweep.datasets import ImageSet, Shape
from raysweep.defenses import Decision, DefenseInputs, Evidence, Findings, _red
from raysweep.defenses._red import Pooled, calibrated, deviations, gamma_shape, p_values
from raysweep.defenses._scored import split
from raysweep.defenses.red import RED
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.metrics.ranking import ranking
from raysweep.models.tiny_cnn import TinyCNN

CLASSES, SIDE = 6, 20
RECIPE = Recipe(epochs=20, batch_size=64, learning_rate=0.05, precision="float32")
SHAPE = Shape(channels=1, height=SIDE, width=SIDE, num_classes=CLASSES, mean=(0.5,), std=(0.2,))
MODEL = TinyCNN(width=8)
SMALL = RED(images=60, steps=150, learning_rate=0.02, milestones=(), weight=0.0, scan_weight=0.0)


def matrix(seed: int, classes: int = 10, planted: tuple[int, int] | None = None) -> np.ndarray:
    values = np.random.default_rng(seed).gamma(20.0, 0.01, (classes, classes))
    np.fill_diagonal(values, 0)
    if planted:
        values[planted] *= 3
    return values


def pairs(classes: int) -> np.ndarray:
    """Return the mask (K, K) of all pairs of two classes."""
    return ~np.eye(classes, dtype=bool)


def test_gamma_shapes_are_those_of_the_likelihood() -> None:
    for seed, shape in enumerate((0.7, 3.0, 20.0)):
        sample = np.random.default_rng(seed).gamma(shape, 0.4, 500)
        ours = gamma_shape(np.log(sample.mean()), np.log(sample).mean())
        theirs, _, _ = stats.gamma.fit(sample, floc=0)
        assert float(ours) == pytest.approx(theirs, rel=1e-4)


def test_p_values_are_the_two_level_order_statistic() -> None:
    values = matrix(1, classes=5)
    own, p = p_values(values)
    for c in range(5):
        null = np.array([values[s, t] for s in range(5) for t in range(5) if s != t and t != c])
        shape, _, scale = stats.gamma.fit(null, floc=0)
        expected = 1 - stats.gamma.cdf(values[:, c].max(), shape, scale=scale) ** 4
        assert own[c] == pytest.approx(expected, rel=1e-4)
    assert p == pytest.approx(1 - (1 - own.min()) ** 5, rel=1e-6)
    order = np.random.default_rng(0).permutation(5)
    moved, again = p_values(values[np.ix_(order, order)])
    np.testing.assert_allclose(moved, own[order])
    assert again == pytest.approx(p)
    scaled, _ = p_values(values * 7)
    np.testing.assert_allclose(scaled, own, rtol=1e-6)


@pytest.mark.parametrize("null", ["exclude_target", "drop_top"])
def test_a_planted_pair_is_found_with_its_target(null: Pooled) -> None:
    hits = 0
    for seed in range(50):
        own, p = p_values(matrix(seed, planted=(3, 7)), null)
        hits += calibrated(p, pairs(10), null, 500) <= 0.05 and int(own.argmin()) == 7
    assert hits >= 49
    assert int(deviations(matrix(0, planted=(3, 7))).argmax()) == 7


@pytest.mark.parametrize(
    ("classes", "null", "actual"),
    [(6, "exclude_target", 0.138), (10, "exclude_target", 0.08), (43, "exclude_target", 0.048),
     (6, "drop_top", 0.522), (10, "drop_top", 0.398)],
)  # fmt: skip
def test_calibrated_false_alarms_are_as_many_as_asked_for(
    classes: int, null: Pooled, actual: float
) -> None:
    """And the share of false alarms of a p-value of .05 as it stands, of 10,000 or 20,000 sets."""
    sets = np.random.default_rng(1).gamma(20.0, 0.01, (1500, classes, classes)) * pairs(classes)
    own, values = p_values(sets, null)
    one, alone = p_values(sets[3], null)
    np.testing.assert_allclose(own[3], one, rtol=1e-9)
    assert values[3] == pytest.approx(alone, rel=1e-9)
    ours = [calibrated(p, pairs(classes), null, 1500) for p in values]
    assert np.mean(np.array(ours) <= 0.05) == pytest.approx(0.05, abs=0.02)
    error = 3 * (actual * (1 - actual) / len(values)) ** 0.5
    assert np.mean(values <= 0.05) == pytest.approx(actual, abs=error)


def test_the_p_that_is_compared_with_theta_is_the_one_that_is_told() -> None:
    for is_calibrated, factor in ((True, 2), (False, 1)):
        for p, named in ((0.05 / factor, (0,)), (0.051 / factor, ())):
            decided = RED(calibrated=is_calibrated).decide(found_p(10, p))
            assert decided.classes == named and decided.p_value == pytest.approx(factor * p)


def test_the_same_pairs_are_simulated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def counted(reciprocals: np.ndarray, null: Pooled) -> tuple[np.ndarray, np.ndarray]:
        drawn.extend(reciprocals)
        return p_values(reciprocals, null)

    monkeypatch.setattr(_red, "p_values", counted)
    fewer = pairs(7)
    fewer[2, 4] = fewer[5, 1] = False
    found = [calibrated(p, fewer, "exclude_target", 300) for p in (0.0, 0.02, 0.1, 1.0)]
    assert len(drawn) == 300 and sorted(found) == found
    assert found[0] == 1 / 301 and found[-1] == 1
    assert all(((sets > 0) == fewer).all() for sets in drawn), "the pairs that were reached"
    calibrated(0.1, pairs(7), "exclude_target", 300)
    calibrated(0.1, fewer, "drop_top", 300)
    assert len(drawn) == 900


def test_the_limit_of_ten_classes_stays_what_verdicts_were_reached_with() -> None:
    assert calibrated(0.0286, pairs(10), "exclude_target") == pytest.approx(0.05, abs=2e-3)


def found_p(classes: int, p_value: float) -> Evidence:
    """Return evidence of nothing but a p-value."""
    values = {
        "labels": np.arange(classes), "num_classes": classes, "train_scores": np.zeros(classes),
        "statistics": {
            "target": np.array(0), "source": np.array(1), "anomaly": np.ones(classes),
            "p_value": np.array(p_value), "p_calibrated": np.array(2 * p_value),
            "flips": np.zeros(classes, bool), "reference": np.zeros(3),
        },
    }  # fmt: skip
    return Evidence("red", RED().needs(), values)


def test_unreached_pairs_are_left_out() -> None:
    values = matrix(2)
    values[0, 1] = values[4, 5] = 0
    own, p = p_values(values)
    assert np.isfinite(own).all() and 0 <= p <= 1
    values[:, 3] = 0
    assert p_values(values)[0][3] == 1
    with pytest.raises(ValueError, match="at least 3 pairs of classes that were reached, got 0"):
        p_values(np.zeros((5, 5)))


def test_the_largest_are_dropped_however_many_pairs_were_reached() -> None:
    hits = 0
    for seed in range(20):
        values = matrix(seed, planted=(3, 7))
        failed = np.random.default_rng(seed).permutation(
            [(s, t) for s in range(10) for t in range(10) if s != t and (s, t) != (3, 7)]
        )[:15]
        values[tuple(failed.T)] = 0
        null = np.sort(values[values > 0])[:-9]
        assert len(null) == 66 and null.max() < values[3, 7]
        shape, _, scale = stats.gamma.fit(null, floc=0)
        own, p = p_values(values, "drop_top")
        mask = values > 0
        tail = stats.gamma.sf(values.max(0), shape, scale=scale)
        np.testing.assert_allclose(own, -np.expm1(9 * np.log1p(-tail)), rtol=1e-2)
        hits += calibrated(p, mask, "drop_top", 100) <= 0.05 and int(own.argmin()) == 7
    assert hits == 20
    few = np.zeros((10, 10))
    few[0, 1:], few[1:4, 0] = np.linspace(1, 2, 9), 0.9
    p_values(few, "drop_top")
    few[3, 0] = 0
    with pytest.raises(ValueError, match="at least 3 pairs of classes that were reached, got 2"):
        p_values(few, "drop_top")


def test_the_search_on_a_linear_model_goes_along_the_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))
    with torch.no_grad():
        network[1].weight.normal_(generator=generator)
        network[1].bias.zero_()
    # Two classes matter: the others are far below.
    with torch.no_grad():
        network[1].bias[2:] = -1000
    images = 0.5 + 0.02 * torch.randn(1, 20, 1, SIDE, SIDE, generator=generator)
    with torch.no_grad():
        logits = network(images[0])
        network[1].bias[0] += float((logits[:, 1] - logits[:, 0]).max()) + 2.0
    inputs = DefenseInputs("red", frozenset({"victim"}), {"victim": network, "recipe": RECIPE})
    method = SMALL.model_copy(update={"learning_rate": 1e-4, "steps": 500, "pi": 1.0})
    found, reached = method.smallest(inputs, images, images[0], 1, 0.0, Context(seed=0))
    assert bool(reached[0])
    direction = (network[1].weight[1] - network[1].weight[0]).detach()
    cosine = torch.cosine_similarity(found.flatten(), direction, dim=0)
    with torch.no_grad():
        logits = network(images[0])
        margin = float((logits[:, 0] - logits[:, 1]).max())
    assert float(cosine) > 0.999
    assert margin / float(direction.norm()) <= float(found.norm()) + 1e-6
    assert float(found.norm()) < 1.1 * margin / float(direction.norm())


def test_sources_together_are_sources_alone() -> None:
    case = planted(40, 0)
    inputs = case.inputs()
    images = torch.stack([case.of(s)[:30] for s in (0, 2, 3)])
    ctx = Context(seed=0)
    together, reached = SMALL.smallest(inputs, images, case.of(1)[:30], 1, 1.0, ctx)
    for at in range(3):
        alone, one = SMALL.smallest(inputs, images[at : at + 1], case.of(1)[:30], 1, 1.0, ctx)
        torch.testing.assert_close(alone[0], together[at], rtol=1e-3, atol=1e-4)
        assert bool(one[0]) == bool(reached[at])


class Planted:
    """Gaussian blobs of six classes; some of class 0 carry a weak pattern and label 1."""

    def __init__(self, poisons: int, seed: int, each: int, norm: float) -> None:
        draw = np.random.default_rng(seed)
        self.labels = np.repeat(np.arange(CLASSES), each)
        means = draw.normal(0.5, 0.15, (CLASSES, SIDE * SIDE))
        pixels = means[self.labels] + draw.normal(0, 0.1, (len(self.labels), SIDE * SIDE))
        board = np.add.outer(np.arange(SIDE), np.arange(SIDE)) % 2
        self.pattern = (board / np.linalg.norm(board) * norm).reshape(-1)
        self.mask = np.zeros(len(self.labels), bool)
        self.mask[draw.choice(np.flatnonzero(self.labels == 0), poisons, replace=False)] = True
        pixels[self.mask] += self.pattern
        given = np.where(self.mask, 1, self.labels)
        values = np.clip(pixels, 0, 1).reshape(-1, 1, SIDE, SIDE)
        images = torch.from_numpy((values * 255).round().astype(np.uint8))
        self.train = ImageSet(images=images, labels=given)
        ctx = Context(seed=seed)
        with training.global_seed(seed):
            self.network = nn.Sequential(
                nn.Flatten(), nn.Linear(SIDE * SIDE, 64), nn.ReLU(), nn.Linear(64, CLASSES)
            )
        training.fit(self.network, self.train, RECIPE, ctx)

    def of(self, label: int) -> torch.Tensor:
        rows = torch.from_numpy(self.train.labels == label)
        return self.train.images[rows].float() / 255

    def inputs(self, **more: object) -> DefenseInputs:
        values = {
            "training_set": self.train, "labels": self.train.labels, "victim": self.network,
            "recipe": RECIPE, "shape": SHAPE, "model": MODEL, "shards": [], **more,
        }  # fmt: skip
        return DefenseInputs("red", SMALL.needs(), values)


@functools.cache
def planted(poisons: int, seed: int, each: int = 200, norm: float = 2**0.5) -> Planted:
    return Planted(poisons, seed, each, norm)


@functools.cache
def red(
    poisons: int, seed: int, each: int = 200, norm: float = 2**0.5
) -> tuple[Findings, Decision]:
    case = planted(poisons, seed, each, norm)
    ctx = Context(seed=1)
    shards = [SMALL.shard(part, case.inputs(), ctx) for part in SMALL.parts(CLASSES)]
    found = SMALL.run(case.inputs(shards=shards), ctx)
    return found, SMALL.decide(evidence(case, found))


def evidence(case: Planted, found: Findings) -> Evidence:
    return Evidence(
        "red", SMALL.needs(),
        {"labels": case.train.labels, "num_classes": CLASSES, "statistics": found.statistics,
         "train_scores": found.train_scores},
    )  # fmt: skip


def test_a_split_is_the_best_of_all_cuts() -> None:
    values = np.random.default_rng(0).normal(size=40)
    values[:10] += 6

    def within(cut: float) -> float:
        sides = values[values <= cut], values[values > cut]
        return sum(float(((side - side.mean()) ** 2).sum()) for side in sides if len(side))

    best = min(within(float(cut)) for cut in values)
    assert within(split(values)) == pytest.approx(best)
    assert (values > split(values)).sum() == 10
    assert split(np.array([1.0])) == float("inf")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.further)])
def test_a_weak_pattern_is_found_and_its_samples_removed(seed: int) -> None:
    case = planted(60, seed)
    found, decided = red(60, seed)
    assert decided.classes == (1,) and decided.p_value is not None and decided.p_value < 1e-3
    assert int(found.statistics["source"]) == 0
    inside = case.train.labels == 1
    scores = np.asarray(found.train_scores)
    assert ranking(scores[inside], case.mask[inside]).auroc > 0.97
    assert decided.flags is not None and decided.flags[case.mask].mean() > 0.95
    assert not decided.flags[~inside].any()
    cleaner = SMALL.model_copy(update={"rule": "split"}).decide(evidence(case, found))
    assert cleaner.flags is not None and cleaner.flags[case.mask].mean() > 0.9
    assert cleaner.flags[inside & ~case.mask].mean() < 0.1
    assert scores[~inside].max() < scores[inside].min()
    cosine = np.corrcoef(found.statistics["pattern"].reshape(-1), case.pattern)[0, 1]
    assert cosine > 0.3, "the estimate looks like the chessboard"
    into, others = (
        found.curves[f"into {name}"] for name in ("the suspected class", "other classes")
    )
    assert into.y.tolist() == sorted(found.statistics["reciprocals"][[0, 2, 3, 4, 5], 1])[::-1]
    assert others.x[-1] == len(others.y) <= 25 and into.y[0] > others.y[0], "the pair stands out"


@pytest.mark.further
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_pattern_of_norm_two_is_beyond_doubt_and_none_is_not(seed: int) -> None:
    """20 or 60 of 400 images, the first term alone; the flip rule finds all of them."""
    _, clean = red(0, seed, 400, 2.0)
    assert clean.p_value is not None and clean.p_value >= 0.06
    for poisons in (20, 60):
        case = planted(poisons, seed, 400, 2.0)
        found, decided = red(poisons, seed, 400, 2.0)
        assert decided.classes == (1,) and float(found.statistics["p_value"]) <= 2e-8
        inside = case.train.labels == 1
        scores = np.asarray(found.train_scores)
        assert ranking(scores[inside], case.mask[inside]).auroc > 0.999
        flipped = SMALL.model_copy(update={"rule": "flip"}).decide(evidence(case, found)).flags
        assert flipped is not None and flipped[case.mask].all()
        assert flipped[inside & ~case.mask].mean() < 0.21


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.further) for n in (1, 2))])
def test_without_a_pattern_nothing_is_flagged(seed: int) -> None:
    found, decided = red(0, seed)
    assert decided.classes == () and decided.flags is not None and not decided.flags.any()
    assert np.isfinite(found.train_scores).all()
