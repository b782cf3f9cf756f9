"""The table of all measurements so far."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MOST_LINES = 60
WIDTH = 190  # 60 lines of it stay below the 12,000 characters that a lent machine may give back.


def read(lines: Path) -> list[dict[str, Any]]:
    """Return the measurements of a file; a line that a kill cut is left out."""
    found = []
    for line in lines.read_text().splitlines() if lines.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def table(notes: list[dict[str, Any]]) -> str:
    """Return at most 60 lines: one per step and subject, with its values side by side."""
    rows: dict[tuple[int, str], list[str]] = {}
    for note in notes:
        if note["shown"]:
            value = note["value"]
            text = f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else f"{value}"
            if isinstance(value, float) and abs(value) >= 1e4:
                text = f"{value:,.0f}"
            unit = f" {note['unit']}" if note["unit"] else ""
            rows.setdefault((note["step"], note["subject"]), []).append(
                f"{note['what']} {text}{unit}".strip()
            )
    lines = [f"{step} {subject}: {' | '.join(values)}" for (step, subject), values in rows.items()]
    lines = [line if len(line) <= WIDTH else line[: WIDTH - 3] + "..." for line in lines]
    most = MOST_LINES - 3
    if len(lines) > most:
        left_out = len(lines) - most
        lines = [f"({left_out} earlier rows are in device.jsonl)", *lines[left_out:]]
    card = notes[-1]["card"] if notes else ""
    return "\n".join([f"=== {card} ===", *lines, "=" * 20])
