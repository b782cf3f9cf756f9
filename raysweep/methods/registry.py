"""All methods by name: raysweep's own files, and those that other packages bring.

`available` scans for methods without importing them; `load` imports one. Other packages add theirs
with entry points in the groups `raysweep.attacks`, `raysweep.defenses`, `raysweep.datasets` and
`raysweep.models`; the entry point's name must be the name of the module that it names. A plugin
that cannot be used is refused where a sweep names it, and is one warning elsewhere.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
import json
import socket
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from raysweep.errors import FilesError, PlanError, PluginWarning, SpecError, StageError
from raysweep.methods.method import Method, path_fields

Role = Literal["attacks", "defenses", "datasets", "models"]
ROLES: tuple[Role, ...] = get_args(Role)
OWN = "raysweep"


@dataclass(frozen=True, kw_only=True)
class _Offer:
    """A module that brings a method, and the package, with its version, that brings the module."""

    module: str
    package: str


@cache
def _offers(role: Role) -> dict[str, tuple[_Offer, ...]]:
    """Return name → what brings it; more than one where packages contradict each other."""
    folder = Path(__file__).parent.parent / role
    found = {
        path.stem: (_Offer(module=f"raysweep.{role}.{path.stem}", package=OWN),)
        for path in sorted(folder.glob("*.py"))
        if not path.stem.startswith("_")
    }
    for point in importlib.metadata.entry_points(group=f"raysweep.{role}"):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"
        offer, before = _Offer(module=point.module, package=package), found.get(point.name, ())
        if any(other.package == OWN for other in before):
            _warn(
                package,
                f"{_named(role, point.name, offer)} has the name of raysweep's own {role[:-1]}, "
                f"which is used in its place; rename its module and its entry point, or uninstall "
                f"the package",
            )
        elif offer not in before:
            found[point.name] = (*before, offer)
    return dict(sorted(found.items()))


@cache
def available(role: Role) -> dict[str, str]:
    """Return name → module of every method of a role, found without importing any."""
    _offers.cache_clear()
    return {name: offers[0].module for name, offers in _offers(role).items()}


def usable(role: Role) -> dict[str, type[Method]]:
    """Return name → class of every method of a role; one that cannot be used is a warning."""
    found = {}
    for name in available(role):
        try:
            found[name] = load(role, name)
        except SpecError as error:
            _warn(_offers(role)[name][0].package, str(error))
    return found


@cache
def load(role: Role, name: str) -> type[Method]:
    """Import a method's class.

    Raises:
        SpecError: if there is no such method, the message names the nearest one; or if it cannot
            be used, the message names the package that brings it, the cause and the remedy.
    """
    modules = available(role)
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SpecError(
            f"unknown {role[:-1]} {name!r}{hint} (known: {', '.join(modules)}); one of your own is "
            f"found by an entry point of an installed package, in the group raysweep.{role}"
        )
    offers = _offers(role)[name]
    if len(offers) > 1:
        both = ", ".join(f"{offer.package} (module {offer.module})" for offer in offers)
        raise SpecError(f"{role[:-1]} {name!r} is brought by several packages, {both}; keep one")
    (offer,) = offers
    try:
        module = importlib.import_module(offer.module)
    except (Exception, SystemExit) as error:  # whatever another package does wrong is told
        raise SpecError(
            f"{_named(role, name, offer)} cannot be imported: {cause(error, offer.module)}; "
            f"install what it needs, or repair or uninstall the package"
        ) from error
    found, fault = _class_of(role, name, module)
    if found is None:
        raise SpecError(f"{_named(role, name, offer)} cannot be used: {fault}")
    return found


def cause(error: BaseException, module: str) -> str:
    """Return an error's text with the last line of a module's package that led to it.

    Args:
        error: as it was caught.
        module: name of the module; its package is the first part.
    """
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if isinstance(error, SyntaxError):
        return f"{text} ({error.filename}, line {error.lineno})" if error.filename else text
    top = module.partition(".")[0]
    lines = [
        f"{frame.f_code.co_filename}, line {line}, in {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] == top
    ]
    return f"{text} ({lines[-1]})" if lines else text


def _named(role: Role, name: str, offer: _Offer) -> str:
    return f"{role[:-1]} {name!r} of package {offer.package} (module {offer.module})"


def _warn(package: str, text: str) -> None:
    """Warn once a process, at the package and not at a line of this one."""
    if text not in _WARNED:
        _WARNED.add(text)
        warnings.warn_explicit(text, PluginWarning, package, 1)


_WARNED: set[str] = set()


def _class_of(role: Role, name: str, module: ModuleType) -> tuple[type[Method] | None, str]:
    """Return a module's method, or None and the reason why it has none that can be used."""
    axis = role[:-1]
    base: type[Method] = getattr(importlib.import_module(f"raysweep.{role}"), axis.capitalize())
    derive = f"derive one class from raysweep.{role}.{base.__name__}"
    own = [
        v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__
    ]
    kinds = [kind for kind in own if issubclass(kind, Method)]
    if len(kinds) != 1:
        networks = [kind.__name__ for kind in own if _is_network(kind)]
        plain = (
            f"; its {networks[0]} is a plain torch.nn.Module, which a sweep file names without an "
            f'entry point: model: {{module: "{module.__name__}:{networks[0]}"}}'
            if networks and not kinds
            else ""
        )
        names = [kind.__name__ for kind in kinds]
        return None, f"it must define exactly one {axis} class, found {names}; {derive}{plain}"
    (kind,) = kinds
    if not issubclass(kind, base):
        return None, f"{kind.__name__} is no {axis}; {derive}, or take another entry point group"
    if name != module.__name__.rpartition(".")[2]:
        return None, "its entry point must have the name of its module; rename one of them"
    lacking = sorted(
        {*_unset(kind), *(kind.__abstractmethods__ if inspect.isabstract(kind) else ())}
    )
    if lacking:
        where = f"see raysweep.{role}.{base.__name__}"
        return None, f"{kind.__name__} must define {', '.join(lacking)}; {where}"
    return kind, ""


