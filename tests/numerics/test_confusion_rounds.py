"""Confusion Training's rounds on planted toys; controls without poison, without confusion."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from raysweep import training
from raysweep.datasets import ImageSet, Shape
from raysweep.defenses import DefenseInputs, Evidence, Findings
from raysweep.defenses._confusion import SCHEDULES, log_ratio, principal
from raysweep.defenses.confusion_training import ConfusionTraining, _Round
from raysweep.methods.checkpoints import Checkpoints, unpacked
from raysweep.methods.context import Arrays, Context
from raysweep.methods.recipe import Recipe
from raysweep.metrics.ranking import ranking, separability
from raysweep.models.tiny_cnn import TinyCNN
from raysweep.testing import toy

SMALL = ConfusionTraining(schedule="small", scale=0.3)


@pytest.fixture(scope="module")
def rounds() -> tuple[toy.Toy, dict[str, np.ndarray], np.ndarray]:
    """Six rounds on the toy with 4 % poison."""
    case = toy.toy(rate=0.04)
    found = toy.found(SMALL, case)
    assert found.train_scores is not None and found.losses is not None
    told = {**found.statistics, **found.spaces, "losses": found.losses}
    return case, told, np.asarray(found.train_scores)


def test_rounds_concentrate_the_poison(
    rounds: tuple[toy.Toy, dict[str, np.ndarray], np.ndarray],
) -> None:
    case, found, scores = rounds
    assert len(found["losses"]) == 6
    areas = [ranking(-losses, case.mask).auroc for losses in found["losses"]]
    assert areas[-1] > 0.98 and areas[-1] >= areas[0] - 0.01
    clean = found["predicted"][~case.mask] == case.train.labels[~case.mask]
    assert clean.mean() < 0.35, "the clean task is forgotten"
    assert (found["predicted"][case.mask] == toy.TARGET).mean() > 0.9
    assert (scores == -found["losses"][-1]).all()


def test_confusion_moves_poison_apart(
    rounds: tuple[toy.Toy, dict[str, np.ndarray], np.ndarray],
) -> None:
    case, found, _ = rounds
    before, after = (
        separability(found[space], case.train.labels, case.mask)
        for space in ("victim_axes", "confused_axes")
    )
    assert after > 0.98 and after >= before
    victim = toy.inputs(SMALL, case).victim
    features, _ = training.features(
        victim, case.train.images, toy.MODEL.HEAD, toy.MODEL.HEAD, toy.RECIPE, "cpu"
    )
    mine = case.train.labels == 0
    expected = principal(features.numpy()[mine], 8)
    np.testing.assert_allclose(found["victim_axes"][mine], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.further
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


@dataclass
class Rounds:
    """The checkpoints after each round: as they were written, and what the stage itself kept."""

    written: list[Arrays] = field(default_factory=list)
    own: list[Arrays] = field(default_factory=list)

    def __call__(self, arrays: Arrays) -> None:
        rounds, own = unpacked(arrays, "").get("", (0, {}))
        if rounds > len(self.own):
            self.written.append(arrays)
            self.own.append(own)

    def context(self, seed: int) -> Context:
        return Context(seed=seed, kept=Checkpoints(self, pause=lambda cost: 0.0).root)


def test_a_killed_run_goes_on_after_the_last_round() -> None:
    case = toy.toy(rate=0.04)
    small = SMALL.model_copy(update={"scale": 0.02})
    whole = small.run(toy.inputs(small, case), Context(seed=5))
    kept = Rounds()
    small.run(toy.inputs(small, case), kept.context(5))
    assert len(kept.own) == 5
    restored = Checkpoints(restored=kept.written[2])
    again = small.run(toy.inputs(small, case), Context(seed=5, kept=restored.root))
    np.testing.assert_array_equal(again.train_scores, whole.train_scores)


def test_each_round_distils_its_share_by_the_losses_of_that_round() -> None:
    case = toy.toy(rate=0.04)
    small = SMALL.model_copy(update={"scale": 0.02})
    kept = Rounds()
    small.run(toy.inputs(small, case), kept.context(5))
    labels, topped = case.train.labels, 0
    for number, arrays in enumerate(kept.own):
        losses = np.asarray(arrays["losses"])[number]
        share = 100 if number == 4 else 50
        expected = set(np.argsort(losses)[: int(SCHEDULES["small"].ratios[number] * 600)].tolist())
        count = len(expected)
        for label in range(toy.CLASSES):
            mine = np.flatnonzero(labels == label)
            mine = mine[np.argsort(losses[mine])]
            least = len(mine) // share
            lacking = max(least - len(expected & set(mine.tolist())), 0)
            free = [row for row in mine.tolist() if row not in expected]
            expected |= set(free[:lacking])
        assert set(np.asarray(arrays["kept"]).tolist()) == expected
        topped += len(expected) - count
    assert topped > 0


def test_too_small_a_clean_set_is_refused() -> None:
    case = toy.toy()
    one = case.clean.take(np.array([0]))
    inputs = toy.inputs(SMALL, case, clean_set=one)
    with pytest.raises(ValueError, match="needs at least 2 reserved clean images, got 1"):
        SMALL.run(inputs, Context(seed=0))


def test_the_last_rounds_pretraining_holds_wrongly_labeled_clean_images() -> None:
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


CLASSES, SIDE, TARGET, EACH = 10, 8, 3, 500
SHAPE = Shape(channels=1, height=SIDE, width=SIDE, num_classes=CLASSES, mean=(0.35,), std=(0.15,))
RECIPE = Recipe(epochs=8, batch_size=128, learning_rate=0.1, precision="float32")


def blobs(labels: np.ndarray, seed: int) -> torch.Tensor:
    """Return noisy images with one blob each, at the place of the class."""
    draw, down = np.random.default_rng(seed), np.random.default_rng(7).random(CLASSES)
    y, x = np.mgrid[:SIDE, :SIDE]
    pixels = draw.normal(70, 22, (len(labels), 1, SIDE, SIDE))
    for image, label in zip(pixels, labels, strict=True):
        row, column = 1 + 4 * (label // 5) + down[label], 1.6 * (label % 5) + 0.5
        image += 90 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 3)
    return torch.from_numpy(pixels.clip(0, 200).astype(np.uint8))


def one_pixel(images: torch.Tensor) -> torch.Tensor:
    copies = images.clone()
    copies[:, :, -1, -1] = 255
    return copies


class Watched(ConfusionTraining):
    """Keeps the confused model of the last round, which findings do not hold."""

    def _found(self, confused: nn.Module, *rest: object) -> Findings:  # type: ignore[override]
        object.__setattr__(self, "confused", confused)
        return super()._found(confused, *rest)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Outcome:
    """What a run did: per round AUROC and share of poison; R; the confused model's predictions."""

    areas: list[float]
    shares: list[float]
    ratios: np.ndarray
    flags: np.ndarray
    mask: np.ndarray
    accuracy: float
    success: float


