"""Attacks: the training samples that are stamped, their triggers and their labels.

The plan runs an attack in up to three steps, each a stage or part of one:

1. `prepare` (optional, `PREPARES`): generators, encoders, perturbed images; keyed without the
   rate, so that every rate shares it. With `SURROGATE` it is given a network trained on the clean
   training set, which is a stage that all such attacks share.
2. `choose` → `stamp` → `relabel`: the poisoned training set, once, as an artifact.
3. `stamp(part="test")`, `relabel`, `eligible`: the triggered test inputs, the labels of success.

An attack that controls the training itself (`TRAINS`) gives the victim and the artifact that its
`stamp` uses; it has no poisoned set, and the plan refuses training-set filters against it.

An attack that evades (`EVADES`) changes no training data: its rate is 0, its victim is the clean
model that every attack shares at rate 0, and its `prepare` is given that victim and the test
inputs. It prepares changed test inputs, which its `stamp` looks up by their ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from raysweep.attacks._inputs import AttackInputs as AttackInputs
from raysweep.attacks._inputs import Planned as Planned
from raysweep.counts import count_of, least_share, most_share
from raysweep.datasets import Domain, ImageSet, IntArray, Shape
from raysweep.errors import PlanError
from raysweep.methods import Method
from raysweep.methods.context import Arrays, Context
from raysweep.methods.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from raysweep.models import Model

Part = Literal["poison", "cover", "test"]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The numbers of training samples that an attack poisons and makes covers of."""

    poison: int
    cover: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Row numbers of the poisoned and of the cover samples, sorted, disjoint."""

    poison: IntArray
    cover: IntArray

    @property
    def counts(self) -> Counts:
        """The number of rows of each part."""
        return Counts(poison=len(self.poison), cover=len(self.cover))


@dataclass(frozen=True, kw_only=True)
class Victim:
    """The victim of an attack that trains it itself, and the artifact that `stamp` uses."""

    state: dict[str, torch.Tensor]
    artifact: Arrays


class Origin(NamedTuple):
    """The name and the rates of an attack, as whoever made it calls them."""

    attack: str
    rate: float
    cover_rate: float


class Attack(Method):
    """A backdoor attack, or an evasion. Poisoned samples replace their originals.

    `rate` is stamped images over the whole training set (clean-label attacks too). With rate 0
    nothing is stamped, no cover either, and the victim is the clean model: its ASR is the floor of
    the trigger. An evasion (`EVADES`) has no other rate; `target`, `label_map` and `sources` say
    which class each test input is to be given.

    Only `counts` and `brings_victim`, which the plan calls, and `train` may read `rate` and
    `cover_rate`. The key of every other stage holds the realized counts, or neither: an attack at
    work there has no rate, and reading one is an error.

    Class variables:
        FAMILY: of attacks with the same kind of trigger, which tuning holds out together; "": its
            own name.
    """

    rate: float = Field(0.05, ge=0, le=1, description="poisoned images / training images")
    cover_rate: float = Field(
        0.0, ge=0, le=1, description="cover images (stamped, label kept) / training images"
    )
    target: int = Field(0, ge=0, description="class that triggered inputs are to be given")
    label_map: Literal["all_to_one", "all_to_all"] = Field(
        "all_to_one", description="all_to_all maps class y to y + 1 (mod K)"
    )
    sources: tuple[int, ...] | None = Field(
        None, description="classes that are poisoned and attacked; none: all"
    )
    include_target: bool = Field(
        True, description="whether images that already have their mapped label may be poisoned"
    )

    INSTEAD: ClassVar[Mapping[str, str]] = {
        "rate": "counts.poison, the realized count, which `choose` is given",
        "cover_rate": "counts.cover, the realized count, which `choose` is given",
    }
    FAMILY: ClassVar[str] = ""
    CLEAN_LABEL: ClassVar[bool] = False
    DOMAINS: ClassVar[tuple[Domain, ...]] = ("images",)
    PREPARES: ClassVar[bool] = False
    SURROGATE: ClassVar[bool] = False
    TRAINS: ClassVar[bool] = False
    EVADES: ClassVar[bool] = False

    def origin(self) -> Origin:
        """Return the name and the rates that other projects are told."""
        return Origin(self.name, self.rate, self.cover_rate)

    @property
    def family(self) -> str:
        """The family of attacks that this one is a form of, by its trigger; else its name."""
        return self.FAMILY or self.name

    def brings_victim(self) -> bool:
        """Return whether `prepare` gives the victim's weights, as arrays `model.*`."""
        return False

    @model_validator(mode="after")
    def _can_be_combined(self) -> Self:
        for field in ("rate", "cover_rate"):
            if self.EVADES and getattr(self, field):
                raise ValueError(
                    f"{field} must be 0, got {getattr(self, field):g}: {self.name} changes test "
                    f"inputs and no training data; leave {field} out"
                )
        if self.CLEAN_LABEL and self.label_map != "all_to_one":
            raise ValueError(
                f"label_map must be all_to_one, got {self.label_map}: {self.name} poisons images "
                f"of one class and keeps their labels"
            )
        if self.CLEAN_LABEL and not self.include_target:
            raise ValueError(
                f"include_target must be true, got false: {self.name} poisons images of the target "
                f"class only"
            )
        maps_to_itself = self.label_map == "all_to_one" and set(self.sources or ()) <= {self.target}
        if self.sources is not None and (not self.sources or maps_to_itself):
            raise ValueError(
                f"sources must name a class other than target, got {list(self.sources)} with "
                f"target {self.target}; leave sources out to attack all classes"
            )
        return self

    def check(self, planned: Planned) -> None:
        """Make sure that a dataset can be attacked, as far as a plan can tell.

        Here an image is stamped, unless the trigger is only known when it was prepared.

        Raises:
            ValueError: if it cannot.
        """
        if not (self.PREPARES or self.TRAINS or self.EVADES):
            self.stamp_one(planned.shape)

    def stamp_one(self, shape: Shape) -> None:
        """Stamp a black test image of a shape, with nothing that was prepared.

        Raises:
            ValueError: if the trigger does not fit.
        """
        import torch

        image = torch.zeros(1, shape.channels, shape.height, shape.width)
        self.stamp(image, ids=np.zeros(1, np.int64), part="test", artifact={}, seed=0)

    def prepare(self, inputs: AttackInputs, ctx: Context) -> Arrays:
        """Return the arrays that `choose` and `stamp` will be given; only if `PREPARES`."""
        raise NotImplementedError(f"{self.name} declares PREPARES but defines no prepare")

    def facts(self, inputs: AttackInputs, artifact: Arrays) -> Mapping[str, float]:
        """Return named numbers about what was prepared, shown in the report; here none."""
        del inputs, artifact
        return {}

    def train(
        self, data: ImageSet, model: Model, shape: Shape, recipe: Recipe, ctx: Context
    ) -> Victim:
        """Train the victim; only if `TRAINS`."""
        raise NotImplementedError(f"{self.name} declares TRAINS but defines no train")

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Return triggered copies of float images in [0, 1] (or feature vectors); pure.

        Args:
            images_BCHW: the images.
            ids: (B,) row numbers in the training set, or in the test files for `test`. A
                sample-specific trigger derives its randomness from (seed, part, id) alone, so
                that the way a set is cut into batches does not matter.
            part: `poison` and `cover` are stamped into the training set, `test` at test time.
            artifact: the arrays that `prepare` or `train` gave, else empty.
            seed: root of the attack's random streams in this trial; the same for all parts.
        """
        raise NotImplementedError(f"{self.name} defines no stamp")

    def triggers(self, ids: IntArray, artifact: Arrays) -> NDArray[np.bool_]:
        """Return a mask (B,) of the test inputs that `stamp` has a triggered form of; here all.

        The evaluation refuses an attack that lacks a form of an input that the ASR counts.
        """
        del artifact
        return np.ones(len(ids), bool)

    def relabel(self, labels: IntArray, num_classes: int) -> IntArray:
        """Return the labels that the attacker wants for triggered inputs of these classes."""
        if self.label_map == "all_to_all":
            return (labels + 1) % num_classes
        return np.full_like(labels, self.target)

    def pool(self, labels: IntArray, num_classes: int) -> NDArray[np.bool_]:
        """Return a mask (N,) of the training samples that may be poisoned."""
        if self.CLEAN_LABEL:
            return np.equal(labels, self.target)
        allowed = np.ones(len(labels), bool)
        if self.sources is not None:
            allowed &= np.isin(labels, self.sources)
        if not self.include_target:
            allowed &= labels != self.relabel(labels, num_classes)
        return allowed

    def cover_pool(self, labels: IntArray, num_classes: int) -> NDArray[np.bool_]:
        """Return a mask (N,) of the training samples that may be covers if not poisoned."""
        del num_classes
        return np.ones(len(labels), bool)

    def counts(self, labels: IntArray, num_classes: int) -> Counts:
        """Return the realized counts, without choosing.

        Raises:
            PlanError: if a class does not exist, or a rate asks for more than its pool holds, or
                comes to no image at all.
        """
        named = [("target", self.target), *(("sources", s) for s in self.sources or ())]
        for field, label in named:
            if label >= num_classes:
                raise PlanError(
                    f"attack {self.name}: {field} must be a class from 0 to {num_classes - 1}, "
                    f"got {label}"
                )
        counts = Counts(
            poison=self._count("rate", "poisoned", len(labels)),
            cover=self._count("cover_rate", "cover", len(labels)) if self.rate > 0 else 0,
        )
        poisonable = self.pool(labels, num_classes)
        pool = int(poisonable.sum())
        if counts.poison > pool:
            raise PlanError(
                f"attack {self.name}: rate {self.rate:g} asks for {counts.poison} poisoned images "
                f"of {len(labels)}, but only {pool} may be poisoned; "
                f"the rate can be at most {most_share(pool, len(labels))}"
            )
        coverable = self.cover_pool(labels, num_classes)
        shared = max(int((coverable & poisonable).sum()) - counts.poison, 0)
        left = int((coverable & ~poisonable).sum()) + shared
        if counts.cover > left:
            raise PlanError(
                f"attack {self.name}: cover_rate {self.cover_rate:g} asks for {counts.cover} of "
                f"{len(labels)} images, but beside the poison only {left} may be covers; lower "
                f"rate or cover_rate"
            )
        return counts

    def caution(self, labels: IntArray, num_classes: int) -> str:
        """Return a sentence on what is doubtful in these parameters, which a plan shows; or ""."""
        counts = self.counts(labels, num_classes)
        pool = int(self.pool(labels, num_classes).sum())
        if 2 * counts.poison <= pool:
            return ""
        return (
            f"rate {self.rate:g} poisons {counts.poison} of the {pool} images that may be poisoned,"
            f" more than half; what is poison and what is a normal image of these classes is no"
            f" longer clear. At rate {most_share(pool // 2, len(labels))} it is half"
        )

    def _count(self, field: str, what: str, total: int) -> int:
        rate = getattr(self, field)
        count = count_of(rate, total)
        if rate > 0 and not count:
            raise PlanError(
                f"attack {self.name}: {field} {rate:g} of {total} training images comes to no "
                f"{what} image; give at least {least_share(1, total)}, or 0"
            )
        return count

    def choose(
        self,
        labels: IntArray,
        num_classes: int,
        counts: Counts,
        artifact: Arrays,
        generator: np.random.Generator,
    ) -> Choice:
        """Draw the poisoned samples from the pool and the covers from the rest.

        The poisoned samples of a smaller count are a part of those of a larger one.

        Args:
            labels: (N,) the true labels of the training set.
            num_classes: the number of classes.
            counts: how many to choose, as `counts` realized them for these labels.
            artifact: the arrays that `prepare` gave, else empty.
            generator: the source of all randomness.
        """
        order = generator.permutation(len(labels))
        poison = order[self.pool(labels, num_classes)[order]][: counts.poison]
        rest = order[~np.isin(order, poison) & self.cover_pool(labels, num_classes)[order]]
        cover = rest[len(rest) - counts.cover :]
        return Choice(poison=np.sort(poison), cover=np.sort(cover))

    def eligible(self, labels: IntArray, num_classes: int) -> NDArray[np.bool_]:
        """Return a mask of the test inputs that the ASR counts: attacked, not yet mapped."""
        attacked = np.not_equal(labels, self.relabel(labels, num_classes))
        if self.sources is not None:
            attacked &= np.isin(labels, self.sources)
        return attacked
