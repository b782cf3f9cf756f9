"""Bytes that outlive a process.

store        artifacts by key            manifest  the seal of an artifact
index        manifests in a few files    cache     objects of remote stores, on each host
root         plain files, with patience  files     how a folder keeps them; bucket  any other place
sweepfolder  where all of a sweep lies   ledger    what was handed out, what failed, what grew
heartbeat    what a driver does now      events    the lines of a ledger
liveness     which drivers are alive
"""

from __future__ import annotations

from raysweep.store.manifest import Manifest
from raysweep.store.store import Store

__all__ = ["Manifest", "Store"]
