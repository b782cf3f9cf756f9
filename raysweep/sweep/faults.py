"""A fault of a sweep file, said as a rule and a remedy."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

SHOWN = 80  # characters of a value


def line_in(file: Path, error: BaseException) -> int:
    """Return the line of a Python sweep file in which an error arose, else 1."""
    if isinstance(error, SyntaxError) and error.lineno:
        return error.lineno
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    return (frames[-1].lineno or 1) if frames else 1


def python_faults(file: Path, error: ValidationError) -> Iterator[str]:
    """Yield `file:line: field: rule, got value` for each fault of a Python sweep file."""
    line = line_in(file, error)
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        yield f"{file}:{line}: {error.title}.{where}: {rule(fault)}, got {short(fault['input'])}"


def short(value: Any) -> str:
    """Return the text of a value; of a long value the first 79 characters and `…`."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def rule(fault: Any) -> str:
    """Return the rule that a pydantic fault breaks, such as `must be at least 1`."""
    kind, context = fault["type"], fault.get("ctx", {})
    signs = {
        "greater_than": ("gt", "more than"),
        "greater_than_equal": ("ge", "at least"),
        "less_than": ("lt", "less than"),
        "less_than_equal": ("le", "at most"),
    }
    if kind in signs:
        name, words = signs[kind]
        bound = context[name]
        return f"must be {words} {bound if isinstance(bound, int) else f'{bound:g}'}"
    if kind == "missing":
        return "must be given"
    if kind == "literal_error":
        return f"must be {context['expected']}"
    if kind == "string_pattern_mismatch":
        return "must be 1 to 64 letters, digits, '_', '-' or '.', beginning with a letter or digit"
    if kind == "value_error":
        return str(context.get("error", fault["msg"]))
    if kind in ("float_parsing", "float_type") and str(fault["input"]).strip().endswith("%"):
        return "must be a number, a fraction in place of a percentage (5 % is 0.05)"
    return str(fault["msg"]).replace("Input should", "must")


def near(word: Any, known: Iterable[str]) -> str:
    """Return a hint at the nearest known word, else the list of all."""
    words = list(known)
    close = difflib.get_close_matches(str(word), words, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"one of {', '.join(words)}"
