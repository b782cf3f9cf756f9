"""YAML text → plain values in which every part knows its line; hostile text → one clear error."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from raysweep.errors import SpecError
from raysweep.sweep.faults import one_line, short
from raysweep.sweep.scalars import BREAKS, MERGE, TAG, Loader, Unreadable, value_of
from raysweep.sweep.syntax import slip

MOST_BYTES = 1 << 20
MOST_NODES = 100_000
MOST_LEVELS = 40
MERGED = "<<"
POINT = "a decimal number has a point, not a comma, and thousands have none"
Path_ = tuple[str | int, ...]
STANDARD_INPUT = Path("-")
MARK = "\ufeff"
_ODD = re.compile(
    f"[{''.join(BREAKS)}\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\ufffe\\uffff]"
    f"|(?<!^){MARK}"
)
_ENDS = re.compile(r"\r\n?|\n")


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
        field = ".".join(str(part) for part in path)
        told = f"{field}: {message}" if field else message
        return f"{self.where(path)}: {one_line(told)}"


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
        kind = (
            "nothing"
            if node is None
            else ("a list" if isinstance(node, yaml.SequenceNode) else f"{short(node.value)}")
        )
        raise SpecError(
            f"{name}:1: a sweep file is a mapping with name, dataset, model, attacks, defenses "
            f"and seeds, each with a colon and a space after it, got {kind}"
        )
    reader = _Reader(name)
    values = reader.value(node, ())
    return SweepText(file=name, values=values, lines=reader.lines)


def parse_value(name: str, text: str) -> Any:
    """Return the value of YAML text that stands alone; None if there is none.

    Raises:
        SpecError: if it is not YAML.
    """
    node = _composed(name, text, alone=True)
    return None if node is None else _Reader(name, alone=True).value(node, ())


def _dotted(path: Path_) -> str:
    """Return a path as messages begin with it; a key that is being read has none."""
    return "" if "?" in path or not path else f"{'.'.join(map(str, path))}: "


def _check_signs(name: str, text: str, *, alone: bool) -> None:
    """Refuse signs that are no text, and those that readers of YAML take for different things.

    Raises:
        SpecError: names the line, the sign and what is written in its place.
    """
    found = _ODD.search(text)
    if not found:
        return
    sign, line = found[0], len(_ENDS.findall(text, 0, found.start())) + 1
    fault = "which is no text; remove it, and save the file as UTF-8"
    if sign in BREAKS:
        fault = (
            f"which ends a line in YAML 1.1 and does not in YAML 1.2; remove it, or write "
            f"{BREAKS[sign]} in double quotes"
        )
    elif sign == MARK:
        fault = "a byte order mark, which may begin a file and stands nowhere else; remove it"
    raise SpecError(f"{_at(name, line, alone)}: holds U+{ord(sign):04X}, {fault}")


def _composed(name: str, text: str, *, alone: bool = False) -> yaml.Node | None:
    _check_signs(name, text, alone=alone)
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        line, message = slip(error, text)
        raise SpecError(f"{_at(name, line, alone)}: is not valid YAML: {message}") from None
    except RecursionError:
        raise SpecError(
            f"{_at(name, 1, alone)}: is nested too deeply; a sweep file has a few levels"
        ) from None
    return node


def _at(name: str, line: int, alone: bool) -> str:
    """Return the place of a message: a value that stands alone has no line."""
    return name if alone else f"{name}:{line}"


class _Reader:
    """Turns YAML nodes into values, counting them, since an alias can repeat a huge one."""

    def __init__(self, name: str, *, alone: bool = False) -> None:
        self.name = name
        self.alone = alone
        self.lines: dict[Path_, int] = {}
        self.count = 0
        self.open: set[int] = set()

    def error(self, node: yaml.Node, message: str) -> SpecError:
        return SpecError(f"{_at(self.name, node.start_mark.line + 1, self.alone)}: {message}")

    def value(self, node: yaml.Node, path: Path_) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        self.count += 1
        if self.count > MOST_NODES or id(node) in self.open or len(path) > MOST_LEVELS:
            raise self.error(
                node,
                f"holds more than {MOST_NODES:,} values when its aliases are written out, more "
                f"than {MOST_LEVELS} levels, or a value that contains itself; write the sweep "
                f"without aliases",
            )
        if isinstance(node, yaml.ScalarNode):
            try:
                return value_of(node.tag, node.value)
            except Unreadable as error:
                hint = f"; {POINT}" if "?" in path else ""
                where = "" if self.alone else _dotted(path)
                raise self.error(node, f"{where}{error}{hint}") from None
        if node.tag not in (f"{TAG}map", f"{TAG}seq"):
            raise self.error(node, f"tag {node.tag!r} is not allowed; remove it")
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
        written: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = MERGED if key_node.tag == MERGE else self._key(key_node, path)
            if key in written:
                raise self.error(
                    key_node, f"duplicate key {key!r}, first on line {written[key]}; keep one"
                )
            written[key] = line
            if key == MERGED and key_node.tag == MERGE:
                continue
            self.lines[(*path, key)] = line
            values[key] = self.value(value_node, (*path, key))
        merged = [(k, v) for k, v in node.value if k.tag == MERGE]
        return self._merged(merged[0][1], path, values) if merged else values

    def _key(self, node: yaml.Node, path: Path_) -> str:
        key = self.value(node, (*path, "?"))
        del self.lines[(*path, "?")]
        if not isinstance(key, str):
            hint = "; write none for no attack or no defense" if key is None else (
                f"; {POINT}"
            )  # fmt: skip
            raise self.error(node, f"keys are words, got {key!r}{hint}")
        if key != key.strip():
            raise self.error(
                node, f"key {key!r} begins or ends with a space that YAML does not skip; remove it"
            )
        return key

    def _merged(self, node: yaml.Node, path: Path_, values: dict[str, Any]) -> dict[str, Any]:
        """Return fields after those that a merge key brings, `<<: *one` or `<<: [*one, *two]`.

        A field that is written out counts, else the first mapping that has it.
        """
        listed = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for one in listed:
            if not isinstance(one, yaml.MappingNode):
                raise self.error(
                    node,
                    "'<<' takes the fields of a mapping: <<: *name, with &name at the mapping",
                )
            lines = self.lines
            self.lines = {}
            found = self.value(one, path)
            own, self.lines = self.lines, lines
            for place, line in own.items():
                if place != path and place[len(path)] not in values:
                    self.lines.setdefault(place, line)
            values = found | values
        return values
