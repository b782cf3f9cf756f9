"""A guide to a method or recipe: parameters, what it needs and gives, an example that loads."""

from __future__ import annotations

import difflib
import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from raysweep import methods
from raysweep.attacks import Attack
from raysweep.datasets import Dataset
from raysweep.defenses import Defense
from raysweep.errors import SpecError
from raysweep.identity import Json
from raysweep.methods.recipe import RECIPES, Recipe
from raysweep.models import Model
from raysweep.sweep import catalog
from raysweep.sweep.scalars import dump

BASES = (Attack, Defense, Dataset, Model)
TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}
EXAMPLE_PATH = "my-data"
SHOWN_AT_MOST = 2  # parameters in an example, beside those that must be given
ParameterRole = Literal["decision", "reduction", "run"]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a method.

    Attributes:
        name: in a sweep file.
        type: in words.
        range: the values that are allowed, in words; empty if any of the type is.
        default: its value if a sweep file names none.
        required: whether a sweep file must name it; it has no default then.
        description: what it means.
        role: a decision decides again on stored scores, a reduction keeps the shards.
        search: the range that tuning takes; none if the method suggests none.
        own: whether the method itself declares it, and not all methods of its role have it.
    """

    name: str
    type: str
    range: str
    default: Json
    required: bool
    description: str
    role: ParameterRole
    search: Mapping[str, Json] | None
    own: bool


@dataclass(frozen=True, kw_only=True)
class Guide:
    """A guide to one method, or to one recipe.

    Attributes:
        entry: name, kind and idea.
        about: all that its file says: idea, citation, the layout of files, where ours differs.
        parameters: its own first.
        needs, gives: what a defense is told and gives, or the like of other roles, in words.
        badges: what every table says of it, with its default parameters.
        with_parameters: parameter and value → what it then needs, gives or is badged with besides.
        example: a sweep file.
    """

    entry: catalog.Entry
    about: str
    parameters: tuple[Parameter, ...]
    needs: tuple[str, ...]
    gives: tuple[str, ...]
    badges: tuple[str, ...]
    with_parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    example: str


def guides(name: str) -> list[Guide]:
    """Return the guides to all methods and recipes of a name; `none` is an attack and a defense.

    Raises:
        SpecError: if there is none; the message names the nearest ones.
    """
    found = [_method(role, name) for role in methods.ROLES if name in methods.available(role)]
    if name in RECIPES:
        found.append(_recipe(name))
    if found:
        return found
    known = [*dict.fromkeys(one for role in methods.ROLES for one in methods.available(role))]
    near = difflib.get_close_matches(name, [*known, *RECIPES], n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise SpecError(f"no method or recipe is called {name!r}{hint} (all: raysweep list)")


def _method(role: methods.Role, name: str) -> Guide:
    kind = methods.load(role, name)
    needs, gives = _needs_and_gives(kind)
    return Guide(
        entry=catalog.entry(role, name), about=catalog.docstring(kind),
        parameters=tuple(_parameters(kind)), needs=needs, gives=gives,
        badges=_default(kind).badges(), with_parameters=_variants(kind),
        example=_example(role, name, kind),
    )  # fmt: skip


def _recipe(name: str) -> Guide:
    values = RECIPES[name].model_dump(mode="json")
    changed = _changed(RECIPES[name])
    return Guide(
        entry=catalog.recipe(name), about=catalog.recipe(name).idea,
        parameters=tuple(_parameters(Recipe, values)), needs=(), gives=(), badges=(),
        example=_sweep_file(name, recipe={"base": name, **dict(changed[:1])}),
    )  # fmt: skip


def _changed(recipe: Recipe) -> list[tuple[str, Json]]:
    values, usual = recipe.model_dump(mode="json"), Recipe().model_dump(mode="json")
    return [(name, value) for name, value in values.items() if value != usual[name]]


# Parameters


def _parameters(
    kind: type[BaseModel], values: Mapping[str, Json] | None = None
) -> Iterator[Parameter]:
    """Yield the parameters of a method, or of a recipe with these values: its own first."""
    schema = kind.model_json_schema()
    shared = {name for base in BASES if issubclass(kind, base) for name in base.model_fields}
    given = values or {}
    for name, rule in sorted(schema["properties"].items(), key=lambda item: item[0] in shared):
        role = rule.get("role", "run")
        yield Parameter(
            name=name, type=_type(rule), range=_range(rule),
            default=given.get(name, rule.get("default")),
            required=name in schema.get("required", ()), description=rule.get("description", ""),
            role=role, search=rule.get("search"), own=name not in shared,
        )  # fmt: skip


def _alternatives(rule: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [rule] if "anyOf" not in rule else [one for part in rule["anyOf"]
                                               for one in _alternatives(part)]  # fmt: skip


def _type(rule: Mapping[str, Any]) -> str:
    """Return the type of a value in words, from its JSON Schema."""
    names = []
    for one in _alternatives(rule):
        if "enum" in one:
            names += [", ".join(map(str, one["enum"]))]
        elif one.get("type") == "array":
            inside = one.get("items") or (one.get("prefixItems") or [{}])[0]
            names.append(f"list of {_type(inside)}")
        elif one.get("type") == "null":
            names.append("none")
        else:
            names.append(TYPES.get(str(one.get("type")), "value"))
    return " or ".join([", ".join(names)] if "enum" in str(rule) else names)


def _range(rule: Mapping[str, Any]) -> str:
    """Return the allowed values in words, from the bounds of the JSON Schema."""
    words = {
        "minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}",
        "exclusiveMaximum": "below {}", "multipleOf": "a multiple of {}",
        "minItems": "at least {} items", "maxItems": "at most {} items",
    }  # fmt: skip
    bounds = [
        text.format(one[word])
        for one in _alternatives(rule) for word, text in words.items() if word in one
    ]  # fmt: skip
    return ", ".join(bounds).replace(", to ", " to ")


# What it needs and gives


def _default(kind: type[methods.Method]) -> Any:
    """Return a method with its default parameters; those that must be given are made up."""
    return kind.model_construct(**_required(kind))  # Unchecked: its path leads to nothing.


def _required(kind: type[methods.Method]) -> dict[str, Any]:
    """Return a value for each parameter that must be given: the method's own example, or a path."""
    fields = kind.model_fields.items()
    return {
        name: (info.examples or [EXAMPLE_PATH])[0] for name, info in fields if info.is_required()
    }


