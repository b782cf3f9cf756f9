"""Syntax errors of YAML, each with the slip that it most likely comes from."""

from __future__ import annotations

import re

import yaml

_NO_SPACE = re.compile(r"^[\s{\[-]*[\w.]+:[^\s:/\\]")  # name:x
_SHOWN = 60


def slip(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str]:
    """Return the line of a syntax error and its message, with the likely slip and its remedy.

    Args:
        error: what the parser found.
        text: what it read.
    """
    mark = error.problem_mark or error.context_mark
    lines = text.splitlines()
    if mark is None:
        return 1, str(error.problem)
    # libyaml names the line after the last where something is not closed.
    number = max(1, min(mark.line + 1, len(lines)))
    opened = error.context_mark.line + 1 if error.context_mark else number
    hint = _hint(str(error.problem), lines, number, opened, mark.column)
    return number, f"{error.problem}{hint and f'; {hint}'}"


def _hint(problem: str, lines: list[str], number: int, opened: int, column: int) -> str:
    line = lines[number - 1] if lines else ""
    found = line[column : column + 1]
    if "\t" in line[: column + 1] or "tab" in problem:
        return "a tab stands there, and YAML is indented with spaces alone"
    for near in (opened, number - 1, number):
        if odd := _odd_space(lines[near - 1]) if 0 < near <= len(lines) else "":
            return f"line {near} begins with U+{ord(odd):04X}; YAML knows the plain space alone"
    if "mapping values" in problem:
        return _unexpected_colon(lines, number)
    if "expected ':'" in problem:
        return _no_colon(lines, opened)
    if "'-' indicator" in problem:
        return (
            "an entry of a list begins with a dash and a space, and a parameter stands deeper "
            "than the name to which it belongs"
        )
    if "expected ',' or" in problem:
        return f"a comma is missing, or the bracket that line {opened} opens is not closed"
    if "unexpected end" in problem:
        return f"the quote that line {opened} opens is not closed"
    if "cannot start any token" in problem or "alias" in problem:
        return f"text that begins with {found or line[column - 1 : column]!r} is put in quotes"
    if "escape" in problem or "hexdecimal" in problem:
        return (
            "in double quotes a backslash begins an escape, of one character; write \\\\ for a "
            "backslash, or take single quotes"
        )
    if "another document" in problem:
        return "a sweep file is one document; remove the line of dashes, or make two files"
    if found in ("]", "}", "'", '"') or line[column - 1 : column] in ("]", "}", "'", '"'):
        return "a bracket or a quote is closed too early; within quotes, a quote is written twice"
    if "expected key" in problem:
        return f"fields of one mapping begin in one column, and line {number} begins in another"
    return ""


def _odd_space(line: str) -> str:
    """Return the space before a line's text that is neither a space nor a tab; "" without one."""
    before = line[: len(line) - len(line.lstrip())]
    return next((sign for sign in before if sign not in " \t\r"), "")


def _unexpected_colon(lines: list[str], number: int) -> str:
    """Return the slip that makes a colon stand where none is expected."""
    line, before = lines[number - 1], _before(lines, number)
    if before and _NO_SPACE.match(lines[before - 1]):
        return _no_colon(lines, before)
    if len(re.findall(r":\s", f"{line} ")) > 1:
        return "text that holds a colon and a space is put in quotes"
    above = lines[before - 1] if before else ""
    if ":" in above:
        return (
            f"line {number} stands deeper than line {before}, whose field has a value already; "
            f"give both the same indentation"
        )
    return _no_colon(lines, before) if before else ""


def _no_colon(lines: list[str], number: int) -> str:
    line = lines[number - 1]
    shown = line.strip()[:_SHOWN]
    if _NO_SPACE.match(line):
        return f"a colon is followed by a space: line {number} is {shown!r}"
    after = "" if " " in shown else f" ({shown}:)"
    return f"line {number}, {shown!r}, lacks a colon{after}, or a dash if it is an entry of a list"


def _before(lines: list[str], number: int) -> int:
    """Return the number of the last line before a line that says something; 0 if none does."""
    for earlier in range(number - 1, 0, -1):
        if lines[earlier - 1].split("#")[0].strip():
            return earlier
    return 0
