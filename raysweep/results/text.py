"""Text from names, messages and logs, made safe to show."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raysweep.results.columns import Cell

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    r"""Return text whose control characters are written out, as `\x1b`; lines and tabs stay."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def fenced(text: str) -> str:
    """Return text as a block of code in Markdown: nothing in it is markup, or ends the block."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{visible(text)}\n{fence}"


def cell(text: str) -> str:
    """Return text as it stands in a cell of a table in Markdown: no markup, one line."""
    one_line = " ".join(visible(text).split())
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$-])", r"\\\1", one_line)


def markdown_table(headers: Sequence[str], lines: Iterable[Sequence[Cell]]) -> str:
    """Return a table in Markdown; every cell is text, whatever it holds."""
    rows = [[cell(str(value)) for value in line] for line in (headers, *lines)]
    rule = ["---"] * len(headers)
    return "\n".join(f"| {' | '.join(line)} |" for line in (rows[0], rule, *rows[1:]))
