"""Defenses against closed forms and planted truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from raysweep.datasets import ImageSet
from raysweep.defenses import Decision, Evidence
from raysweep.defenses._scored import upper_quantile
from raysweep.defenses.activation_clustering import ActivationClustering
from raysweep.defenses.fine_tuning import FineTuning
from raysweep.defenses.neural_cleanse import NeuralCleanse, anomaly_index
from raysweep.defenses.spectral_signatures import SpectralSignatures, projections
from raysweep.defenses.strip import Strip
from raysweep.methods.context import Context
from raysweep.metrics.ranking import ranking
from raysweep.testing import toy


def test_projections_on_planted_rank_one_features() -> None:
    direction = np.array([3.0, 4.0]) / 5
    weights = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    features = weights[:, None] * direction + np.array([10.0, -10.0])
    np.testing.assert_allclose(projections(features, centered=True), weights**2, atol=1e-9)
    raw = projections(features, centered=False)
    np.testing.assert_allclose(raw, (features @ direction) ** 2, atol=1e-9)
    assert projections(features[:1], centered=True).tolist() == [0.0]
    with pytest.raises(ValueError, match="must be finite"):
        projections(np.array([[np.nan, 1.0]]), centered=True)


def test_uncentered_projections_find_what_stands_out_beside_a_mean_that_is_far() -> None:
    """The mean of features after a ReLU is no axis of interest: its own projection is the rank."""
    draw = np.random.default_rng(5)
    features = draw.normal(size=(1000, 64)) + 5
    features[:50, 7] += 9
    mask = np.arange(1000) < 50
    for centered in (True, False):
        assert ranking(projections(features, centered=centered), mask).auroc > 0.999


def test_a_threshold_lets_a_fresh_clean_score_pass_above_it_with_its_nominal_chance() -> None:
    """Among n + 1 exchangeable scores, each is as likely the fresh one: counted, not sampled."""
    for count, fpr in ((19, 0.05), (20, 0.05), (38, 0.05), (39, 0.05), (99, 0.1), (1, 0.5)):
        scores = np.random.default_rng(count).permutation(count + 1).astype(float)
        above = [s > upper_quantile(np.delete(scores, at), fpr) for at, s in enumerate(scores)]
        assert sum(above) == math.floor(round(fpr * (count + 1), 9))


def test_a_threshold_that_admits_nothing_says_so() -> None:
    few, tied = np.arange(18.0), np.repeat([0.0, 1.0], [80, 20])
    for reference, nothing in ((few, 1), (tied, 1), (np.arange(100.0), 0)):
        values = {"reference_scores": reference}
        method = Strip(fpr=0.05)
        decided = method.decide(Evidence("strip", method.needs(), values))
        assert decided.threshold is not None and math.isfinite(decided.threshold)
        assert decided.facts == {"threshold admits nothing": nothing}
        assert (reference > decided.threshold).any() != nothing


def test_spectral_removals_are_those_of_the_rules() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [100, 60, 10])
    values = {"train_scores": rng.random(170), "labels": labels, "poison_rate": 0.1}
    by_rate = SpectralSignatures(removal="rate")
    flags = by_rate.decide(Evidence("x", by_rate.needs(), values)).flags
    assert flags is not None
    assert [int(flags[labels == c].sum()) for c in range(3)] == [25, 25, 5]
    by_share = SpectralSignatures(fraction=0.2)
    flags = by_share.decide(Evidence("x", by_share.needs(), values)).flags
    assert flags is not None
    assert [int(flags[labels == c].sum()) for c in range(3)] == [20, 12, 2]
    kept, gone = (values["train_scores"][(labels == 0) & (flags == f)] for f in (False, True))  # type: ignore[index]
    assert kept.max() < gone.min()
    cifar = {"train_scores": rng.random(50_000), "labels": np.arange(50_000) % 10}
    flags = by_rate.decide(Evidence("x", by_rate.needs(), {**cifar, "poison_rate": 0.003})).flags
    assert flags is not None and flags.sum() == 2250
    # Without poison 1 % of the set is assumed.
    flags = by_rate.decide(Evidence("x", by_rate.needs(), {**cifar, "poison_rate": 0.0})).flags
    assert flags is not None and np.bincount(cifar["labels"][flags]).tolist() == [750] * 10
    assert by_rate.badges() == ("oracle: poison rate",) and by_share.badges() == ()


@pytest.mark.parametrize(("share", "flagged"), [(0.1, True), (0.3, True), (0.4, False)])
@pytest.mark.parametrize("reduction", ["pca", "ica"])
def test_activation_clustering_flags_small_clusters_alone(
    share: float, flagged: bool, reduction: str
) -> None:
    rng = np.random.default_rng(1)
    count = int(200 * share)
    features = rng.normal(size=(200, 20)).astype(np.float32)
    features[:count] += 5
    case = toy.toy()
    defense = ActivationClustering(reduction=reduction)  # type: ignore[arg-type]
    seen = toy.inputs(defense, case, features=features, labels=np.full(200, 2))
    found = defense.run(seen, Context(seed=0))
    evidence = {
        "train_scores": found.train_scores,
        "statistics": found.statistics,
        "labels": np.full(200, 2),
    }
    flags = defense.decide(Evidence("x", defense.needs(), evidence)).flags
    assert flags is not None
    expected = (np.arange(200) < count) & flagged
    assert (flags == expected).all()


@pytest.mark.parametrize("rows", [0, 1, 2, 30])
def test_activation_clustering_meets_tiny_and_constant_classes(rows: int) -> None:
    case = toy.toy()
    defense = ActivationClustering()
    features = np.ones((rows, 5), np.float32)
    seen = toy.inputs(defense, case, features=features, labels=np.zeros(rows, int))
    found = defense.run(seen, Context(seed=0))
    assert found.train_scores is not None and not np.asarray(found.train_scores).any()
    assert not found.statistics["small"].any()


def test_strip_rejects_its_nominal_share_of_clean_inputs() -> None:
    case = toy.toy()
    for fpr in (0.05, 0.2):
        defense = Strip(overlays=8, fpr=fpr)
        found = toy.found(defense, case)
        evidence = toy.evidence(defense, case, found)
        threshold = defense.decide(evidence).threshold
        assert threshold is not None
        share = (evidence.reference_scores > threshold).mean()
        assert share <= fpr and share > fpr - 2 / 60
        assert found.score_inputs is not None and found.calibration is not None
        fresh = found.score_inputs(case.test.images.float() / 255, np.arange(200))
        assert (fresh > threshold).mean() < fpr + 4 * math.sqrt(fpr / 60)


def test_strip_rejects_its_nominal_share_of_fresh_inputs() -> None:
    """10 % of 1,500 by a threshold from 750, within four standard errors."""
    case = toy.toy()
    defense = Strip(overlays=4, fpr=0.1)
    labels = np.random.default_rng(0).integers(0, toy.CLASSES, 3000)
    pixels = toy.images(labels, 50)
    clean = ImageSet(images=pixels[:1500], labels=labels[:1500])
    found = defense.run(toy.inputs(defense, case, clean_set=clean), Context(seed=0))
    assert found.score_inputs is not None and found.calibration is not None
    held, fresh = pixels[torch.from_numpy(found.calibration)], pixels[1500:]
    reference = found.score_inputs(held.float() / 255, found.calibration)
    values = {"reference_scores": reference}
    threshold = defense.decide(Evidence("x", defense.needs(), values)).threshold
    share = (found.score_inputs(fresh.float() / 255, np.arange(1500)) > threshold).mean()
    assert share == pytest.approx(0.1, abs=4 * math.sqrt(0.09 * (1 / 1500 + 1 / 750)))


def test_anomaly_index_on_hand_made_norms() -> None:
    norms = np.array([10.0, 11.0, 12.0, 13.0, 2.0])
    index = anomaly_index(norms)
    assert index[4] == pytest.approx((11 - 2) / (1.4826 * 1.0))
    assert index[1] == 0 and index[3] < 0
    assert anomaly_index(np.array([5.0, 5.0, 5.0, 1.0])).tolist() == [0, 0, 0, np.inf]


def test_an_index_of_few_unequal_norms_cannot_pass_the_cut_and_its_logarithm_can() -> None:
    norms = np.array([4.2, 33.0, 168.0, 70.0, 150.0, 41.0, 95.0, 120.0, 60.0, 140.0])
    values = {"statistics": {"norms": norms}}
    method = NeuralCleanse()
    decided = method.decide(Evidence("x", method.needs(), values))
    assert decided.classes == () and decided.facts["class of the smallest mask"] == 0
    nothing = np.array([0.0, *norms[1:]])
    most = anomaly_index(nothing)[0]
    assert decided.facts["index that a mask of no size has"] == pytest.approx(most) and most < 2
    log = NeuralCleanse(index="log")
    by_log = log.decide(Evidence("x", log.needs(), values))
    assert by_log.classes == (0,) and log.badges() == ("extension: log index",)
    np.testing.assert_allclose(by_log.class_scores, anomaly_index(np.log(norms)))  # type: ignore[arg-type]


@pytest.mark.further
def test_neural_cleanse_finds_the_planted_target_and_unlearns_it() -> None:
    case = toy.toy()
    defense = NeuralCleanse(steps=150, cut=1.0, unlearning_epochs=8)
    found = toy.found(defense, case)
    norms = found.statistics["norms"]
    assert int(norms.argmin()) == toy.TARGET
    index = defense.decide(toy.evidence(defense, case, found)).class_scores
    assert index is not None and int(index.argmax()) == toy.TARGET
    decision = Decision(classes=(toy.TARGET,), class_scores=index)
    seen = toy.inputs(defense, case, found=found.kept, decision=decision)
    weights = defense.repair(seen, Context(seed=5))
    assert toy.asr(weights, case) < 0.3 and toy.accuracy(weights, case) > 0.8


def test_fine_tuning_trains_a_copy_on_clean_images() -> None:
    case = toy.toy()
    found = toy.found(FineTuning(epochs=15), case)
    assert found.model is not None
    labels = torch.from_numpy(case.clean.labels)

    def loss(weights: dict[str, torch.Tensor]) -> float:
        logits = toy.training.predict(toy.network(weights), case.clean.images, toy.RECIPE, "cpu")
        return float(F.cross_entropy(logits, labels))

    assert loss(found.model) < loss(case.weights)
    assert toy.accuracy(found.model, case) > 0.9
