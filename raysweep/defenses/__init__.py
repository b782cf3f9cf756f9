"""Defenses: the knowledge that each needs, its outputs, and the decision on its scores.

A defense has up to three steps, and the plan derives the stages from which of them it has:

1. `run` (expensive): scores, statistics, a verdict's evidence or a model, from what `needs` lists.
   A defense may cut it into `parts` → `shard` (mapped over the cluster) → `run` (reduces).
2. `decide` (cheap, pure): decision parameters turn the evidence into flags. Stored scores can be
   decided again at no cost.
3. `repair` (optional, `REPAIRS`): a model made after the decision, keyed by what was decided.

The model that is evaluated: that of `repair`, else that of `run`, else, where training samples are
flagged, a retraining on what is kept, else the victim.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from raysweep.arrays import FloatArray as FloatArray
from raysweep.datasets import ImageSet, IntArray, Shape
from raysweep.errors import KnowledgeError
from raysweep.methods import Method
from raysweep.methods.context import Arrays, Context
from raysweep.methods.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from raysweep.models import Model


Flags = NDArray[np.bool_]

Need = Literal[
    "training_set",  # the poisoned images and labels, as a defender receives them
    "victim",  # the model trained on them
    "features",  # (N, D) float32: the training set at `layer` of the victim
    "clean_set",  # the reserved clean set with true labels
    "poison_rate",  # oracle: realized poisoned / all
    "poison_mask",  # oracle: which training samples are poisoned
    "cover_mask",  # oracle: which training samples are covers
    "target_class",  # oracle: the attack's target
    "test_success",  # oracle: a network → its ASR, on the very inputs that it is reported on
    "trigger",  # oracle: (C, H, W), what the attack adds to a gray image at test time
    "removed_count",  # how many samples another defense of the sweep removed
]
Gift = Literal["train_scores", "input_scores", "model", "verdict"]
ORACLES: tuple[Need, ...] = (
    "poison_rate", "poison_mask", "cover_mask", "target_class", "test_success", "trigger",
)  # fmt: skip
Scorer = Callable[["torch.Tensor", IntArray], FloatArray]


class _Declared:
    """Attribute access that is checked against the declared needs."""

    def __init__(self, owner: str, declared: frozenset[str], values: Mapping[str, Any]) -> None:
        self._owner = owner
        self._declared = declared
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._values and name in get_args(Need):
            raise KnowledgeError(
                f"{self._owner} read {name!r}, which its needs do not list "
                f"(declared: {', '.join(sorted(self._declared)) or 'nothing'}); "
                f"add it to needs if the method's paper grants it"
            )
        if name not in self._values:
            raise KnowledgeError(
                f"{self._owner} read {name!r}, which is not given here, and is no need; "
                f"given are: {', '.join(sorted(self._values))}; "
                f"needs are: {', '.join(get_args(Need))}"
            )
        return self._values[name]

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._values})


class DefenseInputs(_Declared):
    """The inputs of `run`, `shard` and `repair`: the declared needs, and always the setting."""

    if TYPE_CHECKING:
        training_set: ImageSet
        victim: nn.Module  # a private copy, in eval mode, on the context's device
        features: FloatArray  # (N, D) float32
        clean_set: ImageSet
        poison_rate: float
        poison_mask: Flags  # (N,)
        cover_mask: Flags  # (N,)
        target_class: int
        test_success: Callable[[nn.Module], float]
        trigger: NDArray[np.float32]  # (C, H, W)
        model: Model  # the architecture
        shape: Shape
        recipe: Recipe
        labels: IntArray  # (N,) given labels of the training set
        shards: Sequence[Arrays]  # what `shard` gave, in the order of `parts`, as far as done
        decision: Decision  # for `repair`
        found: Arrays  # for `repair`: `Findings.kept` of `run`


class Evidence(_Declared):
    """The inputs of `decide`: scores and statistics of `run`, and declared knowledge."""

    if TYPE_CHECKING:
        labels: IntArray  # (N,) given labels of the training set
        num_classes: int
        train_scores: FloatArray  # (N,), if given
        reference_scores: FloatArray  # (S,) input scores of the reserved clean set, if given
        statistics: Arrays
        poison_rate: float
        poison_mask: Flags
        removed_count: int

    @cached_property
    def highest_first(self) -> dict[int, IntArray]:
        """Class → its rows, the highest train score first; sorted once for many decisions."""
        classes = {int(label): np.flatnonzero(self.labels == label)
                   for label in np.unique(self.labels)}  # fmt: skip
        scores = self.train_scores
        return {c: rows[np.argsort(-scores[rows], kind="stable")] for c, rows in classes.items()}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line that a defense draws of its own run, (T,) and (T,); titles of axes name their units.

    The report draws curves of the same titles together.
    """

    x: FloatArray
    y: FloatArray
    x_title: str
    y_title: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The result of `run`. Scores: one float per sample, higher = more suspicious.

    Attributes:
        train_scores: (N,), if the defense gives `train_scores`.
        statistics: named arrays that `decide` reads (per class, per sample, ...), stored.
        score_inputs: scores a batch of float images in [0, 1], (B, C, H, W) with their ids (B,),
            → (B,); if the defense gives `input_scores`. The stage applies it to the reserved clean
            set and to clean and triggered test inputs; which is which the defense never learns.
        model: a state dict, if the defense gives `model` and does not repair.
        calibration: rows of the reserved clean set that may calibrate a threshold, because
            `score_inputs` was not fitted on them; none: all.
        trigger: (K, C, H, W) floats in [0, 1], an estimated trigger per class, for the report.
        kept: arrays that `repair` is given as `found`.
        facts: named numbers about the run itself (agreement of halves, models needed), shown in
            the report and never judged.
        losses: (T, N) of each training sample after each of T steps of the method, for the report.
        spaces: named representations of the training samples, (N, d); the report tells the
            separability of poison in each; d stays small (principal axes).
        curves: named curves about the run itself, for the report; never judged.
        enough: whether the parts so far suffice; read at `pauses` alone.
    """

    train_scores: FloatArray | None = None
    statistics: Arrays = field(default_factory=dict)
    score_inputs: Scorer | None = None
    model: dict[str, torch.Tensor] | None = None
    calibration: IntArray | None = None
    trigger: NDArray[np.float32] | None = None
    kept: Arrays = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)
    losses: FloatArray | None = None
    spaces: Mapping[str, FloatArray] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    enough: bool = True


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The result of `decide`.

    Attributes:
        flags: (N,) training samples held to be poisoned.
        threshold: inputs that score above it are rejected.
        classes: the classes held to be backdoor targets, for a verdict.
        class_scores: (K,) anomaly of each class, higher = more suspicious, for a verdict.
        p_value: of the verdict, where the method has one.
        facts: named numbers about the decision itself, shown beside those of the run.
    """

    flags: Flags | None = None
    threshold: float | None = None
    classes: tuple[int, ...] | None = None
    class_scores: FloatArray | None = None
    p_value: float | None = None
    facts: Mapping[str, float] = field(default_factory=dict)


