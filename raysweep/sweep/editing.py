"""A sweep file with other values: comments, quotes and order of everything else stay."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysweep.errors import SpecError
from raysweep.methods import Method
from raysweep.paths import starting_at
from raysweep.sweep.loading import LoadedSweep
from raysweep.sweep.reading import from_text
from raysweep.sweep.spec import Sweep, to_yaml
from raysweep.sweep.yaml import Path_, parse


def rewritten(loaded: LoadedSweep, better: Sweep, folder: Path) -> str:
    """Return a sweep file that loads to a sweep with another name and other defenses.

    It is the text that was loaded, changed where the sweeps differ. Where that does not load to
    the same sweep, since it is a program, an alias shares what differs, or a relative path leads
    elsewhere from the folder, all values are written anew.

    Args:
        loaded: the sweep and its text.
        better: the same sweep with another name, with defenses of other parameters and as many,
            and without `tune`.
        folder: where the file will lie.
    """
    if loaded.parsed is None:
        return to_yaml(better)
    values = {**loaded.parsed.values, "name": better.name}
    values.pop("tune", None)
    field = "defenses" if "defenses" in values else "defense"
    values[field] = _entries(loaded, better, values[field])
    try:
        text = edited(loaded.text, values)
        with starting_at(folder):
            if from_text(parse("", text)) == better:
                return text
    except (SpecError, ValueError):
        pass
    return to_yaml(better)


def _entries(loaded: LoadedSweep, better: Sweep, listed: Any) -> Any:
    """Return the entries of defenses; one that opened to several is written as several."""
    parts: dict[Path_, list[tuple[Method, Method]]] = {}
    pairs = zip(loaded.sweep.defenses, better.defenses, strict=True)
    for path, pair in zip(loaded.origins["defenses"], pairs, strict=True):
        parts.setdefault(path, []).append(pair)
    entries: list[Any] = []
    for path, opened in parts.items():
        entry = listed[path[1]] if len(path) > 1 else listed
        same = all(old == new for old, new in opened)
        entries += [entry] if same else [_entry(entry, old, new) for old, new in opened]
    return entries if isinstance(listed, list) or len(entries) > 1 else entries[0]


def _entry(entry: Any, old: Method, new: Method) -> Any:
    """Return an entry of a sweep file that says the parameters that it said, and what differs."""
    named = isinstance(entry, str) or set(entry) == {old.name}
    given = {} if isinstance(entry, str) else (entry[old.name] or {}) if named else entry
    before, after = old.params(), new.params()
    parameters = {
        name: after[name] if isinstance(value, list) or before[name] != after[name] else value
        for name, value in given.items()
    }
    parameters |= {
        name: value for name, value in after.items()
        if name not in given and before[name] != value
    }  # fmt: skip
    return {old.name: parameters} if named else parameters


def edited(text: str, values: Mapping[str, Any]) -> str:
    """Return YAML that holds some values, written as a text writes what they have in common.

    Args:
        text: YAML of a sweep.
        values: what the YAML returned is to hold.

    Raises:
        ValueError: if the text cannot be edited to hold them.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.util import load_yaml_guess_indent

    writer, stream = YAML(), io.StringIO()
    writer.preserve_quotes = True
    writer.width = 4096
    try:
        document, indent, offset = load_yaml_guess_indent(text, yaml=writer)
        offset = offset or 0
        writer.indent(mapping=2, sequence=max(indent or 2, offset + 2), offset=offset)
        _change(document, parse("", text).values, values)
        writer.dump(document, stream)
        held = parse("", stream.getvalue()).values
    except (YAMLError, SpecError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None
    if _packed(held) != _packed(values):
        raise ValueError("the text cannot be edited to hold other values")
    return stream.getvalue()


def _change(document: Any, before: Any, after: Any) -> None:
    """Change a mapping or a list of a document that holds some values to hold others."""
    if isinstance(after, Mapping):
        for name in [name for name in before if name not in after]:
            del document[name]
        places: Sequence[Any] = list(after)
        known = set(before)
    else:
        del document[len(after) :]
        places, known = range(len(after)), set(range(len(before)))
    for place in places:
        if place not in known:
            new = _written(after[place])
            document.append(new) if isinstance(after, list) else document.update({place: new})
        elif _packed(before[place]) != _packed(after[place]):
            alike = any(
                isinstance(before[place], kind) and isinstance(after[place], kind)
                for kind in (dict, list)
            )
            if alike:
                _change(document[place], before[place], after[place])
            else:
                document[place] = _written(after[place])


def _written(value: Any) -> Any:
    """Return a copy of a value; the parameters of a new entry stand on its line."""
    from ruamel.yaml.comments import CommentedMap

    if not isinstance(value, dict):
        return copy.deepcopy(value)
    entry = CommentedMap()
    for name, given in value.items():
        entry[name] = copy.deepcopy(given)
        if isinstance(given, dict):
            entry[name] = CommentedMap(copy.deepcopy(given))
            entry[name].fa.set_flow_style()
    return entry


def _packed(value: Any) -> str:
    """Return text that tells 1 from 1.0 and from true."""
    return json.dumps(value, sort_keys=True)
