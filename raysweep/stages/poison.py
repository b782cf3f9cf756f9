"""Choose, stamp and relabel: the samples of the training set that an attack replaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from raysweep import rng
from raysweep.attacks import Attack
from raysweep.counts import share_for
from raysweep.stages.stage import Resource, Unseen, Work, rates

if TYPE_CHECKING:
    from raysweep.stages.content import Product
    from raysweep.stages.inputs import Inputs


@dataclass(frozen=True, kw_only=True)
class Poison(Work):
    """Replace samples of the training set.

    Attributes:
        attack: the attack, without its rates.
        poison: how many samples are poisoned.
        cover: how many are covers.
        seed: of the trial.
    """

    KIND, VERSION, ORDER = "poison", 1, 20
    PACE = 5e-5
    WITHOUT: ClassVar[Unseen] = {"attack": rates}

    attack: Attack
    poison: int
    cover: int
    seed: int

    @property
    def resource(self) -> Resource:
        """The class of workers that do the work."""
        return "gpu" if self.attack.PREPARES else "cpu"

    def perform(self, given: Inputs) -> Product:
        """Return rows, images and labels of the replaced samples."""
        from raysweep.stages import content
        from raysweep.stages.triggers import Trigger

        clean, classes = given.data.train, given.data.shape.num_classes
        trigger = Trigger(self.attack, self.seed, given)
        chosen = self.attack.model_copy(
            update={
                "rate": share_for(self.poison, len(clean)),
                "cover_rate": share_for(self.cover, len(clean)),
            }
        ).choose(clean.labels, classes, trigger.artifact, rng.generator(trigger.seed, "choose"))
        original = clean.labels[chosen.poison]
        poisoned, covers = clean.take(chosen.poison).images, clean.take(chosen.cover).images
        return content.Poison(
            poison_rows=chosen.poison,
            cover_rows=chosen.cover,
            poison_images=trigger.stamp(poisoned, chosen.poison, "poison").numpy(),
            cover_images=trigger.stamp(covers, chosen.cover, "cover").numpy(),
            poison_labels=self.attack.relabel(original, classes),
        ).packed(original)
