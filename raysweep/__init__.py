"""Sweeps over backdoor attacks and defenses: plan once, share everything, report honestly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysweep.results.records import load
    from raysweep.sweep.spec import Sweep

__version__ = "0.1.0"
__all__ = ["Sweep", "load"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that `raysweep --help` stays fast."""
    if name == "load":
        from raysweep.results.records import load

        return load
    if name == "Sweep":
        from raysweep.sweep.spec import Sweep

        return Sweep
    raise AttributeError(f"module 'raysweep' has no attribute {name!r}")
