"""Run a defense, or repair a model after the defense's decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from raysweep.arrays import Array, IntArray
from raysweep.attacks import Attack
from raysweep.defenses import Defense, DefenseInputs, Findings
from raysweep.errors import StageError
from raysweep.methods import Recipe, check_version, decision_fields
from raysweep.models import Model
from raysweep.stages.stage import Outcome, Params, Resource, Unseen, Work, rates

if TYPE_CHECKING:
    import torch

    from raysweep.stages.content import Product
    from raysweep.stages.inputs import Inputs

LIGHT_NEEDS = frozenset({"features", "poison_rate", "poison_mask", "target_class", "removed_count"})
AT_ONCE = 500  # inputs that are scored together


def enough(outcome: Outcome) -> bool:
    """Return whether the parts that a stored run has seen suffice."""
    return bool(outcome["enough"])


@dataclass(frozen=True, kw_only=True)
class DefenseWork(Work):
    """Work of a defense on one victim: all of it, one part of it, or a repair.

    Attributes:
        defense: the defense, without the fields that decisions read.
        model: the architecture of the victim.
        recipe: how the victim was trained.
        seed: of the trial.
        attack: without its rates, if the defense declares that it may ask something of it.
    """

    LONG = True
    WITHOUT: ClassVar[Unseen] = {"attack": rates, "defense": decision_fields}

    defense: Defense
    model: Model
    recipe: Recipe
    seed: int
    attack: Attack | None = None

    @property
    def resource(self) -> Resource:
        """The class of workers: `cpu` for a defense that reads nothing but arrays."""
        return "cpu" if self.defense.needs() <= LIGHT_NEEDS else "gpu"

    def knowledge(self, given: Inputs) -> DefenseInputs:
        """Return the inputs of the defense: its declared needs, read from those of the stage."""
        from raysweep.stages.knowledge import defense_inputs

        return defense_inputs(
            given, self.defense, model=self.model, recipe=self.recipe, seed=self.seed,
            attack=self.attack,
        )  # fmt: skip


class _Defending(DefenseWork):
    KIND, VERSION, ORDER = "defend", 1, 60
    PACE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Defend(_Defending):
    """Run a defense, or reduce its shards.

    Attributes:
        run_version: the defense's `RUN_VERSION`, where it is above 1.
    """

    FIXED: ClassVar[Params] = {"part": "run"}

    run_version: int | None = None

    def passes(self, samples: int, num_classes: int) -> float:
        """Return the defense's sample passes; over shards, what is left to do beside them."""
        if self.network is None or self.defense.parts(num_classes):
            return samples
        return self.defense.passes(samples, self.recipe.epochs, num_classes)

    def perform(self, given: Inputs) -> Product:
        """Return the defense's findings, and in place of a scorer the scores of all inputs.

        Raises:
            StageError: if what `run` makes of shards has another version here, or it lacks what the
                defense declares to give.
        """
        from raysweep.stages.content import StoredFindings

        check_version(type(self.defense), "RUN_VERSION", self.run_version or 1)
        found = self.defense.run(self.knowledge(given), given.context)
        _check_gifts(self.defense, found)
        scores = {} if found.score_inputs is None else self._input_scores(given, found)
        return StoredFindings(findings=found, input_scores=scores).packed()

    def _input_scores(self, given: Inputs, found: Findings) -> dict[str, Array]:
        """Return the scores of all inputs; the method cannot tell clean from triggered ones."""
        import torch

        from raysweep.datasets import as_floats
        from raysweep.stages.triggers import Trigger

        score = found.score_inputs
        assert score is not None and self.attack is not None
        data = given.data
        rows = np.arange(len(data.clean)) if found.calibration is None else found.calibration
        test = np.arange(len(data.test))
        triggered = Trigger(self.attack, self.seed, given).test_images
        sets: dict[str, tuple[torch.Tensor, IntArray]] = {
            "reference": (data.clean.images[torch.from_numpy(rows)], rows),
            "clean": (data.test.images, test),
            "triggered": (triggered, test),
        }
        scores: dict[str, Array] = {}
        for name, (images, ids) in sets.items():

            def scored(at: int, images: torch.Tensor = images, ids: IntArray = ids) -> Array:
                cut = slice(at, at + AT_ONCE)
                return score(as_floats(images[cut].to(given.device)), ids[cut])

            starts = range(0, len(images), AT_ONCE)
            parts = given.context.mapped(f"scores {name}", scored, starts)
            scores[name] = np.concatenate(parts).astype(np.float32)
        return scores


def _check_gifts(defense: Defense, found: Findings) -> None:
    """Make sure that `run` returned the scores that the defense declares.

    Raises:
        StageError: if scores are missing, although it asks for no further parts.
    """
    fields = {"train_scores": found.train_scores, "score_inputs": found.score_inputs}
    for gift, name in (("train_scores", "train_scores"), ("input_scores", "score_inputs")):
        if found.enough and gift in defense.gives() and fields[name] is None:
            raise StageError(
                f"defense {defense.name} declares that it gives {gift}, and run returned none; "
                f"return Findings({name}=...), or take {gift} out of gives"
            )


@dataclass(frozen=True, kw_only=True)
class Repair(_Defending):
    """Repair a model after a decision.

    Attributes:
        produced: what the decision produced, so that equal decisions share a repair.
    """

    FIXED: ClassVar[Params] = {"part": "repair"}

    produced: str

    @property
    def resource(self) -> Resource:
        """The class of workers that do the work."""
        return "gpu"

    def perform(self, given: Inputs) -> Product:
        """Return the repaired weights."""
        from raysweep.stages.content import Product
        from raysweep.training import weights

        repaired = self.defense.repair(self.knowledge(given), given.context)
        return Product(arrays=weights.packed(repaired))