@functools.cache
def outcome(poisons: int, reserved: int, weight: float | None = None) -> Outcome:
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), EACH)
    images, mask = blobs(labels, 0), np.zeros(len(labels), bool)
    mask[draw.choice(np.flatnonzero(labels != TARGET), poisons, replace=False)] = True
    images[torch.from_numpy(mask)] = one_pixel(images[torch.from_numpy(mask)])
    train = ImageSet(images=images, labels=np.where(mask, TARGET, labels))
    some, other = draw.integers(0, CLASSES, reserved), draw.integers(0, CLASSES, 1000)
    model, ctx = TinyCNN(width=8), Context(seed=0)
    victim = training.build(model, SHAPE, ctx)
    training.fit(victim, train, RECIPE, ctx)
    method = Watched(schedule="small", scale=0.5, learning_rate=0.05, weight=weight)
    values = {
        "training_set": train, "labels": train.labels, "victim": victim, "shards": [],
        "clean_set": ImageSet(images=blobs(some, 1), labels=some),
        "model": model, "shape": SHAPE, "recipe": RECIPE,
    }  # fmt: skip
    kept = Rounds()
    found = method.run(DefenseInputs("x", method.needs(), values), kept.context(3))
    scores = np.asarray(found.train_scores)
    isolated = found.statistics["predicted"] == train.labels
    ratios = [
        log_ratio(found.statistics["axes"][rows][:, :2], isolated[rows], 1e-3, "ridge")
        for rows in (np.flatnonzero(train.labels == label) for label in range(CLASSES))
    ]
    known = {
        "labels": train.labels, "num_classes": CLASSES, "statistics": found.statistics,
        "train_scores": scores,
    }  # fmt: skip
    fresh = blobs(other, 2)
    plain, triggered = (
        training.predict(method.confused, x, RECIPE, "cpu").argmax(1).numpy()  # type: ignore[attr-defined]
        for x in (fresh, one_pixel(fresh))
    )
    flags = method.decide(Evidence("x", method.needs(), known)).flags
    assert flags is not None
    rounds = [*np.asarray(kept.own[-1]["losses"]), -scores]
    return Outcome(
        areas=[ranking(-losses, mask).auroc for losses in rounds],
        shares=[float(mask[np.asarray(arrays["kept"])].mean()) for arrays in kept.own],
        ratios=np.exp(ratios), flags=flags, mask=mask,
        accuracy=float((plain == other).mean()),
        success=float((triggered == TARGET)[other != TARGET].mean()),
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.slow
def test_the_confused_model_remembers_the_trigger_alone() -> None:
    """Ten classes of 500 images, 2 % with one pixel, 200 reserved images.

    On this toy; where confusion is weaker, a class without poison can pass the gate.
    """
    found = outcome(100, 200)
    assert found.accuracy <= 1 / CLASSES + 0.03 and found.success >= 0.9
    assert found.areas[-1] > 0.98 and (np.diff(found.areas) > -0.005).all()
    assert (np.diff([0.02, *found.shares]) > 0).all()
    assert found.ratios[TARGET] > 2 and found.flags[found.mask].mean() > 0.95
    assert found.flags[~found.mask].mean() < 0.01


@pytest.mark.long
@pytest.mark.slow
def test_without_poison_no_class_passes() -> None:
    found = outcome(0, 200)
    assert (found.ratios < 1.5).all() and not found.flags.any()


@pytest.mark.slow
@pytest.mark.long
def test_without_confusion_or_with_ten_clean_images_the_rounds_fail() -> None:
    """The controls: lambda of 1, and too small a reserved set; 0.5 % of poison.

    At the 2 % of the test above the last rounds of both still find the poison (areas of 1.0), and
    fail by false positives alone: 54 % and 9 % here.
    """
    right, plain, few = outcome(25, 200), outcome(25, 200, 1.0001), outcome(25, 10)
    assert right.areas[-1] > 0.98 and right.flags[right.mask].mean() > 0.9
    assert right.flags[~right.mask].mean() < 0.01
    assert plain.areas[-1] < 0.7 and few.areas[-1] < 0.8
    assert plain.flags[plain.mask].mean() < 0.5 and few.flags[few.mask].mean() < 0.5
    assert plain.flags[~plain.mask].mean() > 0.2
    assert plain.accuracy > 0.3 and few.accuracy > right.accuracy + 0.05
