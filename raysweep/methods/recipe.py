"""The training recipe: a typed value that is part of the identity of every training."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from raysweep.errors import SpecError

Augmentation = Literal["crop", "flip", "rotate", "cutout"]


class Recipe(BaseModel):
    """One training recipe; the defaults train a small network in seconds.

    `precision: auto` is resolved when the sweep is planned, since it changes bytes.
    `crop` pads by an eighth of the side and crops back; `rotate` turns by up to 15 degrees;
    `cutout` blanks one square of a quarter of the side. All are drawn per image and per epoch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    epochs: int = Field(10, ge=0, le=10_000, description="passes over the training set")
    batch_size: int = Field(128, ge=1, le=65_536, description="images per step")
    learning_rate: float = Field(0.1, gt=0, le=100, description="peak learning rate")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="see momentum, nesterov")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum, or Adam's beta 1")
    nesterov: bool = Field(True, description="whether SGD's momentum is Nesterov's")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty, decoupled for neither")
    schedule: Literal["constant", "cosine", "one_cycle", "multistep"] = Field(
        "one_cycle",
        description="one_cycle: linear up over 20 % of the steps, then linear to 0; "
        "multistep: divided by 10 at each milestone",
    )
    milestones: tuple[float, ...] = Field(
        (0.5, 0.75), description="multistep's, as fractions of the training in (0, 1)"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share spread over all classes, where the loss is plain"
    )
    augment: tuple[Augmentation, ...] = Field((), description="batched augmentations, in order")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="autocast precision; auto: RAYSWEEP_PRECISION if set, else bfloat16 where the "
        "planned device has it",
    )
    threads: int = Field(1, ge=1, le=256, description="CPU threads of a stage; changes bytes")

    @field_validator("milestones")
    @classmethod
    def _inside(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < fraction < 1 for fraction in value):
            raise ValueError("must be fractions of the training, each above 0 and below 1")
        return value


# What the literature trains with, by name; a sweep file says `recipe: fast`, or changes one:
# `recipe: {base: ct, epochs: 20}`.
RECIPES: Mapping[str, Recipe] = {
    "fast": Recipe(
        epochs=24, batch_size=128, learning_rate=0.2, schedule="one_cycle", augment=("crop", "flip")
    ),
    # Confusion Training, Qi et al., USENIX Security 2023: victims on CIFAR-10, and on GTSRB.
    "ct": Recipe(
        epochs=100, batch_size=128, learning_rate=0.1, nesterov=False, weight_decay=1e-4,
        schedule="multistep", augment=("crop", "flip"),
    ),
    "ct_gtsrb": Recipe(
        epochs=100, batch_size=128, learning_rate=0.01, nesterov=False, weight_decay=1e-4,
        schedule="multistep", milestones=(0.3, 0.6), augment=("rotate",),
    ),
    # Anti-Backdoor Learning, Li et al., NeurIPS 2021.
    "abl": Recipe(
        epochs=100, batch_size=128, learning_rate=0.1, weight_decay=1e-4,
        schedule="multistep", milestones=(0.2, 0.7), augment=("crop", "flip", "cutout"),
    ),
    # RED, Xiang et al., Computers & Security 2021: the authors' released script, RE-paper.
    "red": Recipe(
        epochs=100, batch_size=32, learning_rate=1e-3, optimizer="adam", weight_decay=0.0,
        schedule="constant", augment=(),
    ),
    # Datamodels, Ilyas et al., ICML 2022, arXiv:2202.00622: many fast trainings. Their code shifts
    # by 2 pixels, `crop` by 4; it blanks squares of 4 pixels, which `cutout` does not offer, and
    # fills what both uncover with gray.
    "datamodel": Recipe(
        epochs=24, batch_size=512, learning_rate=0.5, nesterov=False, weight_decay=5e-4,
        schedule="one_cycle", augment=("crop", "flip"), label_smoothing=0.1,
    ),
}  # fmt: skip


def resolved(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe, given by name, as a `base` with changes, or in full.

    Raises:
        SpecError: if there is no recipe of that name.
    """
    values = {"base": given} if isinstance(given, str) else dict(given)
    if "base" not in values:
        return values
    name = values.pop("base")
    if not isinstance(name, str) or name not in RECIPES:
        near = difflib.get_close_matches(str(name), RECIPES, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SpecError(f"unknown recipe {name!r}{hint} (known: {', '.join(RECIPES)})")
    return {**RECIPES[name].model_dump(mode="json"), **values}
