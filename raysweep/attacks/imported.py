"""Imported: what `raysweep import` made of another project's poisoned set, as an attack.

B. Wu et al.: BackdoorBench, NeurIPS 2022, arXiv:2206.12654, whose record folders it takes, and
those of backdoor-toolbox.

Where we differ: the poisoned images, the triggered test images and, if asked for, the victim are
those of the folder; nothing is drawn or stamped here. The training set must hold all rows that the
folder names, in the order of the source's files, which is checked by their labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from raysweep.attacks import Attack, AttackInputs, Choice, Counts, Origin, Part, Planned
from raysweep.attacks._foreign import OURS, arrays_of, files_of, manifest_of
from raysweep.datasets import IntArray, Shape
from raysweep.errors import FilesError, PlanError, StageError
from raysweep.identity import files_digest
from raysweep.methods import available, load
from raysweep.methods.context import Arrays, Context
from raysweep.paths import DataPath, resolved

if TYPE_CHECKING:
    import torch


class Imported(Attack):
    """The folder at `path`; target, sources, rate and cover rate are the folder's."""

    PREPARES: ClassVar[bool] = True

    path: DataPath = Field(description="folder that `raysweep import` wrote")
    digest: str = Field("", description="of the folder's files; filled in when the sweep is read")
    victim: bool = Field(False, description="take the folder's weights instead of training")
    trigger: str | None = Field(
        None, description="attack that stamps test inputs, where the folder has no triggered ones"
    )

    @model_validator(mode="before")
    @classmethod
    def _as_the_folder_says(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "path" not in given or given.get("digest"):
            return given
        folder = Path(resolved(str(given["path"])))
        try:
            manifest = manifest_of(folder)
        except PlanError as error:
            raise ValueError(str(error)) from None
        total = manifest["train_total"]
        says = {
            "rate": manifest["poison"] / total,
            "cover_rate": manifest["cover"] / total,
            "label_map": "all_to_one" if manifest["target"] is not None else "all_to_all",
            "target": manifest["target"] or 0,
            "sources": tuple(manifest["sources"]) if manifest["sources"] else None,
        }
        for field, value in says.items():
            mine = given.get(field, value)
            if mine != value and not (field == "rate" and mine == 0):
                raise ValueError(f"{field} is the folder's, {value}, got {mine}; leave it out")
        wanted = {"victim": given.get("victim"), "triggered": not given.get("trigger")}
        for part, needed in wanted.items():
            if needed and not manifest[part]:
                raise ValueError(
                    f"{str(folder)!r} holds no {part} "
                    + ("weights; train one: victim: false" if part == "victim" else
                       "test inputs; name the attack that stamps them: trigger: NAME")
                )  # fmt: skip
        return {**says, **given, "digest": files_digest(files_of(folder))}

    def content_digest(self) -> str:
        """Return "": `digest` is that of the folder's files."""
        return ""

    def origin(self) -> Origin:
        """Return the name and the rates of the attack that the folder holds."""
        manifest = manifest_of(Path(self.path))
        rate, cover = manifest.get("rate"), manifest.get("cover_rate")
        return Origin(
            manifest["attack"],
            self.rate if rate is None else float(rate),
            self.cover_rate if cover is None else float(cover),
        )

    def brings_victim(self) -> bool:
        """Return whether the folder's weights are taken."""
        return self.victim and self.rate > 0

    def counts(self, labels: IntArray, num_classes: int) -> Counts:
        """Return the folder's counts, scaled to nothing at rate 0."""
        stamping = self._stamping()
        if stamping is not None and stamping.PREPARES:
            raise PlanError(
                f"attack {self.name}: trigger must be an attack that needs no preparation, got "
                f"{stamping.name}"
            )
        manifest = manifest_of(Path(self.path))
        if not self.rate:
            return Counts(poison=0, cover=0)
        if self.label_map == "all_to_one" and self.target >= num_classes:
            raise PlanError(
                f"attack {self.name}: the folder's target is {self.target}, but the dataset has "
                f"{num_classes} classes; take the dataset it was made from, {manifest['dataset']}"
            )
        return Counts(poison=manifest["poison"], cover=manifest["cover"])

    @property
    def label(self) -> str:
        """The name, and the folder's."""
        return f"{self.name}({Path(self.path).name})"

    @property
    def family(self) -> str:
        """The family of the attack that the folder holds."""
        named = self.origin().attack
        attack = OURS.get(named, named)
        kind = load("attacks", attack) if attack in available("attacks") else None
        return getattr(kind, "FAMILY", "") or attack

    def check(self, planned: Planned) -> None:
        """Make sure that the folder was made from this dataset.

        Raises:
            StageError: if it was not.
            FilesError: if its arrays cannot be read.
            ValueError: if the attack that stamps test inputs does not fit the images.
        """
        arrays = dict(arrays_of(Path(self.path) / "arrays.npz"))
        self._placed(arrays, planned.labels, planned.rows, planned.shape)
        counted = self.eligible(planned.test_labels, planned.shape.num_classes)
        lacking = planned.test_rows[counted & ~self.triggers(planned.test_rows, arrays)]
        if len(lacking):
            raise StageError(
                f"attack {self.label}: the folder has no triggered form of {len(lacking)} of "
                f"{int(counted.sum())} test inputs that count, row {lacking[0]} first; take the "
                f"evaluation set that it was made with, by test_size, clean_size and clean_seed, "
                f"or name the attack that stamps test inputs: trigger: NAME"
            )
        if (stamping := self._stamping()) is not None:
            stamping.stamp_one(planned.shape)

    def prepare(self, inputs: AttackInputs, ctx: Context) -> Arrays:
        """Return the folder's arrays, its rows as positions in this training set."""
        del ctx
        folder = Path(self.path)
        found = files_of(folder)
        if files_digest(found) != self.digest:
            raise FilesError(
                f"attack {self.label}: {folder} "
                + ("holds other files than were planned with" if found else "is not there")
                + "; give all hosts the same folder, or plan again if it has changed"
            )
        arrays = dict(arrays_of(folder / "arrays.npz"))
        self._placed(arrays, inputs.data.labels, inputs.rows, inputs.shape)
        state = self._state(folder, inputs) if self.victim else {}
        return {**arrays, **state}

    def _positions(self, part: str, found: IntArray, rows: IntArray) -> IntArray:
        """Return the positions of source rows that the folder names in a training set of rows."""
        at = np.minimum(np.searchsorted(rows, found), len(rows) - 1)
        lacking = np.flatnonzero(rows[at] != found)
        if len(lacking):
            raise StageError(
                f"attack {self.label}: {len(lacking)} of the folder's {part} rows are not in the "
                f"training set, row {found[lacking[0]]} first; leave out size and imbalance, or "
                f"cut the dataset as the folder's was"
            )
        return at

    def _placed(
        self, arrays: dict[str, NDArray[Any]], labels: IntArray, rows: IntArray, shape: Shape
    ) -> None:
        """Turn the folder's rows into positions in a training set that it was made from.

        Raises:
            StageError: if it was made from another.
        """
        for part in ("poison", "cover", "known"):
            arrays[f"{part}_rows"] = self._positions(part, arrays[f"{part}_rows"], rows)
        wrong = np.flatnonzero(labels[arrays["known_rows"]] != arrays["known_labels"])
        if len(wrong):
            row = arrays["known_rows"][wrong[0]]
            raise StageError(
                f"attack {self.label}: training row {rows[row]} has label {labels[row]} in "
                f"this dataset, but {arrays['known_labels'][wrong[0]]} in the folder's; "
                f"take the same dataset in the order of its source files"
            )
        given = labels[arrays["poison_rows"]]
        mapped = self.relabel(given, shape.num_classes)
        odd = np.flatnonzero(mapped != arrays["poison_labels"])
        if len(odd):
            raise StageError(
                f"attack {self.label}: the folder gives an image of class {given[odd[0]]} the "
                f"label {arrays['poison_labels'][odd[0]]}, where label_map {self.label_map} wants "
                f"{mapped[odd[0]]}; other maps are not supported"
            )
        size = (shape.channels, shape.height, shape.width)
        if arrays["poison_images"].shape[1:] != size:
            raise StageError(
                f"attack {self.label}: the folder's images have shape "
                f"{arrays['poison_images'].shape[1:]}, this dataset's {size}; give the dataset the "
                f"same side"
            )

    def _state(self, folder: Path, inputs: AttackInputs) -> Arrays:
        """Return the folder's weights under the names of this trial's network.

        By name where all names agree, else one after the other; shapes must agree.
        """
        network = inputs.model.build(inputs.shape)
        own = {n: t.numpy() for n, t in network.state_dict().items()}
        wanted = {n.removeprefix("net."): n for n in own if not n.startswith("normalize.")}
        held = arrays_of(folder / "victim.npz")
        foreign = {name.removeprefix("model."): array for name, array in held.items()}
        if set(foreign) != set(wanted):
            if len(foreign) != len(wanted):
                raise StageError(
                    f"attack {self.label}: the folder's network has {len(foreign)} tensors, model "
                    f"{inputs.model.name} has {len(wanted)}; name the model it was made with"
                )
            foreign = dict(zip(wanted, foreign.values(), strict=True))
        manifest = manifest_of(Path(self.path))
        for name in ("mean", "std"):
            if manifest[name]:
                own[f"normalize.{name}"] = np.reshape(manifest[name], (1, -1, 1, 1))
        for name, tensor in foreign.items():
            if tensor.shape != own[wanted[name]].shape:
                raise StageError(
                    f"attack {self.label}: {wanted[name]} of model {inputs.model.name} has shape "
                    f"{own[wanted[name]].shape}, the folder's tensor {tensor.shape}; name the "
                    f"model it was made with"
                )
            own[wanted[name]] = tensor
        kinds = {n: t.numpy().dtype for n, t in network.state_dict().items()}
        return {f"model.{name}": array.astype(kinds[name]) for name, array in own.items()}

    def choose(
        self,
        labels: IntArray,
        num_classes: int,
        counts: Counts,
        artifact: Arrays,
        generator: np.random.Generator,
    ) -> Choice:
        """Return the folder's rows, which `counts` are the numbers of."""
        del labels, num_classes, counts, generator
        poison, cover = (np.sort(artifact[f"{part}_rows"]) for part in ("poison", "cover"))
        return Choice(poison=poison, cover=cover)

    def triggers(self, ids: IntArray, artifact: Arrays) -> NDArray[np.bool_]:
        """Return a mask (B,) of the test inputs that the folder holds."""
        if self.trigger:
            return super().triggers(ids, artifact)
        return np.isin(ids, artifact["test_rows"])

    def stamp(
        self, images_BCHW: torch.Tensor, *, ids: IntArray, part: Part, artifact: Arrays, seed: int
    ) -> torch.Tensor:
        """Return the folder's images of these rows; others, which no metric counts, as they are."""
        import torch

        stamping = self._stamping()
        if part == "test" and stamping is not None:
            return stamping.stamp(images_BCHW, ids=ids, part=part, artifact={}, seed=seed)
        rows, images = artifact[f"{part}_rows"], artifact[f"{part}_images"]
        stamped = images_BCHW.clone()
        order = np.argsort(rows)
        found = np.flatnonzero(np.isin(ids, rows))
        at = order[np.searchsorted(rows[order], ids[found])]
        stamped[torch.from_numpy(found)] = torch.from_numpy(images[at]).to(stamped).div(255)
        return stamped

    def _stamping(self) -> Attack | None:
        if self.trigger is None:
            return None
        given = {"target": self.target, "label_map": self.label_map}
        stamping: Attack = load("attacks", self.trigger).model_validate(given)  # type: ignore[assignment]
        return stamping.without(stamping.INSTEAD)
