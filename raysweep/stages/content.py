"""Contents of artifacts, typed, both ways: each packs itself, and is unpacked here alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np

from raysweep.arrays import WEIGHTS, Array, Bools, IntArray
from raysweep.datasets import ImageSet, Shape
from raysweep.defenses import Curve, Decision, Findings
from raysweep.identity import digest, finite_or_none
from raysweep.stages.stage import NOTHING, Outcome

if TYPE_CHECKING:
    import torch

PARTS = ("train", "clean", "test")  # of a decoded dataset
SCORED = ("reference", "clean", "triggered")  # sets of inputs that a detector scores


@dataclass(frozen=True, kw_only=True)
class Product:
    """The product of a stage, as the store keeps it.

    Attributes:
        arrays: by name, in one object of the store.
        outcome: small JSON values, in the manifest.
        info: the same, of how it was made: they are no part of the result's content.
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    outcome: Outcome = field(default_factory=dict)
    info: Outcome = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Data:
    """A decoded dataset.

    Attributes:
        train: the training set.
        clean: the reserved clean set.
        test: the evaluation set.
        train_rows: (N,) where the images of `train` stand in the training files.
        test_rows: (E,) where the images of `test` stand in the test files.
        shape: of an image, with the number of classes.
        classes: names of the classes.
    """

    train: ImageSet
    clean: ImageSet
    test: ImageSet
    train_rows: IntArray
    test_rows: IntArray
    shape: Shape
    classes: tuple[str, ...]

    def packed(self) -> Product:
        """Return the dataset as an artifact."""
        arrays: dict[str, Array] = {}
        for name in PARTS:
            part: ImageSet = getattr(self, name)
            arrays[f"{name}_images"] = part.images.contiguous().numpy()
            arrays[f"{name}_labels"] = part.labels
        arrays |= {"train_rows": self.train_rows, "test_rows": self.test_rows}
        outcome: Outcome = {"shape": asdict(self.shape), "classes": list(self.classes)}
        return Product(arrays=arrays, outcome=outcome)

    @classmethod
    def unpacked(cls, arrays: Mapping[str, Array], outcome: Outcome) -> Self:
        """Return the dataset that an artifact holds; its arrays are copies."""
        import torch

        facts = cast("dict[str, Any]", outcome["shape"])
        parts = {
            name: ImageSet(
                images=torch.from_numpy(np.array(arrays[f"{name}_images"])),
                labels=np.array(arrays[f"{name}_labels"]),
            )
            for name in PARTS
        }
        return cls(
            **parts,
            train_rows=np.array(arrays["train_rows"]),
            test_rows=np.array(arrays["test_rows"]),
            shape=Shape(**{**facts, "mean": tuple(facts["mean"]), "std": tuple(facts["std"])}),
            classes=tuple(cast("list[str]", outcome["classes"])),
        )


