"""Confusion Training against the released code's arithmetic, simulated gates and a planted toy."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raysweep import training
from raysweep.datasets import ImageSet
from raysweep.defenses import Evidence, confusion_training
from raysweep.defenses._confusion import (
    SCHEDULES,
    Confusion,
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
from raysweep.defenses.confusion_training import ConfusionTraining, _Round
from raysweep.methods.context import Context
from raysweep.testing import toy
from raysweep.training.streams import Batch

SMALL = ConfusionTraining(schedule="small", scale=0.3)


def test_shifts_take_every_wrong_label_in_turn() -> None:
    for classes in (2, 10, 43):
        given = list(itertools.islice(itertools.cycle(shifts(classes)), 200))
        assert 0 not in given and set(given) <= set(range(1, classes))
        counts = np.bincount(given, minlength=classes)[1:]
        assert counts.max() - counts.min() <= 1
    # The released code's own counter, written out.
    skipped, theirs = 0, []
    for i in range(200):
        if (skipped + i) % 10 == 0:
            skipped += 1
        theirs.append((skipped + i) % 10)
    assert list(itertools.islice(itertools.cycle(shifts(10)), 200)) == theirs
    assert set(np.bincount(theirs)[1:]) == {22, 23}


def test_no_confusing_label_is_what_the_victim_says() -> None:
    """Logits that are sure of the victim's labels lose on every one of 200 steps."""
    guessed = torch.arange(30) % 10
    rows = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    sure = 50.0 * F.one_hot(guessed[rows], 10)
    clean = Batch(images=sure, labels=torch.zeros(30, dtype=torch.long), rows=rows)
    objective = Confusion(guessed, torch.ones(10), 20.0, 10)
    losses = [float(objective(nn.Identity(), {"clean": clean})) for _ in range(200)]
    assert min(losses) > 49


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


