"""Hand-made plans: stages whose work is a name, for tests of what schedules them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from raysweep.stages.stage import Resource, Stage, Work


class _Named(Work):
    VERSION: ClassVar[int] = 1
    ORDER: ClassVar[int] = 0


@cache
def kind(name: str) -> type[Work]:
    """Return a stage kind whose work has a name and a resource, and is never done here."""

    @dataclass(frozen=True, kw_only=True)
    class _Work(_Named):
        KIND: ClassVar[str] = name
        GROWS: ClassVar[bool] = name == "decide"
        GROWN: ClassVar[bool] = name == "train"

        label: str
        wanted: str = "cpu"

        def params(self, identify: Any = None) -> dict[str, Any]:
            return {"name": self.label}

        @property
        def resource(self) -> Resource:
            return "gpu" if self.wanted == "gpu" else "cpu"

        def perform(self, given: Any) -> Any:
            raise NotImplementedError

    return _Work


def stage(of_kind: str, name: str, inputs: Mapping[str, str], resource: str = "cpu") -> Stage:
    """Return a stage of some kind, told from others by its name and what it reads."""
    return Stage.of(kind(of_kind)(label=name, wanted=resource), inputs)  # type: ignore[call-arg]


@dataclass(frozen=True)
class Line:
    """A route of any stages."""

    keys: tuple[str, ...]
    waiting: str | None = None
    evaluate: str | None = None
