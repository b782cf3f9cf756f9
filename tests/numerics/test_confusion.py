"""Confusion Training against the released code's arithmetic, simulated gates and a planted toy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from raysweep import metrics, training
from raysweep.context import Arrays, Context
from raysweep.datasets import ImageSet
from raysweep.defenses._confusion import (
    SCHEDULES,
    class_weights,
    distilled,
    log_ratio,
    median_chunklet,
    mixture_log_ratio,
    passed,
    principal,
    shifts,
    whitened,
)
from raysweep.defenses.confusion_training import Confusion, ConfusionTraining
from raysweep.streams import Batch
from tests import toy

SMALL = ConfusionTraining(schedule="small", scale=0.3)


def test_shifts_take_every_wrong_label_in_turn() -> None:
    for classes in (2, 10, 43):
        given = list(itertools.islice(shifts(classes), 200))
        assert 0 not in given and set(given) <= set(range(1, classes))
        counts = np.bincount(given, minlength=classes)[1:]
        assert counts.max() - counts.min() <= 1
    # The released code's own counter, written out.
    skipped, theirs = 0, []
    for i in range(200):
        if (skipped + i) % 10 == 0:
            skipped += 1
        theirs.append((skipped + i) % 10)
    assert list(itertools.islice(shifts(10), 200)) == theirs


def batch(n: int, seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.rand(n, 1, toy.SIDE, toy.SIDE, generator=draw),
        labels=torch.randint(0, toy.CLASSES, (n,), generator=draw),
        rows=torch.arange(n),
    )


def test_the_loss_weighs_confusion_against_inspection() -> None:
    case = toy.toy()
    model, clean, seen = toy.network(case.weights), batch(12, 1), batch(20, 2)
    truth = clean.labels
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def loss(weight: float, *, both: bool = True) -> float:
        objective = Confusion(truth, weights, weight, toy.CLASSES)
        given = {"clean": clean, "inspected": seen} if both else {"clean": clean}
        return float(objective(model, given).detach())

    with torch.no_grad():
        # In eval mode the concatenation changes nothing.
        wrong = (truth + 1) % toy.CLASSES
        confusing = torch.nn.functional.cross_entropy(model(clean.images), wrong)
        each = torch.nn.functional.cross_entropy(model(seen.images), seen.labels, reduction="none")
        w = weights[seen.labels]
        inspected = (w * each).sum() / w.sum()
    assert loss(1.0) == pytest.approx(float(inspected), rel=1e-5)
    assert loss(1e9) == pytest.approx(float(confusing), rel=1e-5)
    assert loss(20.0) == pytest.approx(float((19 * confusing + inspected) / 20), rel=1e-5)
    assert loss(20.0, both=False) == pytest.approx(float(confusing), rel=1e-5)


def test_class_weights_are_inverse_roots_of_frequency() -> None:
    even = class_weights(np.arange(100) % 4, 4)
    assert np.allclose(even, 1 / np.sqrt(0.251))
    assert class_weights(np.zeros(10, int), 2)[1] == pytest.approx(1 / np.sqrt(0.001))


def test_distillation_keeps_the_lowest_and_tops_up_classes() -> None:
    losses = np.array([0.1, 0.2, 0.3, 0.4, 9.0, 8.0, 7.0, 6.0])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert distilled(losses, labels, 0.5, 100, 2).tolist() == [0, 1, 2, 3]
    assert distilled(losses, labels, 0.5, 2, 2).tolist() == [0, 1, 2, 3, 6, 7]
    draw = np.random.default_rng(0)
    labels = np.arange(50_000) % 10
    losses = draw.random(50_000) + (labels == 9)
    for number, share in enumerate((50, 50, 50, 50, 100)):
        ratio = SCHEDULES["cifar10"].ratios[number]
        kept = distilled(losses, labels, ratio, share, 10)
        lowest = np.argsort(losses)[: int(ratio * 50_000)]
        lacking = np.maximum(5000 // share - np.bincount(labels[lowest], minlength=10), 0)
        assert set(lowest) <= set(kept) and len(kept) == len(lowest) + lacking.sum()
        assert (labels[kept] == 9).sum() >= 5000 // share


def planted(count: int, distance: float, seed: int, n: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    points = draw.normal(size=(n, 2))
    points[:count, 0] += distance
    return points, np.arange(n) < count


@pytest.mark.parametrize(
    ("count", "distance", "ratio"), [(150, 5, 1.44), (150, 6, 1.67), (150, 8, 2.53), (50, 10, 1.62)]
)
def test_the_gate_measures_what_was_simulated(count: int, distance: float, ratio: float) -> None:
    found = [np.exp(log_ratio(*planted(count, distance, seed), 1e-3, "ridge")) for seed in range(8)]
    assert np.median(found) == pytest.approx(ratio, rel=0.07)


def test_no_class_passes_where_there_is_no_structure() -> None:
    draw = np.random.default_rng(1)
    for count in (5, 50, 500, 2500):
        points = draw.normal(size=(5000, 2))
        isolated = np.isin(np.arange(5000), draw.choice(5000, count, replace=False))
        value = log_ratio(points, isolated, 1e-3, "ridge")
        assert 0.99 < np.exp(value) < 1.01
        assert not passed(np.array([value]), 2.0, 1.5).any()
    for size in (0, 1, 4999, 5000):
        assert log_ratio(points, np.arange(5000) < size, 1e-3, "ridge") == 0


def test_the_gate_ignores_rotation_and_scale() -> None:
    points, isolated = planted(150, 8, 3)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(2, 2)))[0]
    base = log_ratio(points, isolated, 1e-12, "ridge")
    assert log_ratio(points @ turn, isolated, 1e-12, "ridge") == pytest.approx(base, rel=1e-6)
    assert log_ratio(points * 7, isolated, 1e-12, "ridge") == pytest.approx(base, rel=1e-6)
    # A constant in every entry is no ridge: it does not keep its value under rotation.
    big = 5.0
    assert (
        abs(
            log_ratio(points @ turn, isolated, big, "constant")
            - log_ratio(points, isolated, big, "constant")
        )
        > 1e-3
    )


def test_features_of_a_class_may_be_turned() -> None:
    draw = np.random.default_rng(5)
    features = draw.normal(size=(300, 16)) * np.linspace(1, 3, 16)
    features[:40] += 5
    turn = np.linalg.qr(draw.normal(size=(16, 16)))[0]
    isolated = np.arange(300) < 40
    one, other = (
        log_ratio(principal(f, 2), isolated, 1e-9, "ridge") for f in (features, features @ turn)
    )
    assert one == pytest.approx(other, rel=1e-6) and one > np.log(2)


def test_which_classes_pass() -> None:
    ratios = np.log([1.0, 1.6, 2.5, 1.4])
    assert passed(ratios, 2.0, 1.5).tolist() == [False, False, True, False]
    assert passed(np.log([1.0, 1.6, 1.55]), 2.0, 1.5).tolist() == [False, True, False]
    assert not passed(np.array([np.nan, 0.1]), 2.0, 1.5).any()
    assert not passed(np.zeros(4), 2.0, 1.5).any()


def test_the_older_mixture_finds_the_group_by_itself() -> None:
    draw = np.random.default_rng(0)
    losses = draw.random(2000)
    features = draw.normal(size=(2000, 12))
    features[:150, :3] += 12
    losses[:150] *= 0.01
    chunklet = median_chunklet(losses)
    assert chunklet.sum() == 200 and not chunklet[:150].any()
    split = mixture_log_ratio(whitened(features, chunklet), chunklet)
    none = mixture_log_ratio(whitened(features[150:], chunklet[150:]), chunklet[150:])
    assert split > np.log(2) > none


@pytest.fixture(scope="module")
def rounds() -> tuple[toy.Toy, dict[str, np.ndarray], np.ndarray]:
    """Six rounds on the toy with 2 % poison."""
    case = toy.toy(rate=0.04)
    found = toy.found(SMALL, case)
    assert found.train_scores is not None
    assert found.losses is not None
    told = {**found.statistics, "losses": found.losses}
    return case, told, np.asarray(found.train_scores)


def test_rounds_concentrate_the_poison(
    rounds: tuple[toy.Toy, dict[str, np.ndarray], np.ndarray],
) -> None:
    case, found, scores = rounds
    assert len(found["losses"]) == 6
    areas = [metrics.ranking(-losses, case.mask).auroc for losses in found["losses"]]
    assert areas[-1] > 0.98 and areas[-1] >= areas[0] - 0.01
    clean = found["predicted"][~case.mask] == case.train.labels[~case.mask]
    assert clean.mean() < 0.35, "the clean task is forgotten"
    assert (found["predicted"][case.mask] == toy.TARGET).mean() > 0.9
    assert (scores == -found["losses"][-1]).all()


def test_without_confusion_the_clean_task_stays(
    rounds: tuple[toy.Toy, dict[str, np.ndarray], np.ndarray],
) -> None:
    case, found, scores = rounds
    plain = toy.found(SMALL.model_copy(update={"weight": 1.0001}), case)
    right, confused = (
        (values["predicted"] == case.train.labels)[~case.mask].mean()
        for values in (plain.statistics, found)
    )
    assert right > confused + 0.05
    gap, plain_gap = (
        np.median(s[case.mask]) - np.median(s[~case.mask])
        for s in (scores, np.asarray(plain.train_scores))
    )
    assert gap > plain_gap


def test_a_killed_run_goes_on_after_the_last_round() -> None:
    case = toy.toy(rate=0.04)
    small = SMALL.model_copy(update={"scale": 0.02})
    whole = small.run(toy.inputs(small, case), Context(seed=5))
    kept: list[Arrays] = []
    small.run(toy.inputs(small, case), Context(seed=5, checkpoint=kept.append))
    assert len(kept) == 5
    again = small.run(toy.inputs(small, case), Context(seed=5, restored=kept[2]))
    np.testing.assert_array_equal(again.train_scores, whole.train_scores)


def test_too_small_a_clean_set_is_refused() -> None:
    case = toy.toy()
    one = case.clean.take(np.array([0]))
    inputs = toy.inputs(SMALL, case, clean_set=one)
    with pytest.raises(ValueError, match="needs at least 2 reserved clean images, got 1"):
        SMALL.run(inputs, Context(seed=0))


def test_schedules_are_complete() -> None:
    for schedule in SCHEDULES.values():
        rounds = schedule.rounds
        assert len(schedule.ratios) == rounds - 1
        for per_round in (schedule.every, schedule.iterations, schedule.learning_rates,
                          schedule.momenta, schedule.epochs):  # fmt: skip
            assert len(per_round) == rounds


def test_the_last_rounds_pretraining_holds_wrongly_labeled_clean_images() -> None:
    from raysweep.defenses.confusion_training import _Round

    case = toy.toy()
    small = SMALL.model_copy()
    schedule = SCHEDULES["small"]
    some = ImageSet(images=case.train.images[:10], labels=case.train.labels[:10])
    for number, size in ((0, 10), (4, 10), (5, 10 + len(case.clean))):
        rounds = _Round(small, schedule, number, toy.inputs(small, case), Context(seed=0))
        mixed = rounds._mixed(some)
        assert len(mixed) == size
    assert (mixed.labels[10:] == (case.clean.labels + 1) % toy.CLASSES).all()
    assert torch.equal(mixed.images[10:], case.clean.images)
    assert training.Stream(data=mixed).every == 1
