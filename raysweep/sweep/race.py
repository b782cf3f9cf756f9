"""The rules of a race: `seeds: {max: 20, until: separated}` in a sweep file."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from raysweep.methods.value import Value

MOST_SEEDS = 200


class Race(Value):
    """Seeds are spent only where defenses are not separated yet, within one attack at one rate.

    All defenses are given the first seeds; then, seed by seed, those that may still be told apart
    from another one. How it is judged: `raysweep.metrics.race`.
    """

    min: int = Field(3, ge=1, description="seeds that every defense is given")
    max: int = Field(ge=2, le=MOST_SEEDS, description="the most seeds of a defense")
    until: Literal["separated"] = Field(description="what ends a race before its last seed")
    metric: Literal["asr", "ca", "ra", "tpr", "fpr", "auroc"] = Field(
        "asr", description="in which two defenses are to be separated"
    )
    false_separations: float = Field(
        0.05, ge=1e-6, lt=1,
        description="the most that the chance may be that any pair of the sweep is called "
        "separated although neither is better",
    )  # fmt: skip

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min must be at most max, got min {self.min} and max {self.max}")
        return self
