"""Push a set through a model: features of the training set, or predictions on test inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from raysweep.attacks import Attack
from raysweep.methods import Recipe
from raysweep.models import Model
from raysweep.stages.stage import FORWARD, Params, Resource, Unseen, Work, rates

if TYPE_CHECKING:
    import torch

    from raysweep.stages.content import Product
    from raysweep.stages.inputs import Inputs

PICTURES = 6  # of test inputs, shown in the report


class _Inference(Work):
    KIND, VERSION, ORDER = "features", 2, 40

    @property
    def resource(self) -> Resource:
        """The class of workers that do the work."""
        return "gpu"

    def passes(self, samples: int, num_classes: int) -> float:
        """Return the sample passes of one pass forward."""
        del num_classes
        return FORWARD * samples


@dataclass(frozen=True, kw_only=True)
class Embed(_Inference):
    """Take the outputs of a layer on the poisoned training set.

    Attributes:
        layer: name of the layer.
        model: the architecture.
        recipe: gives precision and batch size.
    """

    FIXED: ClassVar[Params] = {"set": "train"}

    layer: str
    model: Model
    recipe: Recipe

    def perform(self, given: Inputs) -> Product:
        """Return features (N, D) and logits (N, K)."""
        from raysweep import training
        from raysweep.stages.content import Product

        values, logits = training.features(
            given.network(self.model, "weights"), given.training_set.images, self.layer,
            self.model.HEAD, self.recipe, given.device,
        )  # fmt: skip
        return Product(arrays={"features": values.numpy(), "logits": logits.numpy()})


@dataclass(frozen=True, kw_only=True)
class Predict(_Inference):
    """Predict the classes of clean and triggered test inputs.

    Attributes:
        model: the architecture.
        recipe: gives precision and batch size.
        attack: whose trigger is stamped, without its rates.
        seed: of the trial.
    """

    FIXED: ClassVar[Params] = {"set": "test"}
    WITHOUT: ClassVar[Unseen] = {"attack": rates}

    model: Model
    recipe: Recipe
    attack: Attack
    seed: int

    def perform(self, given: Inputs) -> Product:
        """Return predicted classes (E,) of both sets, and a few pictures of image data."""
        import torch

        from raysweep.stages.content import Predictions
        from raysweep.stages.triggers import Trigger

        network = given.network(self.model, "weights")
        test, trigger = given.data.test, Trigger(self.attack, self.seed, given)

        def predicted(images: torch.Tensor) -> np.ndarray:
            from raysweep import training

            logits = training.predict(network, images, self.recipe, given.device)
            return logits.argmax(1).to(torch.int32).numpy()

        pictures = None
        if test.images.dtype == torch.uint8:
            eligible = self.attack.eligible(test.labels, given.data.shape.num_classes)
            shown = np.flatnonzero(eligible)[:PICTURES]
            pictures = test.images[shown].numpy(), trigger.test_images[shown].numpy()
        return Predictions(
            clean=predicted(test.images),
            triggered=predicted(trigger.test_images),
            pictures=pictures,
        ).packed()