def _unset(kind: type[Method]) -> list[str]:
    """Return the class variables that bases declare and nothing gives a value."""
    return [name for name in kind.__class_vars__ if not hasattr(kind, name)]


def _is_network(kind: type) -> bool:
    return any(
        f"{c.__module__}.{c.__name__}" == "torch.nn.modules.module.Module" for c in kind.__mro__
    )


def by_content(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as they enter keys: without paths, since a digest of the files is there.

    Args:
        params: identities by `dataset`, `model`, `attack` and `defense`; anything else is kept.
    """
    content = dict(params)
    for role in ROLES:
        axis = role[:-1]
        if axis in content and (fields := path_fields(load(role, content[axis]["name"]))):
            content[axis] = {k: v for k, v in content[axis].items() if k not in fields}
    return content


def restore(role: Role, identity: dict[str, Any]) -> Any:
    """Rebuild a method from `identity()`, as a stage does that received it as JSON.

    Of the parameters in `INSTEAD` it has those that the identity holds.

    Raises:
        SpecError: if there is no such method.
        StageError: if the method here has another version: it would give other results.
        FilesError: if its files on this host are not those of where it was planned.
    """
    params = {k: v for k, v in identity.items() if k not in ("name", "version", "content_digest")}
    kind = load(role, identity["name"])
    check_version(kind, "VERSION", identity["version"])
    method: Method = kind.model_validate_json(json.dumps(params))
    if "content_digest" in identity:
        _check_content(method, identity["content_digest"])
    return method.without(kind.INSTEAD.keys() - params.keys())


def check_version(method: type[Method], which: str, asked: int) -> None:
    """Refuse a method whose `VERSION`, or other class variable, is not the one in a stage's key.

    Raises:
        StageError: names the method, both versions, and the remedy.
    """
    have = getattr(method, which)
    if have != asked:
        name = method.__module__.rpartition(".")[2]
        raise StageError(
            f"method {name}: the stage was planned with {which} {asked}, and {name} has {which} "
            f"{have} on host {socket.gethostname()}; run the same code there as where the sweep "
            f"was launched, or launch again to plan with {have}"
        )


def _check_content(method: Method, planned: str) -> None:
    try:
        same = method.content_digest() == planned
    except PlanError as error:
        raise FilesError(str(error)) from None
    if not same:
        where = ", ".join(str(path) for path in method.content_files())
        raise FilesError(
            f"{method.name}: {where} differs from what was planned; give all hosts the same files, "
            f"or plan again if they have changed"
        )