class Defense(Method):
    """A defense; its kind in the tables follows from what it needs and gives.

    Class variables:
        RUN_VERSION: raised instead of `VERSION` where results of `run` change and results of
            shards do not, so that stored shards are kept.
    """

    REPAIRS: ClassVar[bool] = False
    CONTROL: ClassVar[bool] = False
    RUN_VERSION: ClassVar[int] = 1

    @abstractmethod
    def needs(self) -> frozenset[Need]:
        """Return everything that this defense may know, with these parameters."""

    def gives(self) -> frozenset[Gift]:
        """Return everything that this defense gives, with these parameters.

        A defense that gives nothing but needs something only measures: `run` finds facts and
        curves, and the victim is evaluated as it is.
        """
        return frozenset()

    def badges(self) -> tuple[str, ...]:
        """Return the badges, among them one for each oracle that is declared."""
        oracles = [name for name in ORACLES if name in self.needs()]
        return (*self.BADGES, *(f"oracle: {name.replace('_', ' ')}" for name in oracles))

    @property
    def kind(self) -> str:
        """The kind of this defense in a table, derived from what it gives: filter, detector, ..."""
        names, gives = [], self.gives()
        if self.CONTROL or not gives:
            return "control"
        if "verdict" in gives:
            names.append("inspector")
        if "model" in gives:
            names.append("repair" if "victim" in self.needs() else "robust training")
        elif "train_scores" in gives:
            names.append("filter")
        if "input_scores" in gives:
            names.append("detector")
        return " + ".join(names)

    def least_clean(self) -> int:
        """Return the fewest reserved clean images that `run` works with, if it reads them."""
        return 1

    def least_of_class(self) -> int:
        """Return the fewest reserved clean images of a class that `run` can work with; 0: none."""
        return 0

    def parts(self, num_classes: int) -> tuple[str, ...]:
        """Return the names of the independent parts of `run`'s work; none: it is not cut."""
        del num_classes
        return ()

    def pauses(self, num_classes: int) -> tuple[int, ...]:
        """Return the numbers of parts, ascending, after which `run` is asked if they are enough.

        Without pauses all parts are done. The parts after a pause are planned once `run` says no.
        """
        del num_classes
        return ()

    def forecast(self, samples: int) -> str:
        """Return a sentence on the work ahead for a set of `samples`, which a plan shows; or ""."""
        del samples
        return ""

    def caution(self, model: Model, shape: Shape) -> str:
        """Return a sentence on what is doubtful for a model, which a plan shows; or ""."""
        del model, shape
        return ""

    def passes(self, samples: int, epochs: int, num_classes: int) -> float:
        """Return the approximate number of sample passes of all parts together, for the plan.

        Args:
            samples: of the training set.
            epochs: of the recipe.
            num_classes: of the dataset.

        A sample pass is one sample once forward and backward through `network`. Unless a method
        says otherwise: every training sample forward once, which is a third of a pass.
        """
        del epochs, num_classes
        return samples / 3

    def network(self, model: Model) -> Model:
        """Return the architecture that `passes` go through: the sweep's, or one of its own."""
        return model

    def shard(self, part: str, inputs: DefenseInputs, ctx: Context) -> Arrays:
        """Do one of `parts`; its key does not depend on the number of parts."""
        raise NotImplementedError(f"{self.name} lists parts but defines no shard")

    def run(self, inputs: DefenseInputs, ctx: Context) -> Findings:
        """Do the expensive part, or reduce `inputs.shards`."""
        del inputs, ctx
        return Findings()

    def decide(self, evidence: Evidence) -> Decision:
        """Turn evidence into flags; pure, cheap, and the only reader of decision parameters."""
        del evidence
        return Decision()

    def repair(self, inputs: DefenseInputs, ctx: Context) -> dict[str, torch.Tensor]:
        """Return the repaired model's state dict; only if `REPAIRS`.

        Not called where the decision flags nothing: the victim stands, or for a robust training
        the model that `run` gave.
        """
        raise NotImplementedError(f"{self.name} declares REPAIRS but defines no repair")