@dataclass(frozen=True, kw_only=True)
class Poison:
    """The samples of a training set that an attack replaced.

    Attributes:
        poison_rows: (P,) rows of the poisoned samples.
        cover_rows: (V,) rows of the cover samples.
        poison_images: (P, C, H, W) images in place of the originals.
        cover_images: (V, C, H, W).
        poison_labels: (P,) labels in place of the originals.
    """

    poison_rows: IntArray
    cover_rows: IntArray
    poison_images: Array
    cover_images: Array
    poison_labels: IntArray

    def packed(self, original: IntArray) -> Product:
        """Return the poison as an artifact; `original` are the labels (P,) before the attack."""
        arrays = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        relabeled = int((self.poison_labels != original).sum())
        return Product(
            arrays=arrays,
            outcome={
                "poison": len(self.poison_rows),
                "cover": len(self.cover_rows),
                "relabeled": relabeled,
            },
        )

    @classmethod
    def unpacked(cls, arrays: Mapping[str, Array]) -> Self:
        """Return the poison that an artifact holds; its arrays are copies."""
        return cls(**{entry.name: np.array(arrays[entry.name]) for entry in fields(cls)})

    def applied(self, clean: ImageSet) -> ImageSet:
        """Return the poisoned training set."""
        import torch

        images = clean.images.clone()
        images[torch.from_numpy(self.poison_rows)] = torch.from_numpy(self.poison_images)
        images[torch.from_numpy(self.cover_rows)] = torch.from_numpy(self.cover_images)
        return ImageSet(images=images, labels=self.labels(clean.labels))

    def labels(self, clean: IntArray) -> IntArray:
        """Return the labels (N,) of the poisoned training set."""
        given = clean.copy()
        given[self.poison_rows] = self.poison_labels
        return given


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predicted classes (E,) of clean and triggered test inputs, and a few pictures of both."""

    clean: IntArray
    triggered: IntArray
    pictures: tuple[Array, Array] | None = None

    def packed(self) -> Product:
        """Return the predictions as an artifact."""
        arrays: dict[str, Array] = {
            "clean_predicted": self.clean, "triggered_predicted": self.triggered,
        }  # fmt: skip
        if self.pictures is not None:
            arrays["pictures_clean"], arrays["pictures_triggered"] = self.pictures
        return Product(arrays=arrays)

    @classmethod
    def unpacked(cls, arrays: Mapping[str, Array]) -> Self:
        """Return the predictions that an artifact holds."""
        shown = [
            arrays[name] for name in ("pictures_clean", "pictures_triggered") if name in arrays
        ]
        return cls(
            clean=arrays["clean_predicted"], triggered=arrays["triggered_predicted"],
            pictures=(shown[0], shown[1]) if shown else None,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StoredFindings:
    """The stored form of a defense's `Findings`: in place of a scorer it has scores.

    Attributes:
        findings: as the defense gave them, without `score_inputs` and `calibration`.
        input_scores: `reference`, `clean`, `triggered` → float32 scores of these inputs; empty if
            the defense scores no inputs.
    """

    findings: Findings
    input_scores: Mapping[str, Array] = field(default_factory=dict)

    def packed(self) -> Product:
        """Return the findings as an artifact."""
        from raysweep.training import weights

        found = self.findings
        arrays = {f"statistics.{n}": np.asarray(a) for n, a in found.statistics.items()}
        arrays |= {f"kept.{n}": np.asarray(a) for n, a in found.kept.items()}
        arrays |= {f"spaces.{n}": np.asarray(a, np.float32) for n, a in found.spaces.items()}
        for name in ("train_scores", "trigger", "losses"):
            if (values := getattr(found, name)) is not None:
                arrays[name] = np.asarray(values, np.float32)
        arrays |= weights.packed(found.model or {})
        curves = found.curves.items()
        arrays |= {f"curve.{n}": np.stack([c.x, c.y], dtype=np.float32) for n, c in curves}
        arrays |= {f"{name}_scores": scores for name, scores in self.input_scores.items()}
        facts = {name: finite_or_none(value) for name, value in found.facts.items()}
        titles = {name: [curve.x_title, curve.y_title] for name, curve in curves}
        outcome: Outcome = {"enough": found.enough, "facts": facts, "curves": titles}
        return Product(arrays=arrays, outcome=outcome)

    @classmethod
    def unpacked(cls, arrays: Mapping[str, Array], outcome: Outcome) -> Self:
        """Return the findings that an artifact holds; a fact that is undefined is NaN."""

        def below(prefix: str) -> dict[str, Array]:
            cut = len(prefix)
            return {name[cut:]: a for name, a in arrays.items() if name.startswith(prefix)}

        titles = cast("dict[str, list[str]]", outcome.get("curves", {}))
        facts = cast("dict[str, float | None]", outcome.get("facts", {}))
        findings = Findings(
            train_scores=arrays.get("train_scores"),
            statistics=below("statistics."),
            model=_model(arrays),
            trigger=arrays.get("trigger"),
            kept=below("kept."),
            facts={name: np.nan if v is None else float(v) for name, v in facts.items()},
            losses=arrays.get("losses"),
            spaces=below("spaces."),
            curves={
                name: Curve(
                    x=points[0], y=points[1], x_title=titles[name][0], y_title=titles[name][1]
                )
                for name, points in below("curve.").items()
            },
            enough=bool(outcome.get("enough", True)),
        )
        scored = {n: arrays[f"{n}_scores"] for n in SCORED if f"{n}_scores" in arrays}
        return cls(findings=findings, input_scores=scored)


def _model(arrays: Mapping[str, Array]) -> dict[str, torch.Tensor] | None:
    """Return the weights that an artifact holds; without any, torch is not imported."""
    if not any(name.startswith(WEIGHTS) for name in arrays):
        return None
    from raysweep.training import weights

    return weights.unpacked(arrays)


@dataclass(frozen=True, kw_only=True)
class Decided:
    """A defense's decision, and what it produced."""

    decision: Decision

    @property
    def flags(self) -> Bools | None:
        """Mask (N,) of the training samples that are held to be poisoned."""
        return None if self.decision.flags is None else np.asarray(self.decision.flags, bool)

    @property
    def removed(self) -> int:
        """Number of training samples that are held to be poisoned."""
        return 0 if self.flags is None else int(self.flags.sum())

    @property
    def classes(self) -> list[int] | None:
        """The classes held to be backdoor targets, sorted; None without a verdict."""
        named = self.decision.classes
        return None if named is None else sorted(int(c) for c in named)

    @property
    def produced(self) -> str:
        """A digest of what is removed and accused, or `nothing`: two decisions may share it."""
        if not self.removed and not self.classes:
            return NOTHING
        packed = b"" if self.flags is None else np.packbits(self.flags).tobytes()
        return digest(packed + bytes(str(self.classes), "ascii"))

    def packed(self) -> Product:
        """Return the decision as an artifact."""
        arrays: dict[str, Array] = {} if self.flags is None else {"flags": self.flags}
        if self.decision.class_scores is not None:
            arrays["class_scores"] = np.asarray(self.decision.class_scores, np.float64)
        threshold = self.decision.threshold
        facts = {name: finite_or_none(value) for name, value in self.decision.facts.items()}
        outcome: Outcome = {
            "produced": self.produced,
            "removed": self.removed,
            "classes": self.classes,
            "threshold": None if threshold is None else finite_or_none(threshold),
            "p_value": self.decision.p_value,
            **({"facts": facts} if facts else {}),
        }
        return Product(arrays=arrays, outcome=outcome)

    @classmethod
    def unpacked(cls, arrays: Mapping[str, Array], outcome: Outcome) -> Self:
        """Return the decision that an artifact holds; an infinite threshold is None."""
        named = cast("list[int] | None", outcome["classes"])
        return cls(
            decision=Decision(
                flags=np.array(arrays["flags"]) if "flags" in arrays else None,
                threshold=cast("float | None", outcome["threshold"]),
                classes=None if named is None else tuple(named),
                class_scores=arrays.get("class_scores"),
                p_value=cast("float | None", outcome["p_value"]),
                facts={
                    name: np.nan if value is None else float(value)
                    for name, value in cast(
                        "dict[str, float | None]", outcome.get("facts", {})
                    ).items()
                },
            )
        )