@pytest.mark.parametrize(("every", "drawn"), [(1, 8), (2, 4), (4, 2)])
def test_inspected_data_take_part_in_every_so_manieth_step(
    every: int, drawn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    class Counted(Confusion):
        def __call__(self, model: nn.Module, batches: Mapping[str, Batch]) -> torch.Tensor:
            seen.append("inspected" in batches)
            return super().__call__(model, batches)

    monkeypatch.setattr(confusion_training, "Confusion", Counted)
    case = toy.toy()
    schedule = dataclasses.replace(
        SCHEDULES["small"], iterations=(8,) * 6, epochs=(1,) * 6, every=(every,) * 6
    )
    rounds = _Round(SMALL, schedule, 0, toy.inputs(SMALL, case), Context(seed=0))
    guessed = torch.from_numpy(case.clean.labels)
    rounds.train(toy.network(case.weights), case.train.take(np.arange(64)), guessed)
    assert len(seen) == 8 and sum(seen) == drawn and seen[0]


def test_rare_classes_weigh_more_in_all_rounds_but_the_last() -> None:
    case = toy.toy()
    some = ImageSet(images=case.train.images[:8], labels=np.array([0, 0, 0, 0, 0, 0, 1, 2]))
    for number, even in ((0, False), (4, False), (5, True)):
        given = _Round(
            SMALL, SCHEDULES["small"], number, toy.inputs(SMALL, case), Context(seed=0)
        )._class_weights(some)
        expected = torch.ones(4) if even else (torch.tensor([6, 1, 1, 0]) / 8 + 0.001).rsqrt()
        torch.testing.assert_close(given, expected)


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


def test_distilled_sets_have_the_sizes_of_the_schedule() -> None:
    """50,000 samples: 25,000, 10,000, 2,000, then 1,000 and 500 with what classes lack."""
    labels = np.arange(50_000) % 10
    losses = np.random.default_rng(1).random(50_000)
    sizes = [
        len(distilled(losses, labels, ratio, share, 10))
        for ratio, share in zip(SCHEDULES["cifar10"].ratios, (50, 50, 50, 50, 100), strict=True)
    ]
    assert sizes[:3] == [25_000, 10_000, 2000]
    for size, count, least in ((sizes[3], 1000, 100), (sizes[4], 500, 50)):
        lowest = np.bincount(labels[np.argsort(losses)[:count]], minlength=10)
        assert (lowest < least).any()
        assert size == count + np.maximum(least - lowest, 0).sum()


def planted(count: int, distance: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 5,000 clean points and `count` more at a distance, and which these are."""
    draw, n = np.random.default_rng(seed), 5000 + count
    points = draw.normal(size=(n, 2))
    points[:count, 0] += distance
    return points, np.arange(n) < count


GATES = [
    (150, 5, 1.44), (150, 6, 1.67), (150, 8, 2.53), (150, 10, 4.2), (50, 10, 1.62), (500, 4, 1.99)
]  # fmt: skip


@pytest.mark.parametrize(("count", "distance", "ratio"), GATES)
def test_the_gate_measures_what_was_simulated(count: int, distance: float, ratio: float) -> None:
    """And what unit Gaussians give in closed form, exp(k d^2 / 2 n), n = 5,000 + k."""
    found = [
        np.exp(log_ratio(*planted(count, distance, seed), 1e-3, "ridge")) for seed in range(15)
    ]
    assert np.median(found) == pytest.approx(ratio, rel=0.05)
    closed = np.exp(count * distance**2 / (2 * (5000 + count)))
    assert np.median(found) == pytest.approx(closed, rel=0.05)


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
    kept = log_ratio(points, isolated, big, "ridge")
    assert log_ratio(points @ turn, isolated, big, "ridge") == pytest.approx(kept, rel=1e-9)
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


def test_permuting_samples_permutes_what_is_flagged() -> None:
    """With the network fixed; half of the labels are wrong, so that every class splits."""
    case = toy.toy()
    wrong = np.arange(600) % 3 == 0
    labels = (case.train.labels + wrong) % toy.CLASSES
    order = np.random.default_rng(0).permutation(600)
    flags = []
    for rows in (np.arange(600), order):
        data = ImageSet(images=case.train.images[torch.from_numpy(rows)], labels=labels[rows])
        ctx, network = Context(seed=0), toy.network(case.weights)
        losses = training.per_sample_losses(network, data, toy.RECIPE, "cpu").numpy()
        inputs = toy.inputs(SMALL, case, training_set=data)
        found = SMALL._found(network, np.zeros((600, 4)), losses[None], inputs, ctx)
        values = {
            "labels": data.labels, "num_classes": toy.CLASSES, "statistics": found.statistics,
            "train_scores": found.train_scores,
        }  # fmt: skip
        flags.append(SMALL.decide(Evidence("x", SMALL.needs(), values)).flags)
    one, other = flags
    assert one is not None and other is not None
    assert 100 < one.sum() < 600 and not one[wrong & ~case.mask].any()
    assert (one[order] == other).all()


def test_which_classes_pass() -> None:
    ratios = np.log([1.0, 1.6, 2.5, 1.4])
    assert passed(ratios, 2.0, 1.5).tolist() == [False, False, True, False]
    assert passed(np.log([1.0, 2.2, 2.5, 1.9]), 2.0, 1.5).tolist() == [False, True, True, False]
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


def test_a_group_off_the_first_two_axes_takes_a_third() -> None:
    """And only a class that holds one has an R above 1."""
    draw = np.random.default_rng(0)
    labels, isolated = np.repeat([0, 2], 1000), np.arange(2000) < 100
    axes = draw.normal(size=(2000, 8))
    axes[:100, 2] += 20
    statistics = {"axes": axes, "predicted": np.where(isolated, labels, 1)}
    values = {
        "labels": labels, "num_classes": 4, "statistics": statistics, "train_scores": np.zeros(2000)
    }  # fmt: skip
    evidence = Evidence("x", SMALL.needs(), values)
    for rank, held in ((2, False), (3, True), (8, True)):
        method = ConfusionTraining(rank=rank)
        ratios, flags = method.log_ratios(evidence), method.decide(evidence).flags
        assert (ratios[0] > 10) == held and (ratios[1:] == 0).all()
        assert flags is not None and (flags == (isolated & held)).all()


def test_schedules_are_complete() -> None:
    for schedule in SCHEDULES.values():
        rounds = schedule.rounds
        assert len(schedule.ratios) == rounds - 1
        for per_round in (schedule.every, schedule.iterations, schedule.learning_rates,
                          schedule.momenta, schedule.epochs):  # fmt: skip
            assert len(per_round) == rounds
