"""Decisions on what holds no poison: random scores, random features, random images.

A random mask stands for poison. Nothing can find it, so that an AUROC away from a half means that
truth has leaked; what a rule is worth shows in how much it flags.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from raysweep.datasets import ImageSet, Shape
from raysweep.defenses import Defense, Evidence, Findings
from raysweep.defenses._scored import Scored
from raysweep.defenses.abl import ABL
from raysweep.defenses.activation_clustering import ActivationClustering
from raysweep.defenses.asset import ASSET
from raysweep.defenses.beatrix import Beatrix
from raysweep.defenses.cognitive_distillation import CognitiveDistillation
from raysweep.defenses.confusion_training import ConfusionTraining
from raysweep.defenses.datamodels import Datamodels
from raysweep.defenses.frequency import Frequency
from raysweep.defenses.scan import SCAn
from raysweep.defenses.sentinet import SentiNet
from raysweep.defenses.spectral_signatures import SpectralSignatures
from raysweep.defenses.spectre import SPECTRE
from raysweep.defenses.strip import Strip
from raysweep.methods.context import Context
from raysweep.metrics import rates
from raysweep.metrics.ranking import ranking
from raysweep.testing import toy


def decided(
    method: Defense, labels: np.ndarray, scores: np.ndarray, **statistics: np.ndarray
) -> np.ndarray:
    values = {
        "train_scores": scores, "labels": labels, "num_classes": 10, "poison_rate": 0.1,
        "statistics": statistics,
    }  # fmt: skip
    flags = method.decide(Evidence(method.name, method.needs(), values)).flags
    assert flags is not None
    return flags


def leaks(values: np.ndarray, poison: np.ndarray, within: float) -> bool:
    return abs(ranking(values.astype(float), poison).auroc - 0.5) > within


RULES = [
    (SpectralSignatures(), 0.15), (SpectralSignatures(removal="rate"), 0.5),
    (SPECTRE(classes="all"), 0.15), (SPECTRE(), 0.075), (Strip(on="training_set", fpr=0.1), 0.1),
    (Frequency(on="training_set", fpr=0.1), 0.1), (SentiNet(on="training_set", fpr=0.1), 0.1),
    (Beatrix(on="training_set", fpr=0.1), 0.1), (CognitiveDistillation(fpr=0.1), 0.1),
    (ASSET(), 0.5), (ASSET(rule="fraction"), 0.1), (ABL(ratio=0.1), 0.1),
    (ConfusionTraining(rule="lowest"), 0.04), (Datamodels(), 0.1),
]  # fmt: skip


@pytest.mark.parametrize(("method", "share"), RULES, ids=lambda v: getattr(v, "name", v))
def test_random_scores_flag_poison_as_often_as_the_rest(method: Defense, share: float) -> None:
    """Both rates are the share that the rule removes, so that the flags' AUROC is a half."""
    draw = np.random.default_rng(4)
    labels, poison = np.arange(40_000) % 10, draw.random(40_000) < 0.1
    scores = draw.random(40_000)
    reference = np.sort(scores[::7])
    flags = decided(method, labels, scores, strength=np.arange(10.0), reference=reference)
    found = rates.detection(flags, poison, np.zeros(40_000, bool))
    assert found.tpr.value == pytest.approx(share, abs=0.04)
    assert found.fpr.value == pytest.approx(share, abs=0.015)
    assert not leaks(flags, poison, 0.02)


def on_features(
    method: Defense, features: np.ndarray, labels: np.ndarray, clean: np.ndarray,
    clean_labels: np.ndarray,
) -> tuple[Findings, np.ndarray]:  # fmt: skip
    """Run and decide; a victim whose head is given what it is given has these features."""
    size, classes = features.shape[1], int(labels.max()) + 1

    def vectors(values: np.ndarray, labels: np.ndarray) -> ImageSet:
        images = torch.from_numpy(values.astype(np.float32))[:, :, None, None]
        return ImageSet(images=images, labels=labels)

    head = nn.Linear(size, classes)
    given = {
        "features": features.astype(np.float32), "labels": labels,
        "training_set": vectors(features, labels), "clean_set": vectors(clean, clean_labels),
        "victim": nn.Sequential(OrderedDict(flat=nn.Flatten(), head=head)).eval(),
        "shape": Shape(channels=size, height=1, width=1, num_classes=classes,
                       mean=(0.0,) * size, std=(1.0,) * size),
    }  # fmt: skip
    found = method.run(toy.inputs(method, toy.toy(), **given), Context(seed=0))
    assert found.train_scores is not None
    values = {**given, "num_classes": classes, "train_scores": np.asarray(found.train_scores),
              "statistics": found.statistics}  # fmt: skip
    flags = method.decide(Evidence(method.name, method.needs(), values)).flags
    assert flags is not None
    return found, flags


