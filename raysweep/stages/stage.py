"""One unit of work: its parameters and inputs, and the result of an attempt at it.

A stage kind is a file of this package, named by the kind. Its classes say everything of the kind:
parameters, version, resource, how much work it is, what it does, and what it leaves. Where one
kind does two things (`prepare` decodes a dataset, or prepares an attack) the file holds two
classes, told apart by their parameters.
"""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from raysweep import methods
from raysweep.datasets import Dataset
from raysweep.environment import masked
from raysweep.errors import StageError
from raysweep.identity import Json, kind_of, stage_key
from raysweep.methods import Method, Recipe, by_content
from raysweep.models import Model

if TYPE_CHECKING:
    from raysweep.stages.content import Product
    from raysweep.stages.inputs import Inputs

Resource = Literal["cpu", "gpu"]
Status = Literal["done", "failed", "damaged"]
Params = Mapping[str, Json]
Unseen = Mapping[str, Callable[[type[Method]], frozenset[str]]]
Identify = Callable[[Method | Recipe, frozenset[str]], Params]
AXES: tuple[tuple[str, methods.Role], ...] = (
    ("defense", "defenses"), ("attack", "attacks"), ("model", "models"), ("dataset", "datasets"),
)  # fmt: skip
Outcome = Mapping[str, Json]
ALL = "all"  # in place of the digest of a kept set, where nothing is removed
NOTHING = "nothing"  # what a decision produced that flags nothing
FORWARD = 1 / 3  # of a sample pass, which is forward and backward


def rates(attack: type[Method]) -> frozenset[str]:
    """Return the fields that a plan turns into counts: the counts are identity, the rates not."""
    return frozenset(attack.INSTEAD)


def identified(value: Method | Recipe, leave_out: frozenset[str]) -> Params:
    """Return the identity of a method, or all parameters of a recipe, as JSON values."""
    if isinstance(value, Method):
        return value.identity(leave_out=leave_out)
    parameters: dict[str, Json] = value.model_dump(mode="json")
    return parameters


class Work(ABC):
    """The work of a stage; its classes are frozen dataclasses whose fields are the parameters.

    Class variables:
        KIND: the stage kind, the name of the file.
        VERSION: raised whenever what the kind leaves changes.
        ORDER: where the kind stands in tables, ascending in the order of work.
        FIXED: parameters of the same value in every stage of the class.
        WITHOUT: field → the fields of the method in it that are no part of the identity.
        LONG: whether the work keeps checkpoints.
        GROWS: whether its outcome may add a training and an evaluation to the plan.
        GROWN: whether it is a training that an outcome may add.
        PACE: seconds per sample where no network is at work, by order of magnitude.
    """

    KIND: ClassVar[str]
    VERSION: ClassVar[int]
    ORDER: ClassVar[int]
    FIXED: ClassVar[Params] = {}
    WITHOUT: ClassVar[Unseen] = {}
    LONG: ClassVar[bool] = False
    GROWS: ClassVar[bool] = False
    GROWN: ClassVar[bool] = False
    PACE: ClassVar[float] = 0.02
    _forms: ClassVar[dict[str, list[type[Work]]]] = defaultdict(list)

    def __init_subclass__(cls) -> None:
        if hasattr(cls, "KIND") and not cls.__name__.startswith("_"):
            Work._forms[cls.KIND].append(cls)

    # Identity

    def params(self, identify: Identify = identified) -> dict[str, Json]:
        """Return the parameters as JSON values: what is hashed, and what a worker is told."""
        told = dict(self.FIXED)
        for entry in fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            if isinstance(value, Method | Recipe):
                unseen: frozenset[str] = frozenset()
                if isinstance(value, Method) and entry.name in self.WITHOUT:
                    unseen = self.WITHOUT[entry.name](type(value))
                told[entry.name] = identify(value, unseen)
            elif value is not None:
                told[entry.name] = value
        return told

    @classmethod
    def fits(cls, params: Params) -> bool:
        """Return whether parameters are those of this class."""
        named = {entry.name: entry for entry in fields(cls)}  # type: ignore[arg-type]
        needed = {name for name, entry in named.items() if entry.default is MISSING}
        fixed = all(params.get(name) == value for name, value in cls.FIXED.items())
        return fixed and needed <= params.keys() <= named.keys() | cls.FIXED.keys()

    @classmethod
    def restored(cls, params: Params) -> Self:
        """Return the work from its parameters.

        Raises:
            StageError: if a method here has another version than the plan was made with.
            FilesError: if a method's files here are others.
        """
        roles, given = dict(AXES), dict[str, object]()
        for entry in fields(cls):  # type: ignore[arg-type]
            value = params.get(entry.name)
            if entry.name in roles and value is not None:
                given[entry.name] = _method(roles[entry.name], json.dumps(value, sort_keys=True))
            elif entry.name == "recipe":
                given[entry.name] = Recipe.model_validate_json(json.dumps(value))
            elif value is not None:
                given[entry.name] = value
        return cls(**given)

    # What a plan must know

    @property
    def method(self) -> str:
        """Name of the method at work, for tables, streams and cost estimates."""
        present = (getattr(self, axis, None) for axis, _ in AXES)
        return next((one.name for one in present if one is not None), "")

    @property
    def decoded(self) -> Dataset | None:
        """The dataset that the work reads from its files, if it reads one."""
        dataset: Dataset | None = getattr(self, "dataset", None)
        return dataset

    @property
    def resource(self) -> Resource:
        """The class of workers that do this work; no part of the identity."""
        return "cpu"

    @property
    def threads(self) -> int:
        """Number of threads to compute with."""
        recipe: Recipe | None = getattr(self, "recipe", None)
        return recipe.threads if recipe else 1

    @property
    def network(self) -> Model | None:
        """The architecture that sample passes go through; none where a CPU counts samples."""
        model: Model | None = getattr(self, "model", None)
        if model is None or self.resource == "cpu":
            return None
        defense = getattr(self, "defense", None)
        return model if defense is None else defense.network(model)

    def passes(self, samples: int, num_classes: int) -> float:
        """Return the number of sample passes; of samples, where no network is at work."""
        del num_classes
        return samples

    @abstractmethod
    def perform(self, given: Inputs) -> Product:
        """Do the work."""


