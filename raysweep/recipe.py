"""How a model is trained: a typed value that is part of the identity of every training."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

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
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="SGD is with Nesterov momentum")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum, or Adam's beta 1")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty, decoupled for neither")
    schedule: Literal["constant", "cosine", "one_cycle", "multistep"] = Field(
        "one_cycle",
        description="one_cycle: linear up over 20 % of the steps, then linear to 0; "
        "multistep: divided by 10 at 50 % and 75 %",
    )
    augment: tuple[Augmentation, ...] = Field((), description="batched augmentations, in order")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="autocast precision; auto: bfloat16 where the planned device has it"
    )
    threads: int = Field(1, ge=1, le=256, description="CPU threads of a stage; changes bytes")
