"""One thread for each test: small tensors gain nothing from two, and lose much on busy cores."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported
