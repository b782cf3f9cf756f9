"""The most memory that a stage held, of its host and of its GPU."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_PEAK = re.compile(r"^VmHWM:\s*(\d+) kB$", re.MULTILINE)


class Peak:
    """The peak of this process's memory since `begin`."""

    def __init__(self) -> None:
        self._known = False
        self._on_gpu = False

    def begin(self, device: str) -> None:
        """Forget the peaks of before.

        Args:
            device: where the stage computes, `cpu` or `cuda`.
        """
        try:
            _RESET.write_bytes(b"5")  # the kernel then sets the peak back to what is held now
            self._known = True
        except OSError:
            self._known = False
        self._on_gpu = device != "cpu" and torch.cuda.is_available()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()

    @property
    def host_bytes(self) -> int | None:
        """The most that the whole process held in memory; None where the system does not tell."""
        found = _PEAK.search(_STATUS.read_text("utf-8", "replace")) if self._known else None
        return int(found[1]) << 10 if found else None

    @property
    def gpu_bytes(self) -> int | None:
        """The most that torch held on the GPU; None for a stage without one."""
        return int(torch.cuda.max_memory_allocated()) if self._on_gpu else None
