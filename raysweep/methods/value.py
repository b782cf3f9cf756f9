"""The base of everything that a user writes into a sweep file: frozen, strict, nothing unknown."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A part of a sweep file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
