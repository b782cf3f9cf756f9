"""Triggers against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from raysweep.attacks.badnets import BadNets
from raysweep.attacks.blend import Blend
from raysweep.attacks.sig import SIG
from raysweep.attacks.wanet import WaNet

IDS = np.arange(3)


def grey(value: float = 0.4, side: int = 16) -> torch.Tensor:
    return torch.full((3, 1, side, side), value)


def test_badnets_replaces_nine_pixels_by_the_published_pattern() -> None:
    stamped = BadNets().stamp(grey(), ids=IDS, part="test", artifact={}, seed=0)
    corner = torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert torch.equal(stamped[0, 0, -3:, -3:], corner)
    stamped[:, :, -3:, -3:] = 0.4
    assert torch.equal(stamped, grey())
    moved = BadNets(size=2, margin=1, pattern="white").stamp(
        grey(), ids=IDS, part="test", artifact={}, seed=0
    )
    places = torch.tensor([[13, 13], [13, 14], [14, 13], [14, 14]])
    assert torch.equal((moved == 1).nonzero()[:4, 2:], places)
    with pytest.raises(ValueError, match=r"size \+ margin must fit"):
        BadNets(size=20).stamp(grey(), ids=IDS, part="test", artifact={}, seed=0)


def test_blend_is_a_convex_mixture() -> None:
    attack = Blend(alpha=0.25, test_alpha=0.5)
    trigger = attack.trigger(1, 16, 16)
    for part, alpha in (("poison", 0.25), ("test", 0.5)):
        stamped = attack.stamp(grey(), ids=IDS, part=part, artifact={}, seed=0)  # type: ignore[arg-type]
        torch.testing.assert_close(stamped[1], (1 - alpha) * grey()[1] + alpha * trigger)
    assert not torch.equal(Blend(image_seed=1).trigger(1, 16, 16), trigger)


def test_sig_adds_the_papers_sinusoid() -> None:
    stamped = SIG(delta=20.0, frequency=4.0).stamp(
        grey(), ids=IDS, part="poison", artifact={}, seed=0
    )
    for column in range(16):
        expected = 0.4 + 20 / 255 * math.sin(2 * math.pi * column * 4 / 16)
        assert stamped[0, 0, 3, column] == pytest.approx(expected, abs=1e-6)
    assert torch.equal(stamped[:, :, 0], stamped[:, :, 9]), "the same in every row"


def test_wanet_without_strength_is_the_identity_and_moves_by_its_strength() -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    still = WaNet(s=0.0).stamp(images, ids=IDS, part="test", artifact={}, seed=1)
    torch.testing.assert_close(still, images, atol=1e-5, rtol=0)
    identity = WaNet(s=0.0).grid(32, 32, 1)
    moved = (WaNet(s=0.5).grid(32, 32, 1) - identity).abs()
    # Offsets are s * field / height in units of half the image; the field has mean size 1.
    assert float(moved.mean()) == pytest.approx(0.5 / 32, rel=0.5)
    assert float(moved.max()) < 4 * 0.5 / 32
    twice = (WaNet(s=1.0).grid(32, 32, 1) - identity).abs()
    inside = twice[4:-4, 4:-4]
    torch.testing.assert_close(inside, 2 * moved[4:-4, 4:-4], atol=1e-4, rtol=0)


def test_wanet_covers_differ_per_image_or_not() -> None:
    same = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(
        3, -1, -1, -1
    )
    each = WaNet().stamp(same, ids=IDS, part="cover", artifact={}, seed=1)
    fixed = WaNet(noise="fixed").stamp(same, ids=IDS, part="cover", artifact={}, seed=1)
    assert not torch.equal(each[0], each[1]) and torch.equal(fixed[0], fixed[1])
