"""Bytes that outlive a process.

store        artifacts by key            manifest  the seal of an artifact
files        a folder or a bucket        ledger    what was handed out, what failed, what grew
sweepfolder  where all of a sweep lies   events    the lines of a ledger
"""

from __future__ import annotations

from raysweep.store.manifest import Manifest
from raysweep.store.store import Store

__all__ = ["Manifest", "Store"]
