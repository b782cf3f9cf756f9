"""Records in other formats: every row as CSV, JSON or Parquet, the table as Markdown or LaTeX.

Every row is written in the columns and types of `results.schema`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pandas as pd

from raysweep.reports.tables import text_table
from raysweep.results.schema import typed
from raysweep.results.table import packed

# Characters that LaTeX takes for commands, or its usual fonts lack.
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--",
    "±": r"$\pm$", "·": r"$\cdot$", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def to_csv(rows: pd.DataFrame) -> bytes:
    """Return all rows as CSV, with a line of column names."""
    return typed(rows).to_csv(index=False).encode()


def to_json(rows: pd.DataFrame) -> bytes:
    """Return all rows as a JSON list of mappings; what is undefined is null."""
    rows = typed(rows)
    plain = rows.astype(object).where(rows.notna(), None)
    records = [{str(name): _plain(cell) for name, cell in row.items()}
               for row in plain.to_dict("records")]  # fmt: skip
    return (json.dumps(records, indent=1, ensure_ascii=False) + "\n").encode()


def _plain(cell: object) -> object:
    return cell.item() if hasattr(cell, "item") else cell


def to_parquet(rows: pd.DataFrame) -> bytes:
    """Return all rows as a Parquet file."""
    return packed(typed(rows))


def to_markdown(rows: pd.DataFrame) -> bytes:
    """Return the table of the terminal, attack × defense, as Markdown; a table per attack."""
    parts = []
    for title, headers, lines in text_table(rows):
        cells = [[_markdown(cell) for cell in line] for line in lines]
        marks = ["---" if number < 2 or number == len(headers) - 1 else "--:"
                 for number in range(len(headers))]  # fmt: skip
        table = [headers, marks, *cells]
        parts.append(
            f"**{_markdown(title)}**\n\n"
            + "".join(f"| {' | '.join(line)} |\n" for line in table)
        )  # fmt: skip
    return "\n".join(parts).encode()


def _markdown(text: str) -> str:
    """Return text that Markdown shows as it is; it is not HTML either, and no end of a cell."""
    escaped = "".join(f"\\{c}" if c in "\\`*_[]|~" else c for c in " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_latex(rows: pd.DataFrame) -> bytes:
    """Return the table of the terminal as LaTeX with booktabs; a tabular per attack."""
    parts = []
    for title, headers, lines in text_table(rows):
        shape = "ll" + "r" * (len(headers) - 3) + "l"
        body = [" & ".join(map(_latex, line)) + r" \\" for line in lines]
        parts.append("\n".join([
            f"% {' '.join(title.split())}", rf"\begin{{tabular}}{{{shape}}}", r"\toprule",
            rf"\multicolumn{{{len(headers)}}}{{l}}{{{_latex(title)}}} \\", r"\midrule",
            " & ".join(map(_latex, headers)) + r" \\", r"\midrule", *body, r"\bottomrule",
            r"\end{tabular}", "",
        ]))  # fmt: skip
    return "\n".join(parts).encode()


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


FORMATS: Mapping[str, Callable[[pd.DataFrame], bytes]] = {
    "csv": to_csv, "parquet": to_parquet, "latex": to_latex, "markdown": to_markdown,
    "json": to_json,
}  # fmt: skip
