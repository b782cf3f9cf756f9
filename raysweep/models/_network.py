"""The plain networks that a sweep file names: how they are imported, called and looked into."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from raysweep.datasets import Shape
from raysweep.errors import PlanError
from raysweep.methods.registry import cause

if TYPE_CHECKING:
    import torch
    from torch import nn

# An unlikely number of units of a hidden layer, so that the head is told by it.
PROBE = Shape(channels=3, height=32, width=32, num_classes=97, mean=(0.0,) * 3, std=(1.0,) * 3)
SHOWN = 20  # names in an error


def path_of(module: str) -> str:
    """Return the import path of `path:name`."""
    return module.partition(":")[0]


@cache
def _callable(module: str) -> Callable[..., Any]:
    """Import a class or function.

    Raises:
        PlanError: if it cannot be imported, or is neither.
    """
    path, _, name = module.partition(":")
    try:
        value: Any = importlib.import_module(path)
    except Exception as error:
        raise PlanError(
            f"module {path!r} cannot be imported: {cause(error, path)}; install what it needs"
        ) from error
    for part in name.split("."):
        if not hasattr(value, part):
            own = [n for n, v in vars(value).items() if callable(v) and n[0] != "_"]
            raise PlanError(f"module {path!r} has no {name!r}; {_near(name, own)}")
        value = getattr(value, part)
    if not callable(value):
        raise PlanError(f"{module!r} must be a class or a function, got {type(value).__name__}")
    made: Callable[..., Any] = value
    return made


def made(module: str, arguments: dict[str, JsonValue], shape: Shape) -> nn.Module:
    """Call a class or function for data of some shape.

    Raises:
        PlanError: if its signature does not fit, it raises an error, or makes no network.
    """
    from torch import nn

    make = _callable(module)
    offered: dict[str, Any] = {
        "num_classes": shape.num_classes,
        "in_channels": shape.channels,
        "shape": (shape.channels, shape.height, shape.width),
    }
    signature = inspect.signature(make)
    named = {
        p.name
        for p in signature.parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    if "num_classes" not in named and not open_ended:
        raise PlanError(
            f"{module} must take num_classes, its signature is {signature}; name a function that "
            f"takes num_classes and makes the network"
        )
    given = {n: v for n, v in offered.items() if n in named or (n == "num_classes")}
    try:
        signature.bind(**given, **arguments)
    except TypeError as error:
        raise PlanError(
            f"{module} cannot be called: {error}; its parameters are {signature}"
        ) from None
    try:
        network = make(**given, **arguments)
    except Exception as error:
        raise PlanError(
            f"{module} raised an error as it was called with {_shown({**given, **arguments})}: "
            f"{cause(error, path_of(module))}; change the arguments, or the network"
        ) from error
    if not isinstance(network, nn.Module):
        raise PlanError(f"{module} must make a torch.nn.Module, got {type(network).__name__}")
    return network


def _near(word: str, known: list[str]) -> str:
    """Return a hint at the nearest known word, and at some of the others."""
    close = difflib.get_close_matches(word, known, n=1)
    every = f"{', '.join(known[:SHOWN]) or 'none'}{', …' * (len(known) > SHOWN)}"
    return f"did you mean {close[0]!r}? (known: {every})" if close else f"known: {every}"


def _shown(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


@cache
def structure(
    module: str, arguments: str, head: str | None, layers: tuple[str, ...] | None
) -> tuple[str, tuple[str, ...]]:
    """Return the names of head and layers of the network, made once without weights.

    Raises:
        PlanError: if one of them is not there, or they cannot be told; the message lists what is.
    """
    import torch

    with torch.device("meta"):
        network = made(module, json.loads(arguments), PROBE)
    head = _head(module, network, head)
    if layers is None:
        return head, _default_layers(network, head)
    known = {name for name, _ in network.named_modules() if name}
    for name in layers:
        if name not in known:
            raise PlanError(
                f"{module}: layers must name submodules, got {name!r}; "
                f"{_near(name, [part for part in sorted(known) if part.count('.') < 2])}"
            )
    return head, (*(name for name in layers if name != head), head)


def _head(module: str, network: nn.Module, head: str | None) -> str:
    from torch import nn

    dense = {n: part for n, part in network.named_modules() if isinstance(part, nn.Linear)}
    every = ", ".join(f"{n} ({part.out_features})" for n, part in dense.items()) or "none"
    if head is not None:
        if head not in dense:
            raise PlanError(
                f"{module}: head must name the nn.Linear that gives the logits, got {head!r}; its "
                f"nn.Linear submodules, with their outputs, are: {every}"
            )
        return head
    fit: list[str] = [n for n, part in dense.items() if part.out_features == PROBE.num_classes]
    if len(fit) != 1:
        raise PlanError(
            f"{module}: head must be given, since {len(fit)} nn.Linear have num_classes outputs "
            f"(it was tried with {PROBE.num_classes}); its nn.Linear submodules, with their "
            f"outputs, are: {every}"
        )
    return fit[0]


def _default_layers(network: nn.Module, head: str) -> tuple[str, ...]:
    """Return the children with weights, within wrappers of a single one; then the head."""
    part, children = network, dict(_children("", network))
    while len(children) == 1 and head not in children:
        ((name, part),) = children.items()
        children = dict(_children(f"{name}.", part))
    return (*(name for name in children if head != name and not head.startswith(f"{name}.")), head)


def _children(prefix: str, part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children with weights; of a list, which is never called itself, its entries."""
    from torch import nn

    for name, child in part.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _children(f"{prefix}{name}.", child)
        elif any(weights.ndim > 1 for weights in child.parameters()):
            yield f"{prefix}{name}", child


def keeping(seen: dict[str, Any], name: str) -> Callable[..., None]:
    """Return a forward hook that keeps a layer's input and output under a name."""

    def hook(layer: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        del layer
        seen[name] = (given[0] if given else None, made)

    return hook


def fault_of(
    logits: torch.Tensor, seen: dict[str, Any], head: str, layers: tuple[str, ...], classes: int
) -> str:
    """Return the fault of a forward pass of two images, and the remedy; empty if there is none."""
    import torch

    if not isinstance(logits, torch.Tensor) or logits.shape != (2, classes):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        return f"must give logits of shape (2, {classes}) for 2 images, got {got}"
    for name in layers:
        rows = seen.get(name, (None, None))[1]
        if not isinstance(rows, torch.Tensor) or len(rows) != 2:
            return (
                f"layer {name.removeprefix('net.')!r} gives no tensor with a row for each image; "
                f"name others: layers: [...]"
            )
    features, made = seen[head]
    if features.ndim != 2 or not torch.equal(made, logits):
        return (
            f"head {head.removeprefix('net.')!r} must give the logits that the network returns, of "
            f"features of shape (B, D); return its output as it is, without softmax, or name the "
            f"last nn.Linear"
        )
    return ""
