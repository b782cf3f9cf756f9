"""An attack's trigger applied: the same in every stage of a trial that stamps."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raysweep import rng
from raysweep.arrays import IntArray
from raysweep.attacks import Attack, Part
from raysweep.datasets import as_floats
from raysweep.errors import StageError
from raysweep.methods import Recipe
from raysweep.metrics.rates import attack_success
from raysweep.stages.inputs import Inputs

if TYPE_CHECKING:
    import torch
    from torch import nn

AT_ONCE = 1000  # images


class Trigger:
    """The trigger of an attack in one trial."""

    def __init__(self, attack: Attack, seed: int, given: Inputs) -> None:
        """Take the attack's artifact from a stage's inputs.

        Args:
            attack: whose trigger it is.
            seed: of the trial.
            given: the inputs of the stage that stamps.
        """
        self.attack = attack
        self.seed = rng.derive(seed, "attack", attack.name)
        self.data = given.data
        self.device = given.device
        self.artifact = given.read("artifact")

    def stamp(self, images: torch.Tensor, ids: IntArray, part: Part) -> torch.Tensor:
        """Return triggered copies; copies of uint8 images are rounded to 8 bits.

        Args:
            images: (B, C, H, W), uint8 or float in [0, 1].
            ids: (B,) where the images stand in the files.
            part: what they become: poison, cover or triggered test inputs.
        """
        import torch

        stamped = []
        for start in range(0, len(images), AT_ONCE):
            cut = slice(start, start + AT_ONCE)
            triggered = self.attack.stamp(
                as_floats(images[cut].to(self.device)),
                ids=ids[cut],
                part=part,
                artifact=self.artifact,
                seed=self.seed,
            )
            if images.dtype == torch.uint8:
                triggered = triggered.clamp(0, 1).mul(255).round().to(torch.uint8)
            stamped.append(triggered.cpu())
        return torch.cat(stamped) if stamped else images

    def added(self) -> NDArray[np.float32]:
        """Return the change (C, H, W) that the trigger makes to a gray image at test time."""
        import torch

        gray = torch.full((1, *self.data.test.images.shape[1:]), 0.5)
        added: NDArray[np.float32] = self.stamp(gray, self.data.test_rows[:1], "test")[0].numpy()
        return added - 0.5

    @functools.cached_property
    def test_images(self) -> torch.Tensor:
        """The whole evaluation set, triggered, (E, C, H, W).

        Raises:
            StageError: if the attack has no triggered form of an input that the ASR counts.
        """
        test, ids = self.data.test, self.data.test_rows
        counted = self.attack.eligible(test.labels, self.data.shape.num_classes)
        lacking = ids[counted & ~self.attack.triggers(ids, self.artifact)]
        if len(lacking):
            raise StageError(
                f"attack {self.attack.label} has no triggered form of {len(lacking)} of "
                f"{int(counted.sum())} test inputs that its ASR counts, row {lacking[0]} of the "
                f"test files first; cut the dataset (test_size, clean_size, clean_seed) as the "
                f"attack's inputs were"
            )
        return self.stamp(test.images, ids, "test")

    def success(self, network: nn.Module, recipe: Recipe) -> float:
        """Return a network's ASR on the evaluation set; the network is left in eval mode."""
        from raysweep import training

        labels, classes = self.data.test.labels, self.data.shape.num_classes
        logits = training.predict(network, self.test_images, recipe, self.device)
        mapped = self.attack.relabel(labels, classes)
        eligible = self.attack.eligible(labels, classes)
        return attack_success(logits.argmax(1).numpy(), mapped, eligible).value