def _needs_and_gives(kind: type[methods.Method]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    method = _default(kind)
    if isinstance(method, Defense):
        return tuple(sorted(method.needs())), tuple(sorted(method.gives()))
    if isinstance(method, Attack):
        given = (
            (method.PREPARES, "a stage of preparation"), (method.SURROGATE, "a clean surrogate"),
            (method.EVADES, "the victim"),
        )  # fmt: skip
        needs = [f"data of {' or '.join(method.DOMAINS)}", *(what for has, what in given if has)]
        trains = "the victim itself" if method.TRAINS else "a poisoned training set"
        return tuple(needs), ("changed test inputs" if method.EVADES else trains,)
    if isinstance(method, Model):
        sides = f", at least {method.MIN_SIDE} pixels a side" if "images" in method.DOMAINS else ""
        return (
            (" or ".join(method.DOMAINS) + sides + (", square" if method.SQUARE else ""),),
            tuple(f"layer {layer}" for layer in method.LAYERS),
        )
    return (), (getattr(method, "DOMAIN", ""),)


def _variants(kind: type[methods.Method]) -> dict[str, tuple[str, ...]]:
    """Return the further needs, gifts and badges of a defense, by parameter and value."""
    if not issubclass(kind, Defense):
        return {}
    usual, more = _claims(_default(kind)), {}
    for name, rule in kind.model_json_schema()["properties"].items():
        for value in _listed(rule):
            try:
                claims = _claims(kind.model_validate_json(json.dumps({name: value})))
            except ValidationError:
                continue  # it asks for another parameter, too
            if fresh := [one for one in claims if one not in usual]:
                more[f"{name}: {flow(value)}"] = tuple(fresh)
    return more


def _listed(rule: Mapping[str, Any]) -> Sequence[Json]:
    every = [value for one in _alternatives(rule) for value in one.get("enum", ())]
    return [True, False] if rule.get("type") == "boolean" else every


def _claims(defense: Defense) -> list[str]:
    return [
        *(f"needs {need}" for need in sorted(defense.needs())),
        *(f"gives {gift}" for gift in sorted(defense.gives())),
        *(f"badge {badge}" for badge in defense.badges()),
    ]


# An example


def flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    return dump(value, flow=True).removesuffix("\n").removesuffix("\n...")


def entry(method: methods.Method, found: Container[str]) -> str:
    """Return a method as an entry of a sweep file: what was found, and what is not the default.

    Args:
        method: with the values to write.
        found: names of parameters that are written whatever they are.
    """
    usual = type(method).model_construct().params()
    shown = {
        name: value for name, value in method.params().items()
        if name in found or value != usual.get(name)
    }  # fmt: skip
    return flow({method.name: shown})


def _example(role: methods.Role, name: str, kind: type[methods.Method]) -> str:
    every = [one for one in _parameters(kind) if one.own and one.default not in (None, "", False)]
    tuned = sorted(every, key=lambda one: one.search is None)
    shown = {one.name: one.default for one in tuned[:SHOWN_AT_MOST]}
    method = _default(kind)
    if getattr(method, "rate", 0):
        shown = {"rate": method.rate, **shown}
    parameters = {**_required(kind), **shown}
    return _sweep_file(name, kind, **{role[:-1]: {name: parameters} if parameters else name})


def _sweep_file(name: str, kind: type[methods.Method] | None = None, **given: Json) -> str:
    """Return a small sweep file with some axes given, and others that go with the method."""
    domains = getattr(kind, "DOMAINS", (getattr(kind, "DOMAIN", "images"),))
    side = max(16, getattr(kind, "MIN_SIDE", 16))
    digits: dict[str, Json] = {"size": 600} | ({"side": side} if side > 16 else {})
    features = "images" not in domains
    axes: dict[str, Json] = {
        "dataset": {"ember": {"path": EXAMPLE_PATH}} if features else {"digits": digits},
        "model": "linear" if features else "tiny_cnn",
        "attack": "none" if features else {"badnets": {"rate": 0.05}},
        "recipe": {"epochs": 2},
        "defense": "none",
    } | given
    chosen = [axes.pop("defense")]
    like = getattr(_default(kind), "like", None) if kind is not None else None
    axes["defenses"] = [*([] if chosen == ["none"] else ["none"]), *([like] if like else []),
                        *chosen]  # fmt: skip
    lines = [f"name: try-{name}", *(f"{axis}: {flow(value)}" for axis, value in axes.items())]
    return "\n".join([*lines, "seeds: 1"]) + "\n"
