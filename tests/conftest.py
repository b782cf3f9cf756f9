"""What all tests share: one thread for each, Ray without tokens, both answers to `precision: auto`.

Small tensors gain nothing from two threads, and lose much on busy cores. Ray reads its way of
authentication once a process, whatever the environment says later.
"""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
os.environ["RAY_AUTH_MODE"] = "disabled"


@pytest.fixture(params=["float32", "bfloat16"])
def auto(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `precision: auto` stands for, both answers: no test may depend on which CPU runs it."""
    monkeypatch.setenv("RAYSWEEP_PRECISION", request.param)
    return str(request.param)
