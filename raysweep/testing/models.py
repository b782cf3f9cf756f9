"""The contract of models: what every model keeps to, at several sizes of images."""

from __future__ import annotations

import functools
from typing import ClassVar

import pytest
import torch

from raysweep import methods, training
from raysweep.datasets import Shape
from raysweep.errors import StageError
from raysweep.methods import Context, Recipe
from raysweep.models import Model

Kind = type[Model]
Size = tuple[int, int, int]
SIZES: list[Size] = [(1, 16, 16), (3, 32, 32), (3, 20, 28), (3, 64, 64), (2351, 1, 1)]
PLAIN = Recipe(precision="float32")


def shape(channels: int, height: int, width: int) -> Shape:
    """Return the facts of images of a size, in 7 classes."""
    return Shape(
        channels=channels, height=height, width=width, num_classes=7,
        mean=(0.4,) * channels, std=(0.2,) * channels,
    )  # fmt: skip


def make(kind: Kind) -> Model:
    """Return the model as small as its toy size."""
    return kind.model_validate(dict(kind.TOY))


def suits(model: Model, size: Size) -> bool:
    """Return whether images (or vectors) of this size are for this model."""
    if "images" not in model.DOMAINS:
        return True
    return min(size[1:]) >= model.MIN_SIDE and (not model.SQUARE or size[1] == size[2])


def drawn(kind: Kind, size: Size, seed: int = 1) -> torch.nn.Module:
    """Return the untrained network for images of a size, whose weights a seed draws."""
    return training.build(make(kind), shape(*size), Context(seed=seed))


@functools.lru_cache(maxsize=1)  # a large network takes a second, and hundreds of MB
def network(kind: Kind, size: Size) -> torch.nn.Module:
    """Return the network of seed 1 in eval mode, which tests share and leave as it is."""
    return drawn(kind, size).eval()


class ModelContract:
    """The tests that a model inherits: `class TestMine(ModelContract): method = MyModel`.

    Its entry point must be installed: stages restore a model by its name. `TOY` of the model names
    smaller parameters where the defaults are slow.

    Attributes:
        method: the model's class.
    """

    method: ClassVar[Kind]

    @pytest.fixture
    def kind(self) -> Kind:
        """The model's class."""
        return self.method

    def test_is_a_value(self, kind: Kind) -> None:
        """The model is restored from its identity, by its name."""
        model = make(kind)
        again = methods.restore("models", model.identity())
        assert again == model and hash(again) == hash(model) and again.label == model.label

    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_builds_for_any_images_and_names_its_layers(self, kind: Kind, size: Size) -> None:
        """Each layer gives a row for each image; sizes that do not suit are refused by name."""
        model = make(kind)
        if ("images" in model.DOMAINS) != (size[1] > 1):
            pytest.skip("feature vectors are no images: the plan keeps them apart")
        if not suits(model, size):
            with pytest.raises(StageError, match=f"model {model.name}: images must have at least"):
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

    def test_features_lead_to_the_logits(self, kind: Kind) -> None:
        """The head makes the logits of the features, on the smallest images that suit."""
        model = make(kind)
        vectors = "images" not in model.DOMAINS
        size = next(size for size in SIZES if (size[1] == 1) == vectors and suits(model, size))
        shared = network(kind, size)
        images = torch.rand(4, *size)
        state = torch.get_rng_state()
        logits = shared(images)
        assert torch.equal(torch.get_rng_state(), state) and logits.shape == (4, 7)
        for layer in model.LAYERS:
            values, again = training.features(shared, images, layer, model.HEAD, PLAIN, "cpu")
            assert values.ndim == 2 and len(values) == 4
            torch.testing.assert_close(again, logits.detach(), atol=1e-4, rtol=1e-4)
        head = shared.get_submodule(model.HEAD)
        values, _ = training.features(shared, images, model.HEAD, model.HEAD, PLAIN, "cpu")
        torch.testing.assert_close(head(values).detach(), logits.detach(), atol=1e-4, rtol=1e-4)

    def test_normalizes_first_and_has_gradients_everywhere(self, kind: Kind) -> None:
        """The mean becomes 0 in the first layer; the seed of its stream alone sets the weights."""
        model = make(kind)
        size = (3, 32, 32) if "images" in model.DOMAINS else (40, 1, 1)
        first = next(network(kind, size).children())
        middle = torch.full((2, *size), 0.4)
        torch.testing.assert_close(first(middle), torch.zeros_like(middle), atol=1e-6, rtol=0)
        weights = network(kind, size).state_dict()
        pairs = zip(weights.values(), drawn(kind, size).state_dict().values(), strict=True)
        assert all(torch.equal(one, same) for one, same in pairs)
        other = drawn(kind, size, seed=2)
        head = f"{model.HEAD}.weight"
        assert not torch.equal(weights[head], other.state_dict()[head])
        other(torch.rand(4, *size)).square().sum().backward()
        assert all(p.grad is not None for p in other.parameters())
