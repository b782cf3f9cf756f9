"""What every model keeps to, found by scanning."""

from __future__ import annotations

import pytest
import torch

from raysweep import methods, training
from raysweep.datasets import Shape
from raysweep.errors import StageError
from raysweep.methods.context import Context
from raysweep.methods.recipe import Recipe
from raysweep.models import Model

NAMES = list(methods.available("models"))
SIZES = [(1, 16, 16), (3, 32, 32), (3, 20, 28), (3, 64, 64), (2351, 1, 1)]
PLAIN = Recipe(precision="float32")


def shape(channels: int, height: int, width: int) -> Shape:
    return Shape(
        channels=channels, height=height, width=width, num_classes=7,
        mean=(0.4,) * channels, std=(0.2,) * channels,
    )  # fmt: skip


def make(name: str) -> Model:
    """Return the model as small as its toy size."""
    kind = methods.load("models", name)
    return kind.model_validate(dict(kind.TOY))  # type: ignore[return-value]


def suits(model: Model, size: tuple[int, int, int]) -> bool:
    """Return whether images (or vectors) of this size are for this model."""
    if "images" not in model.DOMAINS:
        return True
    return min(size[1:]) >= model.MIN_SIDE and (not model.SQUARE or size[1] == size[2])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_builds_for_any_images_and_names_its_layers(name: str, size: tuple[int, int, int]) -> None:
    model = make(name)
    if ("images" in model.DOMAINS) != (size[1] > 1):
        pytest.skip("feature vectors are no images: the plan keeps them apart")
    if not suits(model, size):
        with pytest.raises(StageError, match=f"model {name}: images must have at least"):
            training.build(model, shape(*size), Context(seed=1))
        return
    with torch.device("meta"):  # shapes alone: nothing is drawn and nothing computed
        network = model.build(shape(*size)).eval()
        rows: dict[str, int] = {}
        for layer in model.LAYERS:
            network.get_submodule(layer).register_forward_hook(
                lambda _, given, made, layer=layer: rows.update({layer: len(made)})
            )
        assert network(torch.rand(4, *size)).shape == (4, 7)
    assert rows == dict.fromkeys(model.LAYERS, 4) and model.HEAD in model.LAYERS


@pytest.mark.parametrize("name", NAMES)
def test_features_lead_to_the_logits(name: str) -> None:
    """The values, on the smallest images that suit the model."""
    model = make(name)
    vectors = "images" not in model.DOMAINS
    size = next(size for size in SIZES if (size[1] == 1) == vectors and suits(model, size))
    network = training.build(model, shape(*size), Context(seed=1)).eval()
    images = torch.rand(4, *size)
    state = torch.get_rng_state()
    logits = network(images)
    assert torch.equal(torch.get_rng_state(), state) and logits.shape == (4, 7)
    for layer in model.LAYERS:
        values, again = training.features(network, images, layer, model.HEAD, PLAIN, "cpu")
        assert values.ndim == 2 and len(values) == 4
        torch.testing.assert_close(again, logits.detach(), atol=1e-4, rtol=1e-4)
    head = network.get_submodule(model.HEAD)
    values, _ = training.features(network, images, model.HEAD, model.HEAD, PLAIN, "cpu")
    torch.testing.assert_close(head(values).detach(), logits.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_normalizes_first_and_has_gradients_everywhere(name: str) -> None:
    model = make(name)
    size = (3, 32, 32) if "images" in model.DOMAINS else (40, 1, 1)
    network = training.build(model, shape(*size), Context(seed=1))
    first = next(iter(network.children()))
    middle = torch.full((2, *size), 0.4)
    torch.testing.assert_close(first(middle), torch.zeros_like(middle), atol=1e-6, rtol=0)
    network(torch.rand(4, *size)).square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    same = training.build(model, shape(*size), Context(seed=1))
    other = training.build(model, shape(*size), Context(seed=2))
    pairs = zip(network.state_dict().values(), same.state_dict().values(), strict=True)
    assert all(a.shape == b.shape for a, b in pairs)
    head = f"{model.HEAD}.weight"
    assert torch.equal(network.state_dict()[head], same.state_dict()[head])
    assert not torch.equal(network.state_dict()[head], other.state_dict()[head])


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
