"""What all tests share: one thread for each, and both answers to `precision: auto`.

Small tensors gain nothing from two threads, and lose much on busy cores.
"""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported


@pytest.fixture(params=["float32", "bfloat16"])
def auto(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `precision: auto` stands for, both answers: no test may depend on which CPU runs it."""
    monkeypatch.setenv("RAYSWEEP_PRECISION", request.param)
    return str(request.param)
