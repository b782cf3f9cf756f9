"""A JSON Schema of the YAML form, so that editors complete and check sweep files."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, TypeAdapter

from raysweep import methods
from raysweep.methods.recipe import RECIPES, Recipe
from raysweep.sweep.race import Race
from raysweep.sweep.reading import takes_list
from raysweep.sweep.resources import Resources
from raysweep.sweep.spec import AXES, MOST_SEEDS, PLURAL, Seed, Sweep, Track
from raysweep.sweep.tuning import Tune


def json_schema() -> dict[str, Any]:
    """Return the schema, draft 2020-12, with every method that is found here."""
    definitions: dict[str, Any] = {}
    for role in methods.ROLES:
        axis = role[:-1]
        definitions[axis] = {"anyOf": _entries(role, definitions)}
    definitions["recipe"] = _recipe(definitions)
    properties: dict[str, Any] = {
        "name": {"type": "string", "pattern": Sweep.model_fields["name"].metadata[0].pattern},
        "question": {"type": "string"},
        "seeds": {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MOST_SEEDS},
                {"type": "array", "items": TypeAdapter(Seed).json_schema(), "minItems": 1},
                _plain(Race, definitions),
            ],
            "description": "3 means seeds 0, 1, 2; {max: 20, until: separated} a race",
        },
        "exclude": {"type": "array", "items": {"type": "object"}},
        "tune": _plain(Tune, definitions),
        "resources": _plain(Resources, definitions),
        "track": _plain(Track, definitions),
    }
    for axis in AXES:
        one = {"$ref": f"#/$defs/{axis}"}
        several = {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}
        properties[axis] = properties[PLURAL[axis]] = several
    needed = [
        {"oneOf": [{"required": [axis]}, {"required": [PLURAL[axis]]}]}
        for axis in AXES
        if axis != "recipe"
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "raysweep sweep file",
        "type": "object",
        "required": ["name"],
        "properties": properties,
        "additionalProperties": False,
        "allOf": needed,
        "$defs": definitions,
    }


def _recipe(definitions: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe: a name, or parameters, which may stand on a named `base`."""
    name = {"enum": list(RECIPES)}
    parameters = _parameters(Recipe, definitions)
    parameters["properties"]["base"] = {
        "description": "a named recipe, of which the other parameters are changes",
        "anyOf": [name, {"type": "array", "items": name, "minItems": 1}],
    }
    return {"anyOf": [name, parameters]}


def _entries(role: methods.Role, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = methods.usable(role)
    entries: list[dict[str, Any]] = [{"enum": list(kinds)}]
    for name, kind in kinds.items():
        parameters = _parameters(kind, definitions)
        entries.append(
            {
                "type": "object",
                "properties": {name: {"anyOf": [parameters, {"type": "null"}]}},
                "required": [name],
                "additionalProperties": False,
            }
        )
        if name in kind.model_fields:  # it may be named by this parameter: {module: "nets:Net"}
            entries.append({**parameters, "required": [name]})
    return entries


def _plain(kind: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    schema = kind.model_json_schema(ref_template="#/$defs/{model}")
    definitions |= schema.pop("$defs", {})
    return schema


def _parameters(kind: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return a method's parameters, each a value or a list of values: an axis."""
    schema = _plain(kind, definitions)
    doc = (kind.__doc__ or "").strip().split("\n\n")[0]
    opened = {}
    for name, own in schema.get("properties", {}).items():
        about = {key: own.pop(key) for key in ("description", "default", "title") if key in own}
        own.pop("role", None)
        axis = {"type": "array", "items": own, "minItems": 1}
        listed = takes_list(kind.model_fields[name].annotation)
        opened[name] = {**about, "anyOf": [own, axis] if not listed else [axis, own]}
    return {
        "type": "object",
        "description": doc,
        "properties": opened,
        "additionalProperties": kind.model_config.get("extra") == "allow",
    }
