"""Stages that are done again although they are stored: `--force train`, `--force badnets`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raysweep.errors import SpecError
from raysweep.methods import ROLES
from raysweep.stages.stage import Stage, kinds
from raysweep.sweep.faults import near
from raysweep.sweep.spec import Sweep


def forcing(words: Sequence[str], sweep: Sweep) -> Callable[[Stage], bool]:
    """Return whether a stage is of one of the kinds, or the work of one of the methods, named.

    Args:
        words: stage kinds and names of methods.
        sweep: its methods can be named.

    Raises:
        SpecError: if a word is neither a stage kind nor a method of the sweep.
    """
    known = (*kinds(), *(method.name for role in ROLES for method in getattr(sweep, role)))
    for word in words:
        if word not in known:
            raise SpecError(
                f"--force {word}: must be a stage kind ({', '.join(kinds())}) or a method of "
                f"sweep {sweep.name}; {near(word, dict.fromkeys(known))}"
            )
    return lambda stage: stage.kind in words or stage.method in words