FILTERS = [
    (SpectralSignatures(), 0.15), (SPECTRE(classes="all"), 0.15), (SPECTRE(), 0.075),
    (ActivationClustering(), 0.0), (SCAn(), 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("method", "share"), FILTERS, ids=lambda v: getattr(v, "name", v))
def test_noise_has_no_poisoned_samples_for_filters_of_features(
    method: Defense, share: float
) -> None:
    """Classes of one Gaussian each: what takes a share takes it, what tests for groups is still.

    With other seeds SCAn's index exceeds its cut in one of ten: MADs of ten classes vary.
    """
    draw = np.random.default_rng(5)
    labels, poison = np.arange(4000) % 10, draw.random(4000) < 0.1
    centers = 3 * draw.normal(size=(10, 8))
    clean_labels = np.arange(1000) % 10
    features, clean = (
        centers[of] + draw.normal(size=(len(of), 8)) for of in (labels, clean_labels)
    )
    found, flags = on_features(method, features, labels, clean, clean_labels)
    assert flags.mean() == pytest.approx(share, abs=0.002)
    scores = np.asarray(found.train_scores)
    assert np.ptp(scores) > 0
    assert not leaks(scores, poison, 0.06) and not leaks(flags, poison, 0.03)


def test_scan_flags_the_second_group_of_the_only_class_that_has_two() -> None:
    draw = np.random.default_rng(7)
    labels, clean_labels = np.repeat(np.arange(10), 300), np.repeat(np.arange(10), 40)
    centers = 6 * draw.normal(size=(10, 6))
    features, clean = (
        centers[of] + draw.normal(size=(len(of), 6)) for of in (labels, clean_labels)
    )
    truth = np.isin(np.arange(3000), 7 * 300 + draw.choice(300, 60, replace=False))
    features[truth] += 9 * np.linalg.qr(draw.normal(size=(6, 6)))[0][0]
    found, flags = on_features(SCAn(), features, labels, clean, clean_labels)
    assert (flags == truth).all()
    assert ranking(np.asarray(found.train_scores), truth).auroc == 1
    _, none = on_features(SCAn(cut=1e6), features, labels, clean, clean_labels)
    assert not none.any()


IMAGES = [
    Strip(on="training_set", fpr=0.1, overlays=4), Beatrix(on="training_set", fpr=0.1, orders=3),
    CognitiveDistillation(fpr=0.1, mask_steps=5),
    SentiNet(on="training_set", fpr=0.1, overlays=4),
]  # fmt: skip


@pytest.mark.parametrize("method", IMAGES, ids=lambda m: m.name)
def test_of_random_images_the_nominal_share_is_flagged(method: Scored) -> None:
    """Training and reserved images are of one distribution; within four standard errors."""
    draw, count = np.random.default_rng(8), 1200

    def noise() -> ImageSet:
        pixels = draw.integers(0, 256, (count, 1, toy.SIDE, toy.SIDE), dtype=np.uint8)
        return ImageSet(
            images=torch.from_numpy(pixels), labels=draw.integers(0, toy.CLASSES, count)
        )

    train, poison = noise(), draw.random(count) < 0.1
    given = toy.inputs(
        method, toy.toy(), training_set=train, labels=train.labels, clean_set=noise()
    )
    found = method.run(given, Context(seed=0))
    scores, reference = np.asarray(found.train_scores), found.statistics["reference"]
    flags = decided(method, train.labels, scores, reference=reference)
    error = math.sqrt(0.09 * (1 / count + 1 / len(reference)))
    assert flags.mean() == pytest.approx(0.1, abs=4 * error)
    assert not leaks(scores, poison, 0.12) and not leaks(flags, poison, 0.08)


def test_asset_cuts_between_two_groups_of_losses() -> None:
    draw = np.random.default_rng(9)
    truth = draw.random(1000) < 0.1
    scores = draw.random(1000) + 3 * truth
    assert (decided(ASSET(), np.zeros(1000, int), scores) == truth).all()
