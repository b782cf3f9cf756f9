"""A sweep file with other parameters of its defenses, in the words and comments of its author."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from raysweep.defenses import Defense
from raysweep.errors import SpecError
from raysweep.sweep.loading import from_text
from raysweep.sweep.spec import Sweep, to_yaml
from raysweep.sweep.yaml import parse

UNBROKEN = 4096  # columns, so that no line of the author's is broken anew


def tuned_text(text: str, tuned: Sweep, changes: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the sweep file of a tuned sweep: the old text where it can be kept, else a new one.

    Args:
        text: the sweep file that was tuned; a Python file is written anew, in YAML.
        tuned: what the returned text describes.
        changes: label of a tuned defense → the parameters that were chosen for it.
    """
    try:
        edited = _edited(text, tuned, changes)
        kept = from_text(parse("tuned", edited)) == tuned
    except (SpecError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        kept = False
    # Whatever the text says in a way that is not followed here is written out.
    return edited if kept else to_yaml(tuned)


def _edited(text: str, tuned: Sweep, changes: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text with the new name and parameters, and without `tune`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    writer = YAML(typ="rt")
    writer.preserve_quotes = True
    writer.width = UNBROKEN
    offset = re.search(r"^\S.*:[^\S\n]*(?:#.*)?\n(?:\s*#.*\n)*( *)- ", text, re.MULTILINE)
    spaces = len(offset[1]) if offset else 2
    writer.indent(mapping=2, sequence=spaces + 2, offset=spaces)
    try:
        values = writer.load(text)
    except YAMLError as error:
        raise ValueError(str(error)) from None
    values["name"] = tuned.name
    values.pop("tune", None)
    field = "defense" if "defense" in values else "defenses"
    entries = values[field]
    if not isinstance(entries, list):
        values[field] = entries = [entries] if isinstance(entries, str) else entries
    for name in dict.fromkeys(defense.name for defense in tuned.defenses):
        forms = [defense for defense in tuned.defenses if defense.name == name]
        if any(form.label in changes for form in forms):
            _change(entries, name, forms, changes)
    written = io.StringIO()
    writer.dump(values, written)
    return written.getvalue()


def _change(
    entries: Any, name: str, forms: list[Defense], changes: Mapping[str, Mapping[str, Any]]
) -> None:
    """Change the entries of one defense: the only one in its place, several forms anew."""
    from ruamel.yaml.comments import CommentedMap

    if isinstance(entries, dict):  # defense: {strip: {…}}
        (form,) = forms
        entries[name] = _updated(entries[name], changes[form.label])
        return
    places = [
        place for place, entry in enumerate(entries)
        if entry == name or (isinstance(entry, dict) and list(entry) == [name])
    ]  # fmt: skip
    if len(forms) == 1:
        entry = entries[places[0]]
        given = entry[name] if isinstance(entry, dict) else None
        changed = _updated(given, changes[forms[0].label])
        if isinstance(entry, dict):
            entry[name] = changed
        else:
            entries[places[0]] = CommentedMap({name: changed})
        return
    for place in reversed(places):
        del entries[place]
    usual = type(forms[0]).model_construct().params()
    for number, form in enumerate(forms):
        differing = {k: v for k, v in form.params().items() if v != usual.get(k)}
        entries.insert(places[0] + number, CommentedMap({name: _updated(None, differing)}))


def _updated(given: Any, parameters: Mapping[str, Any]) -> Any:
    """Return the parameters of an entry with others in their places; a new entry on one line."""
    from ruamel.yaml.comments import CommentedMap

    if not given:
        given = CommentedMap()
        given.fa.set_flow_style()
    for name, value in parameters.items():
        given[name] = list(value) if isinstance(value, tuple) else value
    return given
