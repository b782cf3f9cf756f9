"""The records of a sweep as a frame that also reaches what its trials have stored."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pandas as pd

from raysweep.arrays import Array
from raysweep.attacks import Attack
from raysweep.errors import DamagedArtifact, RaysweepError, SpecError, StoreError
from raysweep.methods.context import Context
from raysweep.plan.planner import Planner
from raysweep.results import artifacts
from raysweep.results.columns import KEYS, PARAMETERS
from raysweep.results.description import as_launched, described
from raysweep.results.rows import trial_id
from raysweep.results.schema import typed
from raysweep.stages.inputs import Inputs
from raysweep.store import Store
from raysweep.sweep.spec import restored

# Rows that differ in one of these are of other experiments, and are not averaged.
DECIDING = ("dataset", "model", "attack", "rate", "defense")
NEAREST = 3


class Trials(pd.DataFrame):
    """The trials of a sweep, one row each: a DataFrame whose columns are those of the schema.

    Rows that are selected from it can do the same. `attrs` says where the trials are stored:
    `storage` is a folder or URI, `folder` the sweep's place in it.
    """

    @property
    def _constructor(self) -> type[Trials]:
        return Trials

    @classmethod
    def of(cls, rows: pd.DataFrame, store: Store, place: str) -> Trials:
        """Return records in the schema's columns and types.

        Args:
            rows: one row per trial.
            store: where the trials' artifacts are.
            place: the folder of the sweep's records, below `sweeps/`.
        """
        frame = cls(typed(rows))
        frame.attrs |= {"storage": store.uri, "folder": place}
        return frame

    def pivot(  # type: ignore[override]
        self,
        values: str | Sequence[str] = "asr",
        index: str | Sequence[str] = "defense",
        columns: str | Sequence[str] = "attack",
    ) -> pd.DataFrame:
        """Return means over seeds of finished trials, spread over rows and columns.

            raysweep.load("first").query("rate == 0.05").pivot("asr")

        Unlike pandas' own `pivot` it takes means, and of seeds alone: trials of one cell must not
        differ in dataset, model, attack, rate, defense or recipe. A cell without a finished trial,
        or in which nothing is defined, is missing.

        Args:
            values: names of columns of numbers; several make the columns' outer level.
            index: names of columns whose values name the rows, in the order of the sweep.
            columns: names of columns whose values name the columns.

        Returns:
            a frame of Float64 in the unit of `values`; rates and accuracies are fractions.

        Raises:
            SpecError: if there is no such column, it holds no numbers, or a cell would average
                more than seeds; the message names what differs.
        """
        shown = [values] if isinstance(values, str) else [*values]
        by = [name for one in (index, columns) for name in ([one] if isinstance(one, str) else one)]
        self._check_columns(shown, by)
        named = [*DECIDING, *PARAMETERS["recipe"].within(self.columns).values()]
        groups = self.groupby(by, sort=False, dropna=False)
        mixed = [
            name for name in named
            if name in self and name not in by and (groups[name].nunique(dropna=False) > 1).any()
        ]  # fmt: skip
        if mixed:
            raise SpecError(
                f"pivot: cells by {', '.join(by)} hold trials that differ in {', '.join(mixed)}; "
                f"add these to index or columns, or select rows first, as in "
                f".query({f'{mixed[0]} == ...'!r})"
            )
        numbers = pd.DataFrame(self)[shown].astype("Float64").where(self["status"] == "ok")
        keys = [pd.Series(self[name]) for name in by]
        means = numbers.groupby(keys, sort=False, dropna=False).mean()
        across = by[len(by) - (1 if isinstance(columns, str) else len(columns)) :]
        wide = pd.DataFrame(means.unstack(across, sort=False))
        return pd.DataFrame(wide[values]) if isinstance(values, str) else wide

    def _check_columns(self, shown: Sequence[str], by: Sequence[str]) -> None:
        for name in (*shown, *by):
            if name not in self:
                near = difflib.get_close_matches(name, map(str, self.columns), n=NEAREST)
                raise SpecError(
                    f"pivot: there is no column {name!r}; "
                    f"the nearest: {', '.join(near) or 'none'}; all are in .columns"
                )
        for name in shown:
            if not pd.api.types.is_numeric_dtype(self[name].dtype):
                raise SpecError(
                    f"pivot: values must be columns of numbers, {name!r} is of type "
                    f"{self[name].dtype}"
                )

    def scores(self, trial: str) -> pd.DataFrame:
        """Return the scores that a trial's defense gave, one row per sample, beside the truth.

        Training samples are there if the defense scores or flags them; test inputs, clean and
        triggered, if it is a detector of inputs; of the triggered ones those that the ASR counts.

        Args:
            trial: its id, the column `trial`, or the beginning of it.

        Returns:
            a frame without rows if the defense gives neither; columns:

            set      string: `train`, `clean` or `triggered`
            sample   Int64: row of the sample in the training or test files
            label    Int64: its class; of training samples as the attack left it
            poison   boolean: whether it is poisoned, or triggered
            cover    boolean: whether it is a cover
            score    Float64: higher = more suspicious; missing if the defense only flags
            kept     boolean: whether the decision keeps it; missing without a decision

        Raises:
            StoreError: if there is no such trial, it is not finished, or its artifacts are gone.
        """
        with self._stored(trial) as given:
            return artifacts.scores(given, lambda: self._attack(str(self._row(trial)["trial"])))

    def curves(self, trial: str) -> pd.DataFrame:
        """Return the curves of a trial, one row per point.

        They are the ROC curves of its scores, the losses of poison and of the rest after each step,
        and what the defense drew of its own run.

        Args:
            trial: its id, the column `trial`, or the beginning of it.

        Returns:
            a frame with the columns curve, x_title, y_title (string), x, y (Float64); without rows
            if the trial has no curves.

        Raises:
            StoreError: if there is no such trial, it is not finished, or its artifacts are gone.
        """
        with self._stored(trial) as given:
            return artifacts.curves(given)

    def images(self, trial: str) -> tuple[Array, Array]:
        """Return a few test images of a trial, clean, and the same with the trigger.

        Args:
            trial: its id, the column `trial`, or the beginning of it.

        Returns:
            two arrays (P, C, H, W) of uint8, 0 to 255; P is at most 6.

        Raises:
            StoreError: if there is no such trial, it is not finished, its artifacts are gone, or
                its dataset holds no images.
        """
        with self._stored(trial) as given:
            found = artifacts.images(given)
        if found is None:
            raise StoreError(
                f"trial {trial!r}: dataset {self._row(trial)['dataset']} holds no images"
            )
        return found

    @contextmanager
    def _stored(self, trial: str) -> Iterator[Inputs]:
        """Give the artifacts of a finished trial by role."""
        row = self._row(trial)
        if row["status"] != "ok":
            said = f": {row['error']}" if row["error"] else ""
            raise StoreError(f"trial {trial!r} is {row['status']}{said}; it stored no results")
        keys = KEYS.within(self.columns).items()
        held = {role: str(row[column]) for role, column in keys if not pd.isna(row[column])}
        store = self._store()
        try:
            yield Inputs(held, store, Context(seed=0))
        except DamagedArtifact as error:
            raise StoreError(
                f"{error.key} of trial {trial!r} is not in {store.where()} as it was written "
                f"({error.detail}); launch the sweep again"
            ) from None

    def _row(self, trial: str) -> pd.Series:
        """Return the row of a trial."""
        meant = pd.DataFrame(self)[self["trial"].str.startswith(trial)].drop_duplicates("trial")
        if len(meant) == 1:
            return meant.iloc[0]
        every = pd.DataFrame(self if meant.empty else meant)
        near = difflib.get_close_matches(trial, every["trial"], n=NEAREST, cutoff=0.0)
        some = every[every["trial"].isin(near)].drop_duplicates("trial")
        listed = "; ".join(
            f"{row['trial']} ({row['attack']} · {row['defense']} · seed {row['seed']})"
            for row in some.to_dict("records")
        )
        what = "there is no trial" if meant.empty else f"{len(meant)} trials begin with"
        raise StoreError(
            f"{what} {trial!r} among these {self['trial'].nunique()}; a trial is named by its id, "
            f"the column `trial`; the nearest: {listed or 'none'}"
        )

    def _store(self) -> Store:
        storage = self.attrs.get("storage")
        if storage is None:
            raise StoreError(
                "these rows do not say where they are stored, as rows of several sweeps do not; "
                "ask the rows of one: raysweep.load(NAME)"
            )
        return Store(storage)

    def _attack(self, trial: str) -> Attack:
        """Return the attack of a trial, from the sweep as it was launched."""
        about = described(self._store(), self.attrs["folder"])
        try:
            if about.sweep is None:
                raise StoreError(f"the description of {self.attrs['folder']} is damaged")
            planner = Planner(as_launched(restored(about.sweep), about), launched=True)
        except (RaysweepError, OSError) as error:
            raise StoreError(f"trial {trial}: its sweep cannot be planned here: {error}") from None
        for one in planner.trials:
            if trial_id(one, planner) == trial:
                return one.attack
        raise StoreError(f"trial {trial} is not in the sweep that was launched last; load it again")
