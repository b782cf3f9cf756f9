"""The output of commands: text in which nothing commands the terminal, and JSON for scripts."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from raysweep.results.text import visible

AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON; times are seconds since 1970, UTC.")
]


class PlainConsole(Console):
    """A terminal on which text from names, messages and logs stays text: no escape code works."""

    def render_str(self, text: str, **given: Any) -> Text:
        """Return text as rich prints it, with its control characters written out."""
        return super().render_str(visible(text), **given)


def print_text(text: str) -> None:
    """Print text as it is; on a terminal its control characters are written out."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)


def print_json(value: object) -> None:
    """Print a value as JSON: dataclasses as mappings, what is NaN or infinite as null."""
    print(json.dumps(_plain(value), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
