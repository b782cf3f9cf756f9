"""The sweep file: YAML or Python → one frozen, typed value; every error names line and remedy.

A list is an axis; `raysweep.sweep.trials` expands the axes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from raysweep.attacks import Attack
from raysweep.datasets import Dataset
from raysweep.defenses import Defense
from raysweep.errors import PlanError, SpecError
from raysweep.methods import Method, load, paths_of
from raysweep.methods.recipe import Recipe, resolved
from raysweep.methods.value import Value
from raysweep.models import Model
from raysweep.sweep.race import Race
from raysweep.sweep.resources import Resources
from raysweep.sweep.scalars import dump
from raysweep.sweep.tuning import Tune

AXES = ("dataset", "model", "attack", "defense", "recipe")
PLURAL = {axis: f"{axis}s" for axis in AXES}
MOST_SEEDS = 100_000
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # records hold no larger number
Scalar = str | int | float | bool | None
REFUSED = "/\\#?%:"  # characters that W&B refuses in the name of a project
MOST_IN_NAME = 128  # characters of a name in W&B


def _for_wandb(name: str) -> str:
    """Return a name that W&B takes.

    Raises:
        ValueError: if it is empty, too long, or has a character that W&B refuses.
    """
    found = sorted({sign for sign in name if sign in REFUSED or not sign.isprintable()})
    if found:
        shown = " ".join(REFUSED)
        raise ValueError(
            f"must have no {shown} and no control characters, which W&B refuses, "
            f"found {' '.join(map(ascii, found))}, got {name!r}"
        )
    if name != name.strip() or not 1 <= len(name) <= MOST_IN_NAME:
        raise ValueError(
            f"must be 1 to {MOST_IN_NAME} characters, the first and the last no space, as W&B "
            f"takes them, got {len(name)} in {name[:40]!r}"
        )
    return name


WandbName = Annotated[str, AfterValidator(_for_wandb)]


class Track(Value):
    """The settings of Weights & Biases, to which results are published beside the report."""

    wandb: Literal["online", "offline", "disabled"] = Field("offline", description="W&B mode")
    project: WandbName = Field("raysweep", description="W&B project")
    entity: WandbName | None = Field(None, description="W&B user or team")
    group: WandbName | None = Field(None, description="W&B group; none: the sweep's name")
    details: Literal["none", "some", "all"] = Field(
        "some",
        description="which trials have curves, pictures and artifacts beside their numbers; "
        "some: those of the first seed",
    )
    images: bool = Field(
        False, description="whether images of the datasets are uploaded; see to their licenses"
    )


class Sweep(Value):
    """A sweep: axes, seeds, exclusions, resources.

    In Python, single values, lists and the singular spelling are fine:
    `Sweep(name="x", dataset=Digits(), attacks=[BadNets(rate=0.01)], ..., seeds=3)`.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    question: str = ""
    datasets: tuple[Dataset, ...] = Field(min_length=1)
    models: tuple[Model, ...] = Field(min_length=1)
    attacks: tuple[Attack, ...] = Field(min_length=1)
    defenses: tuple[Defense, ...] = Field(min_length=1)
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    recipes: tuple[Recipe, ...] = Field((Recipe(),), min_length=1)
    exclude: tuple[dict[str, tuple[Scalar, ...]], ...] = ()
    resources: Resources = Resources()
    track: Track = Track()
    tune: Tune | None = None
    race: Race | None = Field(None, description="written as `seeds: {max: 20, until: separated}`")

    @model_validator(mode="before")
    @classmethod
    def _spellings(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        values = dict(given)
        for axis, plural in PLURAL.items():
            if axis in values:
                if plural in values:
                    raise ValueError(f"{axis} and {plural} are both given; keep one")
                values[plural] = values.pop(axis)
            if plural in values and not isinstance(values[plural], list | tuple):
                values[plural] = (values[plural],)
        if isinstance(values.get("recipes"), list | tuple):
            values["recipes"] = tuple(map(_recipe, values["recipes"]))
        seeds = values.get("seeds")
        if isinstance(seeds, Mapping | Race):
            values["race"] = Race.model_validate(seeds)
            seeds = values["race"].max
        if isinstance(seeds, int) and not isinstance(seeds, bool):
            if not 1 <= seeds <= MOST_SEEDS:
                raise ValueError(
                    f"seeds must be a number from 1 to {MOST_SEEDS:,}, or a list, got {seeds}"
                )
            values["seeds"] = tuple(range(seeds))
        for name in (*PLURAL.values(), "seeds", "exclude"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        values["exclude"] = tuple(
            {k: tuple(v) if isinstance(v, list | tuple) else (v,) for k, v in where.items()}
            for where in values.get("exclude", ())
        )
        for name, kind in (("track", Track), ("resources", Resources), ("tune", Tune)):
            if isinstance(values.get(name), Mapping):
                values[name] = kind.model_validate(values[name])
        return values

    @model_validator(mode="after")
    def _races_whole(self) -> Sweep:
        if self.race and any("seed" in where for where in self.exclude):
            raise ValueError(
                "exclude.seed cannot stand beside a race, whose defenses meet in every seed; give "
                "seeds a number, or remove the condition"
            )
        return self

    @model_validator(mode="after")
    def _no_duplicates(self) -> Sweep:
        for name in (*PLURAL.values(), "seeds"):
            values = getattr(self, name)
            for number, value in enumerate(values):
                if value in values[:number]:
                    shown = getattr(value, "label", value)
                    raise ValueError(f"duplicate in {name}: {shown} stands twice; keep one")
                _told_apart(value, values[:number])
        return self


def _told_apart(value: Any, before: Sequence[Any]) -> None:
    """Refuse two paths of one name: a label shows the last part of a path alone."""
    paths = paths_of(value) if isinstance(value, Method) else []
    for other in before if paths else ():
        alike = [(one.label, getattr(one, "rate", None)) for one in (other, value)]
        if alike[0] == alike[1] and paths_of(other) != paths:
            places = ", ".join(str(path) for _, path in (*paths_of(other), *paths))
            raise ValueError(
                f"{value.label} stands for several paths, {places}, which tables cannot tell "
                f"apart; rename one, or link to it by another name"
            )


def _recipe(given: Any) -> Any:
    """Return the recipe of a name, or of a `base` with changes; anything else as it is."""
    if not (isinstance(given, str) or (isinstance(given, Mapping) and "base" in given)):
        return given
    try:
        return Recipe.model_validate_json(json.dumps(resolved(given)))
    except SpecError as error:
        raise ValueError(str(error)) from None


def _plain(value: Method | Recipe) -> Any:
    if isinstance(value, Method):
        return {value.name: value.params()}
    return value.model_dump(mode="json")


def to_plain(sweep: Sweep) -> dict[str, Any]:
    """Return the resolved sweep as JSON values, every default written out."""
    return {
        "name": sweep.name,
        "question": sweep.question,
        **{plural: [_plain(v) for v in getattr(sweep, plural)] for plural in PLURAL.values()},
        "seeds": sweep.race.model_dump(mode="json") if sweep.race else list(sweep.seeds),
        "exclude": [{k: list(v) for k, v in where.items()} for where in sweep.exclude],
        "resources": sweep.resources.model_dump(mode="json"),
        "track": sweep.track.model_dump(mode="json"),
        "tune": sweep.tune.model_dump(mode="json") if sweep.tune else None,
    }


def restored(values: Mapping[str, Any]) -> Sweep:
    """Return the sweep of which `to_plain` gave these values.

    Raises:
        SpecError: if a method or a parameter of it is not there any more, or it is no sweep.
    """
    given = {name: value for name, value in values.items() if value is not None}
    try:
        for axis, plural in PLURAL.items():
            given[plural] = tuple(_restored(axis, entry) for entry in values[plural])
        for name, part in (("resources", Resources), ("track", Track), ("tune", Tune)):
            if name in given:
                given[name] = part.model_validate_json(json.dumps(given[name]))
        return Sweep.model_validate(given)
    except (SpecError, ImportError, KeyError, TypeError, AttributeError, ValueError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise SpecError(
            f"this version of raysweep cannot read the sweep as launched: {why}"
        ) from None


def _restored(axis: str, entry: Mapping[str, Any]) -> Method | Recipe:
    if axis == "recipe":
        return Recipe.model_validate_json(json.dumps(entry))
    ((name, params),) = entry.items()
    kind = load(PLURAL[axis], name)
    return kind.model_validate_json(json.dumps(params))


def check_layers(sweep: Sweep) -> None:
    """Refuse feature layers that a model of the sweep does not name, before any work.

    Raises:
        PlanError: names defense, model and layer.
    """
    for defense in sweep.defenses:
        layer = getattr(defense, "layer", None)
        for model in sweep.models:
            if layer is not None and layer not in model.LAYERS:
                with PlanError.on(defense, model):
                    raise PlanError(
                        f"defense {defense.name}: layer must be one of model {model.name}'s named "
                        f"layers {', '.join(model.LAYERS)}, got {layer!r}"
                    )


def foreign_modules(sweep: Sweep) -> set[str]:
    """Return the modules of a sweep's methods that other packages bring."""
    axes = (sweep.datasets, sweep.models, sweep.attacks, sweep.defenses)
    modules = {module for axis in axes for method in axis for module in method.modules()}
    return {module for module in modules if not module.startswith("raysweep.")}


def to_yaml(sweep: Sweep) -> str:
    """Return a sweep file that loads to the same value."""
    return dump({k: v for k, v in to_plain(sweep).items() if v not in (None, [], "")})
