"""Module: a network of one's own, a plain `torch.nn.Module` that is named by its import path.

A. Paszke et al.: PyTorch, NeurIPS 2019, arXiv:1912.01703, whose modules these are.

Where we differ: images are normalized before the module sees them. Its files, and the files that
they import, are part of the key of every training, so that a changed network is another model.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import ConfigDict, Field, JsonValue, field_validator, model_validator

from raysweep.datasets import Shape
from raysweep.errors import PlanError, StageError
from raysweep.methods.registry import cause
from raysweep.models import Model, normalized
from raysweep.models._network import fault_of, keeping, made, path_of, structure
from raysweep.models._source import is_stale, source

if TYPE_CHECKING:
    from torch import nn

GIVEN = ("num_classes", "in_channels", "shape")


class Module(Model):
    """`module` is called with num_classes, and with what else of the data its signature takes.

    That is in_channels, and shape, (C, H, W). Further parameters are passed on to it.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]
    TOY: ClassVar = {"module": "raysweep.testing.network:PlainNet", "head": "classifier.1"}
    MIN_SIDE: ClassVar[int] = 1

    module: str = Field(
        examples=["raysweep.testing.network:PlainNet"],
        description="class or function, as Python imports it: my_package.nets:MyNet",
    )
    head: str | None = Field(
        None,
        description="submodule that gives the logits, an nn.Linear; its input is the features; "
        "none: the only nn.Linear with num_classes outputs",
    )
    layers: tuple[str, ...] | None = Field(
        None,
        description="submodules whose outputs defenses may read; none: the children with weights, "
        "and the head",
    )

    @field_validator("module")
    @classmethod
    def _is_a_path(cls, value: str) -> str:
        if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", value):
            raise ValueError("must be an import path and a name, such as my_package.nets:MyNet")
        return value

    @field_validator("layers")
    @classmethod
    def _distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError(f"must name each submodule once, got {', '.join(value)}")
        return value

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        for name, value in self.arguments.items():
            self._can_be_recorded(value)
            if name in GIVEN:
                raise ValueError(f"{name} is taken from the dataset; leave it out")
            if hasattr(Model, name):
                raise ValueError(
                    f"{name} is a word of raysweep's own and cannot be passed on to {self.module}; "
                    f"name a function that passes it on"
                )
        try:
            self.content_digest()
            self._structure()
        except PlanError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def arguments(self) -> dict[str, JsonValue]:
        """The parameters that are passed on to `module`."""
        return dict(self.__pydantic_extra__ or {})

    @property
    def label(self) -> str:
        """The import path, followed by the parameters that are given."""
        return self.labeled(self.module, frozenset({"module"}))

    @property
    def HEAD(self) -> str:  # type: ignore[override]  # known when the network was made
        """The name of the head in the network that `build` returns."""
        return f"net.{self._structure()[0]}"

    @property
    def LAYERS(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names of the layers in the network that `build` returns, the head last."""
        return tuple(f"net.{name}" for name in self._structure()[1])

    def content_digest(self) -> str:
        """Return a digest of the module's files, and of the files that they import.

        Raises:
            PlanError: if the module is not there, or has changed since this process imported it.
        """
        found = source(path_of(self.module))
        if self.module not in _DIGESTS and not is_stale(found.files):
            _DIGESTS[self.module] = found.digest
        if _DIGESTS.get(self.module) != found.digest:
            files = ", ".join(map(str, found.files.values()))
            raise PlanError(
                f"model {self.module}: {files} changed after this process imported it; start "
                f"Python (in a notebook: the kernel) anew"
            )
        return found.digest

    def content_files(self) -> list[Path]:
        """Return the module's files."""
        return list(source(path_of(self.module)).files.values())

    def modules(self) -> frozenset[str]:
        """Return the names of the modules that hosts must have the same source of."""
        return super().modules() | source(path_of(self.module)).files.keys()

    def build(self, shape: Shape) -> nn.Module:
        """Return a fresh network."""
        return normalized(shape, made(self.module, self.arguments, shape))

    def check(self, shape: Shape) -> None:
        """Make sure that the network takes data of this shape, and that its head gives its output.

        Raises:
            StageError: if it does not; the message names the value, the rule and the remedy.
        """
        _check(self, shape)

    def _structure(self) -> tuple[str, tuple[str, ...]]:
        """Return the names of the head and of all layers, as the module calls them."""
        given = json.dumps(self.arguments, sort_keys=True)
        return structure(self.module, given, self.head, self.layers)


@cache
def _check(model: Module, shape: Shape) -> None:
    """Run two random images through a fresh network on the CPU, once a process."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = model.build(shape).eval()
        try:
            size = (2, shape.channels, shape.height, shape.width)
            seen: dict[str, Any] = {}
            for name in model.LAYERS:
                network.get_submodule(name).register_forward_hook(keeping(seen, name))
            logits = network(torch.rand(size))
        except Exception as error:
            why = cause(error, path_of(model.module))
            raise StageError(
                f"model {model.module}: cannot take images of {shape.channels} channels, "
                f"{shape.height} x {shape.width} pixels: {why}; let its signature take in_channels "
                f"or shape, or take another dataset"
            ) from error
    if fault := fault_of(logits, seen, model.HEAD, model.LAYERS, shape.num_classes):
        raise StageError(f"model {model.module}: {fault}")


# What each module's files were when this process first asked: it imports them once.
_DIGESTS: dict[str, str] = {}
