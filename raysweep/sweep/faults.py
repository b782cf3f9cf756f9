"""A fault of a sweep file, said as a rule and a remedy."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

SHOWN = 80  # characters of a value
_RANGE = frozenset(("min", "max", "value", "values", "distribution", "q", "step"))
_BOOLEANS = {
    word: value
    for value, words in (("true", "true yes on y"), ("false", "false no off n"))
    for word in words.split()
}


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


def one_line(text: str) -> str:
    """Return a text on one line: signs that are not shown, ends of lines too, are escaped."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text
    )


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
    if kind == "too_short":
        return "must hold at least one value"
    if kind in ("tuple_type", "list_type"):
        return f"must be a list, such as [{short(fault['input'])}]"
    told = str(fault["msg"]).replace("Input should", "must")
    hint = _slip(kind, fault["input"], str(fault["loc"][-1]) if fault["loc"] else "")
    return f"{told}: {hint}" if hint else told


def _slip(kind: str, value: Any, field: str) -> str:
    """Return the remedy of a value of a wrong type, or nothing."""
    if isinstance(value, Mapping) and value and set(value) <= _RANGE:
        return (
            f"a list is an axis, {field}: [1, 2], and a range that is searched stands under "
            f"tune.parameters"
        )
    if value is None and kind.endswith("_type"):
        return "give a value after the colon, or leave the field out"
    if not isinstance(value, str):
        return ""
    word = value.strip()
    number = re.fullmatch(r"([-+]?[\d.]+(?:e[-+]?\d+)?)(\s*%)?", word.replace(",", "."), re.I)
    try:
        given = float(number[1]) if number else None
    except ValueError:
        given = None
    if kind in ("float_type", "int_type", "float_parsing", "int_parsing") and given is not None:
        if number and number[2]:
            return f"a fraction in place of a percentage, {given / 100:g}"
        if re.fullmatch(r"[-+]?[1-9]\d{0,2}(,\d{3})+", word):
            return f"thousands without a comma, {word.replace(',', '')}"
        return f"a decimal point, {given:g}" if "," in word else f"{word} without quotes"
    if kind == "bool_type" and word.lower() in _BOOLEANS:
        true = _BOOLEANS[word.lower()]
        return f"{true}, without quotes" if word.lower() == true else f"YAML 1.2 writes {true}"
    return ""


def whole(value: Any) -> Any:
    """Return a number such as 1e3 or 10.0 as an integer; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def with_whole(values: Any, faults: Sequence[Any]) -> Any:
    """Return values in which whole numbers, such as 1e3, are integers where integers are asked."""
    counted = values
    for fault in faults:
        if fault["type"].startswith("int_") and whole(fault["input"]) is not fault["input"]:
            counted = _with_whole(counted, fault["loc"])
    return counted


def _with_whole(values: Any, place: Sequence[int | str]) -> Any:
    """Return a copy with the number at a place, of which a union's members may be the last."""
    if isinstance(values, dict) and place and place[0] in values:
        return {**values, place[0]: _with_whole(values[place[0]], place[1:])}
    if isinstance(values, list) and place and isinstance(place[0], int):
        return [
            _with_whole(one, place[1:]) if n == place[0] else one for n, one in enumerate(values)
        ]
    return whole(values)


def near(word: Any, known: Iterable[str]) -> str:
    """Return a hint at the nearest known word, else the list of all."""
    words = list(known)
    close = difflib.get_close_matches(str(word), words, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"one of {', '.join(words)}"
