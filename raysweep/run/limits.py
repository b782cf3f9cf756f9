"""The longest that a stage may run: `resources.limits`, by stage kind or by method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raysweep.errors import SpecError
from raysweep.methods import ROLES
from raysweep.stages.stage import Stage, kinds
from raysweep.sweep.faults import near
from raysweep.sweep.resources import seconds_in
from raysweep.sweep.spec import Sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The longest that a stage may run.

    Attributes:
        name: the stage kind or method whose limit it is.
        seconds: the time, above 0.
        text: the time as the sweep file has it.
    """

    name: str
    seconds: float
    text: str

    @property
    def exceeded(self) -> str:
        """The error of a stage that ran longer."""
        return (
            f"TimeLimit: the stage ran longer than {self.text} (resources.limits.{self.name}), and "
            f"its process was ended; raise the limit, or make the stage shorter"
        )


def limits_of(sweep: Sweep) -> Callable[[Stage], Limit | None]:
    """Return a function from a stage to its limit; a method's stands before its kind's.

    Raises:
        SpecError: if a limit is neither of a stage kind nor of a method of the sweep.
    """
    methods = [method.name for role in ROLES for method in getattr(sweep, role)]
    known = {}
    for name, value in sweep.resources.limits.items():
        if name not in (*kinds(), *methods):
            raise SpecError(
                f"resources.limits.{name}: must be a stage kind ({', '.join(kinds())}) or a method "
                f"of sweep {sweep.name}; {near(name, dict.fromkeys((*kinds(), *methods)))}"
            )
        text = value if isinstance(value, str) else f"{value:g} s"
        known[name] = Limit(name=name, seconds=seconds_in(value), text=text)
    return lambda stage: known.get(stage.method) or known.get(stage.kind)
