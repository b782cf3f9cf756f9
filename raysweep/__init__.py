"""Sweeps over backdoor attacks and defenses: plan once, share everything, report honestly.

    import raysweep

    done = raysweep.launch("sweep.yaml")     # or a raysweep.Sweep; the command `raysweep launch`
    done.rows                                # one row per trial, a pandas DataFrame
    raysweep.load("badnets-study")           # the same rows, in any later session

Sweep        a sweep as a value              load         the records of a sweep
launch       run what is missing of it       load_tuned   the table of a tuning run
tune         search better parameters        report       write the HTML page again
compare      what changed between two sweeps

The base classes of own methods are in `raysweep.attacks`, `raysweep.defenses`, `raysweep.datasets`
and `raysweep.models`; the tests that own methods inherit are in `raysweep.testing`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysweep.jobs.api import launch, report, tune
    from raysweep.jobs.compare import compare
    from raysweep.results.records import load, load_tuned
    from raysweep.sweep.spec import Sweep

__version__ = "0.1.0"
__all__ = ["Sweep", "compare", "launch", "load", "load_tuned", "report", "tune"]

_HOMES = {
    "Sweep": "raysweep.sweep.spec",
    "compare": "raysweep.jobs.compare",
    "launch": "raysweep.jobs.api",
    "load": "raysweep.results.records",
    "load_tuned": "raysweep.results.records",
    "report": "raysweep.jobs.api",
    "tune": "raysweep.jobs.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `import raysweep` alone imports nothing large."""
    if name not in _HOMES:
        raise AttributeError(f"module 'raysweep' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    """Return the public names, imported or not, as completion shows them."""
    return sorted([*__all__, "__version__"])
