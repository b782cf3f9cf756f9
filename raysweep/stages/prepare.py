"""Decode and cut a dataset, or prepare an attack: once for all trials and rates that share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from raysweep.attacks import Attack, AttackInputs
from raysweep.datasets import Dataset, ImageSet, Shape
from raysweep.errors import FilesError, PlanError
from raysweep.methods import Recipe
from raysweep.models import Model
from raysweep.stages.stage import Resource, Unseen, Work, rates

if TYPE_CHECKING:
    from raysweep.stages.content import Product
    from raysweep.stages.inputs import Inputs


class _Preparation(Work):
    KIND, VERSION, ORDER = "prepare", 3, 10
    LONG, PACE = True, 1e-4


@dataclass(frozen=True, kw_only=True)
class Decode(_Preparation):
    """Decode a dataset's files and cut them into training, clean and evaluation set.

    Attributes:
        dataset: what to decode.
        source: digest of the files that the plan was made with.
        labels: digest of the training labels, where a share of them is changed or left out.
    """

    dataset: Dataset
    source: str
    labels: str | None = None

    def perform(self, given: Inputs) -> Product:
        """Return the decoded dataset.

        Raises:
            FilesError: if the files of this host cannot be read, are others than planned, or do
                not fit together.
        """
        from raysweep.stages.content import Data

        del given
        try:
            labels = self.dataset.checked_labels()
            self.dataset.check_source(labels, self.source)
            rows_train, rows_clean, rows_test = self.dataset.kept(labels)
            train_all, test_all = self.dataset.checked_images(labels)
        except PlanError as error:
            raise FilesError(str(error)) from error  # this is no fault of the plan any more
        train = ImageSet(
            images=train_all.take(rows_train).images,
            labels=self.dataset.training_labels(labels, rows_train),
        )
        return Data(
            train=train,
            clean=test_all.take(rows_clean),
            test=test_all.take(rows_test),
            train_rows=rows_train,
            test_rows=rows_test,
            shape=Shape.of(train.images, len(labels.classes)),
            classes=tuple(labels.classes),
        ).packed()


@dataclass(frozen=True, kw_only=True)
class Prepare(_Preparation):
    """Make what an attack needs at every rate: generators, encoders, changed images.

    Attributes:
        attack: the attack, without its rates.
        model: the architecture of victims.
        recipe: how victims are trained.
        seed: of the trial.
    """

    WITHOUT: ClassVar[Unseen] = {"attack": rates}

    attack: Attack
    model: Model
    recipe: Recipe
    seed: int

    @property
    def resource(self) -> Resource:
        """The class of workers that do the work."""
        return "gpu"

    def passes(self, samples: int, num_classes: int) -> float:
        """Return about as many sample passes as a training of the victim takes."""
        del num_classes
        return self.recipe.epochs * samples

    def perform(self, given: Inputs) -> Product:
        """Return the arrays that the attack's `stamp` and `choose` are given."""
        from raysweep.stages.content import Product

        data = given.data
        declared: dict[str, Any] = {
            role: given.network(self.model, role)
            for role in ("surrogate", "victim")
            if role in given.keys
        }
        if self.attack.EVADES:
            declared |= {"test": data.test, "test_rows": data.test_rows}
        inputs = AttackInputs(
            data=data.train, rows=data.train_rows, shape=data.shape,
            model=self.model, recipe=self.recipe, **declared,
        )  # fmt: skip
        artifact = dict(self.attack.prepare(inputs, given.context))
        facts = dict(self.attack.facts(inputs, artifact))
        return Product(arrays=artifact, outcome={"facts": facts} if facts else {})
