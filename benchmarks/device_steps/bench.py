"""What every step is given: a device, a clock, and a place for its measurements."""

from __future__ import annotations

import json
import os
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

Size = TypeVar("Size")
Value = float | int | str | bool


@dataclass
class Bench:
    """The surroundings of one step.

    Attributes:
        step: its number.
        device: `cuda`, or `cpu` for a dry run at toy size.
        card: name of the GPU, or `cpu`.
        lines: the file of measurements, one JSON object a line.
        until: the monotonic time at which the step must be over.
    """

    step: int
    device: str
    card: str
    lines: Path
    until: float
    since: float = field(default_factory=time.monotonic)

    @property
    def cuda(self) -> bool:
        """Whether this is no dry run."""
        return self.device == "cuda"

    @property
    def left(self) -> float:
        """The seconds that are left to the step."""
        return self.until - time.monotonic()

    def pick(self, card: Size, toy: Size) -> Size:
        """Return the size for a card, or the one for a dry run."""
        return card if self.cuda else toy

    def note(
        self, subject: str, what: str, value: Value, unit: str = "", *, shown: bool = True
    ) -> None:
        """Write one measurement to the disk.

        Args:
            subject: the row of the table.
            what: is measured; names the value in the row.
            value: of it.
            unit: of the value.
            shown: in the table too.
        """
        now = time.monotonic()
        line = {
            "step": self.step,
            "subject": subject,
            "what": what,
            "value": value,
            "unit": unit,
            "seconds": round(now - self.since, 3),
            "card": self.card,
            "shown": shown,
        }
        self.since = now
        with self.lines.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def attempt(self, subject: str, run: Callable[[], object], needs: float = 0.0) -> None:
        """Run one part of the step: a failure, or `needs` seconds that are not left, are noted."""
        if self.cuda and self.left < needs:  # A dry run shows that everything runs.
            self.note(subject, "left out", f"{self.left:.0f} s left, it needs {needs:.0f} s")
            return
        try:
            run()
        except Exception as error:  # noqa: BLE001  the other parts are still worth measuring
            traceback.print_exc()
            self.note(subject, "FAILED", last_line(error))
        if self.cuda and torch.cuda.is_initialized():
            self.attempt_to_free()

    def attempt_to_free(self) -> None:
        """Give memory back to the driver, if the context still works."""
        try:
            torch.cuda.empty_cache()
        except Exception as error:  # noqa: BLE001
            self.note("memory", "FAILED", last_line(error))

    def wait(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        """Return the seconds of a run, the device's work included."""
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def median(self, run: Callable[[], object], times: int) -> float:
        """Return the median seconds of several runs after one that warms up."""
        run()
        return statistics.median(self.seconds(run) for _ in range(times))

    def peak(self, run: Callable[[], object]) -> float:
        """Return the MB (10^6) of GPU memory that a run needs at most; 0 on a CPU."""
        if not self.cuda:
            run()
            return 0.0
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() / 1e6


def last_line(error: BaseException) -> str:
    """Return an error's type, its message's first line, and the line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    own = [f for f in frames if "/raysweep/" in f.filename and "site-packages" not in f.filename]
    if own:
        at = f" at {Path(own[-1].filename).name}:{own[-1].lineno}"
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:160]}{at}"
