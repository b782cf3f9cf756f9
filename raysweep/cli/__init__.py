"""The command line."""

from __future__ import annotations

from raysweep.cli.app import app, main

__all__ = ["app", "main"]
