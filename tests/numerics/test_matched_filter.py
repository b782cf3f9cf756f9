"""The matched filter: its unit, its blindness to smooth images, the source of its pattern."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch

from raysweep.attacks.additive import Additive
from raysweep.datasets import ImageSet
from raysweep.defenses import DefenseInputs
from raysweep.defenses.matched_filter import MatchedFilter, high_pass, multiples
from raysweep.jobs.launch import launch
from raysweep.metrics.ranking import ranking
from raysweep.sweep.loading import load_sweep
from raysweep.testing import toy

SWEEP = """
name: filtered
dataset: {digits: {size: 300}}
model: linear
recipe: {epochs: 1}
attacks:
  - none
  - additive: {pattern: cross, amplitude: 200.0, rate: 0.05, sources: [0, 1]}
  - additive: {pattern: cross, amplitude: 200.0, rate: 0.0, sources: [0, 1]}
defenses: [matched_filter]
seeds: 1
track: {wandb: disabled}
"""


def smooth(count: int, seed: int) -> torch.Tensor:
    """Return images (N, 3, 32, 32) uint8 whose spectrum falls off as that of photographs does."""
    noise = np.random.default_rng(seed).normal(size=(count, 3, 32, 32))
    blurred = scipy.ndimage.gaussian_filter(noise, (0, 0, 2, 2), mode="wrap")
    scaled = 128 + 50 * blurred / blurred.std((1, 2, 3), keepdims=True)
    return torch.from_numpy(scaled.clip(0, 255).round().astype(np.uint8))


def filtered(images: torch.Tensor, pattern: torch.Tensor) -> np.ndarray:
    method = MatchedFilter()
    data = ImageSet(images=images, labels=np.zeros(len(images), np.int64))
    known = {"training_set": data, "trigger": pattern.numpy()}
    inputs = DefenseInputs(method.name, method.needs(), known)
    return np.asarray(method.run(inputs, toy.Context(seed=0)).train_scores)


@pytest.mark.parametrize(
    ("pattern", "amplitude"), [("chessboard", 3.0), ("static", 3.0), ("cross", 60.0), ("x", 60.0)]
)
def test_poison_is_told_apart_and_clean_images_are_not(pattern: str, amplitude: float) -> None:
    attack = Additive.model_validate({"pattern": pattern, "amplitude": amplitude})
    v = attack.perturbation(3, 32, 32, seed=1)
    images = smooth(700, seed=0)
    mask = np.arange(700) % 7 == 0
    poisoned = images.clone()
    rows = torch.from_numpy(mask)
    stamped = attack.stamp(images[rows] / 255, ids=np.flatnonzero(mask), part="poison",
                           artifact={}, seed=1)  # fmt: skip
    poisoned[rows] = stamped.mul(255).round().to(torch.uint8)
    assert ranking(filtered(poisoned, v), mask).auroc >= 0.99
    clean = filtered(images, v)
    assert ranking(clean, mask).auroc == pytest.approx(0.5, abs=0.1)


def test_the_chessboard_is_flagged_at_half_of_its_amplitude() -> None:
    v = Additive().perturbation(3, 32, 32, seed=0)
    images = smooth(200, seed=2)
    poisoned = torch.cat([images[:100].float() / 255 + v, images[100:].float() / 255])
    scores = filtered(poisoned, v)
    assert (scores[:100] > 0.5).all() and (scores[100:] < 0.5).all()


def test_a_score_counts_how_often_the_pattern_was_added() -> None:
    v = Additive(pattern="static").perturbation(3, 32, 32, seed=0)
    images = smooth(20, seed=1).float() / 255
    base = multiples(images, v)
    np.testing.assert_allclose(multiples(images + v, v), base + 1, atol=1e-3)
    np.testing.assert_allclose(multiples(images - 2.5 * v + 0.3, v), base - 2.5, atol=1e-3)
    assert not multiples(images, torch.full_like(v, 0.2)).any(), "no high frequencies: zeros"
    vectors = torch.rand(4, 5, 1, 1)
    assert not high_pass(vectors).any() and not multiples(vectors, vectors[0]).any()


def test_it_says_that_it_knows_the_trigger() -> None:
    assert MatchedFilter().badges() == ("oracle: trigger",)
    assert MatchedFilter().kind == "control"


def test_the_plan_hands_it_the_pattern_of_the_trial(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP)
    done = launch(load_sweep(file), SWEEP, str(tmp_path / "store"), inline=True)
    rows = done.rows
    assert (rows["status"] == "ok").all(), rows[["status", "error"]]
    assert (rows["badges"] == "oracle: trigger").all()
    poisoned = rows[rows["rate"] == 0.05].iloc[0]
    assert poisoned["auroc"] > 0.99 and poisoned["tpr"] > 0.8
    assert (rows["fpr"] == 0).all() and (rows[rows["rate"] == 0]["removed"] == 0).all()
