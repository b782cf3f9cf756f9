"""What every model keeps to, found by scanning: the shipped contract, and published sizes."""

from __future__ import annotations

import pytest
import torch

from raysweep import methods
from raysweep.datasets import Shape
from raysweep.models import Model
from raysweep.testing import models as contract
from raysweep.testing.models import Kind, ModelContract

NAMES = list(methods.usable("models"))


def kind_of(name: str) -> Kind:
    return methods.load("models", name)  # type: ignore[return-value]


def make(name: str) -> Model:
    return contract.make(kind_of(name))


class TestModels(ModelContract):
    @pytest.fixture(params=NAMES)
    def kind(self, request: pytest.FixtureRequest) -> Kind:
        return kind_of(request.param)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("wrn_16_1", 0.175), ("preact_resnet18", 11.17), ("resnet18", 11.17), ("vgg16_bn", 14.73),
     ("mobilenet_v2", 2.24), ("vit_tiny", 5.4)],
)  # fmt: skip
def test_networks_have_the_size_that_is_published(name: str, millions: float) -> None:
    given = Shape(
        channels=3, height=32, width=32, num_classes=10, mean=(0.5,) * 3, std=(0.2,) * 3
    )  # fmt: skip
    with torch.device("meta"):
        network = methods.load("models", name)().build(given)  # type: ignore[attr-defined]
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.01)
