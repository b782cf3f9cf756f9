"""YAML text → plain values in which every part knows its line; hostile text → one clear error."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from raysweep.errors import SpecError

MOST_BYTES = 1 << 20
MOST_NODES = 100_000
BOOLEAN = "tag:yaml.org,2002:bool"
Path_ = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class SweepText:
    """The values of a sweep file and the line of each, by path from the top."""

    file: str
    values: dict[str, Any]
    lines: dict[Path_, int] = field(default_factory=dict)

    def line(self, path: Path_) -> int:
        """Return the line of a value, or of the nearest value around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def error(self, path: Path_, message: str) -> str:
        """Return `file:line: field: message`."""
        where = ".".join(str(part) for part in path)
        return f"{self.file}:{self.line(path)}: {where}: {message}" if where else (
            f"{self.file}:{self.line(path)}: {message}"
        )  # fmt: skip


def read_sweep_text(file: Path) -> SweepText:
    """Read and parse a YAML sweep file.

    Raises:
        SpecError: names the file, the line, the rule and the remedy.
    """
    name = str(file)
    try:
        if file.is_dir():
            raise SpecError(f"{name}: is a directory; give a sweep file (.yaml or .py)")
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise SpecError(
                f"{name}: is {size:,} bytes; a sweep file has at most {MOST_BYTES:,}: use lists "
                f"as axes, or a Python sweep file"
            )
        raw = file.read_bytes()
    except OSError as error:
        raise SpecError(f"{name}: cannot be read ({error.strerror}); give a sweep file") from None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise SpecError(f"{name}:{line}: is not UTF-8 text; a sweep file is YAML") from None
    return parse(name, text)


def parse(name: str, text: str) -> SweepText:
    """Parse YAML text; `name` stands in messages."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        node = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise SpecError(f"{name}:{line}: is not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        shown = str(error).splitlines()[0][:120]
        raise SpecError(f"{name}:1: is not valid YAML: {shown}") from None
    except RecursionError:
        raise SpecError(f"{name}:1: is nested too deeply; a sweep file has a few levels") from None
    if not isinstance(node, yaml.MappingNode):
        kind = "empty" if node is None else f"a {type(node).__name__}"
        raise SpecError(
            f"{name}:1: a sweep file is a mapping with name, dataset, model, attacks, defenses "
            f"and seeds, got {kind}"
        )
    reader = _Reader(name)
    values = reader.value(node, ())
    return SweepText(file=name, values=values, lines=reader.lines)


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
