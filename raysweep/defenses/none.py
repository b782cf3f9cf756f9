"""No defense: the control that evaluates the victim as it is.

Where we differ: not a published method.
"""

from __future__ import annotations

from raysweep.defenses import Defense, Need


class NoDefense(Defense):
    """Knows nothing and gives nothing."""

    def needs(self) -> frozenset[Need]:
        """Return nothing."""
        return frozenset()
