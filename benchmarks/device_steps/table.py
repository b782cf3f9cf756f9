"""The table of all measurements so far."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MOST_LINES = 60
MOST_CHARACTERS = 11_500  # A lent machine may give back the last 12,000 alone.
WIDTH = 220
SECONDS = "seconds"  # The subject of how long each step took: one line for all.


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
            values = rows.setdefault((note["step"], note["subject"]), [])
            values.append(f"{note['what']} {_text(note['value'])} {note['unit']}".strip())
    seconds = [
        value for (_, subject), values in rows.items() if subject == SECONDS for value in values
    ]
    lines = [
        f"{step} {subject}: {' | '.join(values)}"
        for (step, subject), values in rows.items()
        if subject != SECONDS
    ]
    lines = [line if len(line) <= WIDTH else line[: WIDTH - 3] + "..." for line in lines]
    card = notes[-1]["card"] if notes else ""
    ends = [f"=== {card} ===", f"seconds: {', '.join(seconds)}", "=" * 20]
    left_out = 0
    while _too_much([*ends, *lines[left_out:]]):
        left_out += 1
    if left_out:
        lines = [f"({left_out} earlier rows are in device.jsonl)", *lines[left_out:]]
    return "\n".join([*ends[:2], *lines, ends[2]])


def _text(value: float | int | str | bool) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _too_much(lines: list[str]) -> bool:
    return len(lines) >= MOST_LINES or sum(len(line) + 1 for line in lines) > MOST_CHARACTERS