@lru_cache(maxsize=512)
def _method(role: methods.Role, identity: str) -> Method:
    """Return a method from its identity; each is built once a process."""
    restored: Method = methods.restore(role, json.loads(identity))
    return restored


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A stage as a worker receives it: JSON values alone.

    Attributes:
        key: the identity, `kind-<digits>`.
        params: what to do; part of the identity.
        inputs: role → key of an artifact; part of the identity.
        reads: role → key of an artifact whose content `params` already identify (a decision).
    """

    key: str
    params: Params
    inputs: Mapping[str, str]
    reads: Mapping[str, str]

    def unpacked(self) -> Work:
        """Return the work to do.

        Raises:
            StageError: if this code has no such kind, or another version of a method.
            FilesError: if a method's files here are others.
        """
        kind = kind_of(self.key)
        importlib.import_module(f"raysweep.stages.{kind}")
        for form in Work._forms[kind]:
            if form.fits(self.params):
                return form.restored(self.params)
        raise StageError(
            f"stage {self.key}: no work of kind {kind} has the parameters "
            f"{', '.join(sorted(self.params))}; run the same code on all hosts"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One unit of work of a plan.

    Attributes:
        key: the identity, `kind-<digits>`.
        work: what to do.
        params: its parameters as JSON values; part of the identity.
        inputs: role → key of an artifact; part of the identity.
        reads: role → key of an artifact whose content the parameters already identify.
    """

    key: str
    work: Work
    params: Params
    inputs: Mapping[str, str]
    reads: Mapping[str, str]

    @classmethod
    def of(
        cls,
        work: Work,
        inputs: Mapping[str, str],
        reads: Mapping[str, str] | None = None,
        identify: Identify = identified,
    ) -> Stage:
        """Return the stage of some work, with its key.

        Args:
            work: what to do.
            inputs: role → key of an artifact.
            reads: role → key of an artifact whose content the parameters already identify.
            identify: gives the identity of a method or recipe; a plan remembers identities.
        """
        params = work.params(identify)
        key = stage_key(work.KIND, work.VERSION, by_content(params), inputs)
        return cls(key=key, work=work, params=params, inputs=inputs, reads=reads or {})

    @property
    def kind(self) -> str:
        """The stage kind, the key's first word."""
        return kind_of(self.key)

    @property
    def resource(self) -> Resource:
        """The class of workers that do the work."""
        return self.work.resource

    @property
    def method(self) -> str:
        """Name of the method at work."""
        return self.work.method

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys of everything that must be stored before this stage can run."""
        return (*self.inputs.values(), *self.reads.values())

    def packed(self) -> Packed:
        """Return the stage as a worker receives it."""
        return Packed(key=self.key, params=self.params, inputs=self.inputs, reads=self.reads)


def in_order_of_work(stages: Iterable[Stage]) -> tuple[str, ...]:
    """Return the kinds of some stages, each once."""
    return tuple(kind for _, kind in sorted({(stage.work.ORDER, stage.kind) for stage in stages}))


def kinds() -> tuple[str, ...]:
    """Return every stage kind that has been imported, in the order of work."""
    order = {kind: forms[0].ORDER for kind, forms in Work._forms.items() if forms}
    return tuple(sorted(order, key=lambda kind: (order[kind], kind)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of one attempt at one stage.

    Attributes:
        key: the stage.
        status: done, failed, or stopped by a damaged input.
        host: where it ran.
        seconds: how long it took.
        pid: of the process.
        error: the error's type and message, if status is `failed`.
        trace: the error's traceback.
        damaged: the key of the input that must be recomputed first, if status is `damaged`.
        lasting: whether trying again is pointless, if status is `failed`.
        queue_seconds: how long it waited since its inputs were stored; None if that is not known.
    """

    key: str
    status: Status
    host: str = ""
    seconds: float = 0.0
    pid: int = 0
    error: str = ""
    trace: str = ""
    damaged: str = ""
    lasting: bool = True
    queue_seconds: float | None = None

    def __post_init__(self) -> None:
        """Leave no secret of the host's environment, and no sign that UTF-8 lacks, in the texts.

        A file's name may hold such signs: bytes that are no UTF-8.
        """
        for name in ("error", "trace"):
            text = masked(getattr(self, name)).encode("utf-8", "backslashreplace").decode("utf-8")
            object.__setattr__(self, name, text)
