"""Measure how far the trigger of an attack changes test inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from raysweep.attacks import Attack
from raysweep.stages.stage import Resource, Unseen, Work, rates

if TYPE_CHECKING:
    from raysweep.stages.content import Product
    from raysweep.stages.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class Visibility(Work):
    """Compare triggered test inputs with what they were made of.

    Attributes:
        attack: the attack, without its rates.
        seed: of the trial.
    """

    KIND, VERSION, ORDER = "visibility", 1, 25
    PACE = 5e-5
    WITHOUT: ClassVar[Unseen] = {"attack": rates}

    attack: Attack
    seed: int

    @property
    def resource(self) -> Resource:
        """The class of workers that do the work."""
        return "gpu" if self.attack.PREPARES else "cpu"

    def perform(self, given: Inputs) -> Product:
        """Return the mean L2 and L-infinity distances over what the ASR counts; of images SSIM."""
        import torch

        from raysweep.datasets import as_floats
        from raysweep.metrics import visibility
        from raysweep.stages.content import Product
        from raysweep.stages.triggers import Trigger

        trigger, test = Trigger(self.attack, self.seed, given), given.data.test
        rows = np.flatnonzero(self.attack.eligible(test.labels, given.data.shape.num_classes))
        before = as_floats(test.images[rows]).numpy()
        after = as_floats(trigger.test_images[rows]).numpy()
        outcome = {"l2": visibility.l2(before, after), "linf": visibility.linf(before, after)}
        if test.images.dtype == torch.uint8:
            outcome["ssim"] = visibility.ssim(before, after)
        return Product(outcome={**outcome, "n": len(rows)})
