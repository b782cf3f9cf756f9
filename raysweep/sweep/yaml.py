"""YAML text → plain values in which every part knows its line; hostile text → one clear error."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from raysweep.errors import SpecError

MOST_BYTES = 1 << 20
MOST_NODES = 100_000
BOOLEAN = "tag:yaml.org,2002:bool"
Path_ = tuple[str | int, ...]
STANDARD_INPUT = Path("-")


@dataclass(frozen=True, kw_only=True)
class SweepText:
    """The values of a sweep file and the line of each, by path from the top.

    Attributes:
        file: its name in messages.
        values: what it holds.
        lines: path → line.
        options: path → the option of the command line that has set the value there.
    """

    file: str
    values: dict[str, Any]
    lines: dict[Path_, int] = field(default_factory=dict)
    options: dict[Path_, str] = field(default_factory=dict)

    def line(self, path: Path_) -> int:
        """Return the line of a value, or of the nearest value around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def where(self, path: Path_) -> str:
        """Return the place of a value: `file:line`, or the option that has set it."""
        around = path
        while around and around not in self.lines and around not in self.options:
            around = around[:-1]
        return self.options.get(around) or f"{self.file}:{self.line(path)}"

    def error(self, path: Path_, message: str) -> str:
        """Return `file:line: field: message`, or the option in place of file and line."""
        where = ".".join(str(part) for part in path)
        return f"{self.where(path)}: {where}: {message}" if where else (
            f"{self.where(path)}: {message}"
        )  # fmt: skip


def file_name(file: Path) -> str:
    """Return the name of a sweep file in messages."""
    return "standard input" if file == STANDARD_INPUT else str(file)


def read_yaml(file: Path) -> str:
    """Return the text of a YAML sweep file, or of standard input.

    Raises:
        SpecError: names the file, the line, the rule and the remedy.
    """
    name = file_name(file)
    try:
        if file == STANDARD_INPUT:
            return _decoded(name, sys.stdin.buffer.read(MOST_BYTES + 1))
        if file.is_dir():
            raise SpecError(f"{name}: is a directory; give a sweep file (.yaml or .py)")
        with file.open("rb") as stream:
            return _decoded(name, stream.read(MOST_BYTES + 1))
    except OSError as error:
        raise SpecError(f"{name}: cannot be read ({error.strerror}); give a sweep file") from None


def _decoded(name: str, raw: bytes) -> str:
    if len(raw) > MOST_BYTES:
        raise SpecError(
            f"{name}: is larger than {MOST_BYTES:,} bytes, the most that a sweep file may have: "
            f"use lists as axes, or a Python sweep file"
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise SpecError(f"{name}:{line}: is not UTF-8 text; a sweep file is YAML") from None


def parse(name: str, text: str) -> SweepText:
    """Return the values and lines of YAML text; `name` stands in messages.

    Raises:
        SpecError: names the line, the rule and the remedy.
    """
    node = _composed(name, text)
    if not isinstance(node, yaml.MappingNode):
        kind = "empty" if node is None else f"a {type(node).__name__}"
        raise SpecError(
            f"{name}:1: a sweep file is a mapping with name, dataset, model, attacks, defenses "
            f"and seeds, got {kind}"
        )
    reader = _Reader(name)
    values = reader.value(node, ())
    return SweepText(file=name, values=values, lines=reader.lines)


def parse_value(name: str, text: str) -> Any:
    """Return the value of YAML text that stands alone; None if there is none.

    Raises:
        SpecError: if it is not YAML.
    """
    node = _composed(name, text)
    return None if node is None else _Reader(name).value(node, ())


def _composed(name: str, text: str) -> yaml.Node | None:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise SpecError(f"{name}:{line}: is not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        shown = str(error).splitlines()[0][:120]
        raise SpecError(f"{name}:1: is not valid YAML: {shown}") from None
    except RecursionError:
        raise SpecError(f"{name}:1: is nested too deeply; a sweep file has a few levels") from None
    return node


class _Reader:
    """Turns YAML nodes into values, counting them, since an alias can repeat a huge one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Path_, int] = {}
        self.count = 0
        self.open: set[int] = set()
        self.scalars = yaml.SafeLoader("")

    def value(self, node: yaml.Node, path: Path_) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self.count += 1
        if self.count > MOST_NODES or id(node) in self.open or len(path) > 40:
            raise SpecError(
                f"{self.name}:{line}: holds more than {MOST_NODES:,} values when its aliases are "
                f"written out, or one that contains itself; write the sweep without aliases"
            )
        if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
            raise SpecError(f"{self.name}:{line}: tag {node.tag!r} is not allowed; remove it")
        if isinstance(node, yaml.ScalarNode):
            # As in YAML 1.2: on, off, yes and no are words, and `on` is a parameter of detectors.
            if node.tag == BOOLEAN and node.value.lower() not in ("true", "false"):
                return node.value
            try:
                return self.scalars.construct_object(node)
            except (yaml.YAMLError, ValueError, TypeError):
                raise SpecError(
                    f"{self.name}:{line}: {node.value[:60]!r} cannot be read as {node.tag}"
                ) from None
        self.open.add(id(node))
        content: Any
        if isinstance(node, yaml.SequenceNode):
            content = [self.value(item, (*path, n)) for n, item in enumerate(node.value)]
        else:
            content = self._mapping(node, path)
        self.open.discard(id(node))
        return content

    def _mapping(self, node: yaml.Node, path: Path_) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self.value(key_node, (*path, "?"))
            if not isinstance(key, str):
                hint = "; write none for no attack or no defense" if key is None else ""
                raise SpecError(f"{self.name}:{line}: keys are words, got {key!r}{hint}")
            if key in values:
                first = self.lines[(*path, key)]
                raise SpecError(
                    f"{self.name}:{line}: duplicate key {key!r}, first on line {first}; keep one"
                )
            self.lines[(*path, key)] = line
            values[key] = self.value(value_node, (*path, key))
        self.lines.pop((*path, "?"), None)
        return values
