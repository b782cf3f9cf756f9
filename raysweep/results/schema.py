"""The schema of the records: every column's name, type, unit, range and meaning.

A frame of this schema has the same columns whatever failed. Only families grow with what a sweep
asks and finds: parameters of its methods, facts that defenses measure, separability by space.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from raysweep.metrics.names import INPUT, SEPARABILITY, cases
from raysweep.results.columns import COSTS, FOUND, KEYS, ORIGIN, PARAMETERS, STATUS, WHO
from raysweep.results.table import uniform

Dtype = Literal["string", "boolean", "Int64", "Float64"]
FINISHED = "before the trial is finished"
SHARE = "0 to 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the records, or one family of columns.

    Attributes:
        name: of the column; of a family with a part in angle brackets.
        dtype: of pandas, one that knows missing values; none if it depends on the values.
        meaning: of a cell.
        unit: of a number; empty if it has none.
        bounds: the values that a cell may have; empty if they are not limited.
        missing: when a cell is missing; empty if it never is.
    """

    name: str
    dtype: Dtype | None
    meaning: str
    unit: str = ""
    bounds: str = ""
    missing: str = ""


def _text(name: str, meaning: str, bounds: str = "", missing: str = "") -> Column:
    return Column(name=name, dtype="string", meaning=meaning, bounds=bounds, missing=missing)


def _seconds(name: str, meaning: str, missing: str = "") -> Column:
    return Column(
        name=name, dtype="Float64", meaning=meaning, unit="seconds", bounds="from 0",
        missing=missing,
    )  # fmt: skip


def _share(name: str, meaning: str, missing: str = FINISHED) -> Column:
    return Column(
        name=name, dtype="Float64", meaning=meaning, unit="fraction", bounds=SHARE, missing=missing
    )


def _count(name: str, meaning: str, unit: str, missing: str = FINISHED) -> Column:
    return Column(
        name=name, dtype="Int64", meaning=meaning, unit=unit, bounds="from 0", missing=missing
    )


def _answer(name: str, meaning: str, missing: str = "") -> Column:
    return Column(
        name=name, dtype="boolean", meaning=meaning, bounds="True, False", missing=missing
    )


def _measured(share: Column, unit: str) -> tuple[Column, Column]:
    """Return the column of a share, and of the number of cases that it is a share of."""
    number = f"the number of cases that `{share.name}` is a share of"
    return share, _count(cases(share.name), number, unit, share.missing.partition(",")[0])


_NO_POISON = ", or nothing is poisoned"
_NO_FLAGS = "unless the defense flags training samples"
_NO_SCORES = "unless the defense scores training samples"
_NO_DETECTOR = "unless the defense is a detector of inputs"
_NO_VERDICT = "unless the defense gives a verdict"

_WHO = (
    _text("sweep", "name of the sweep", missing="in records of earlier versions"),
    _text("trial", "digest of everything that the user chose: the trial's id", "16 hex digits"),
    _text("dataset", "label of the dataset, with the parameters that differ from its defaults"),
    _text("model", "label of the model"),
    _text("attack", "label of the attack, without its rate"),
    _text("attack_name", "the attack's method"),
    _share("rate", "poison rate, of the whole training set", ""),
    _answer(
        "evades", "whether the attack changes test inputs alone", "in records of earlier versions"
    ),
    Column(
        name="target", dtype="Int64", unit="class", bounds="from 0",
        meaning="the class that triggered inputs are to be given",
    ),
    _text("defense", "label of the defense"),
    _text("defense_name", "the defense's method"),
    _text(
        "kind", "the task of the defense: `control`, `filter`, `detector`, `inspector`, `repair`, "
        "`robust training`, or several of them",
    ),
    _text("badges", "what attack and defense assume, joined by commas; empty for nothing"),
    Column(name="seed", dtype="Int64", meaning="seed of the trial", bounds="from 0"),
)  # fmt: skip
_STATUS = (
    _text("status", "`ok` if the trial has metrics", "ok, pending, failed, upstream_failed"),
    _text("error", "what went wrong; empty if nothing did"),
    _text("error_stage", "key of the stage that went wrong; empty if none did"),
    _text("log", "file of that stage's log on this machine; empty if there is none"),
)
_METRICS = (
    *_measured(_share("ca", "accuracy on clean test inputs"), "test inputs"),
    *_measured(
        _share("ca_eligible", "accuracy on the clean test inputs that the ASR is measured on"),
        "test inputs",
    ),
    *_measured(
        _share("ca_target", "accuracy on the clean test inputs of the classes that the attacker "
               "wants", FINISHED + ", or the attack wants none"),
        "test inputs",
    ),
    *_measured(
        _share("asr", "attack success rate: the share of triggered inputs that are given the "
               "class that the attacker wants", FINISHED + ", or no input counts"),
        "triggered test inputs",
    ),
    *_measured(
        _share("ra", "robust accuracy: the share of triggered inputs that keep their true class",
               FINISHED + ", or no input counts"),
        "triggered test inputs",
    ),
    _count("removed", "number of training samples that are flagged", "samples", _NO_FLAGS),
    *_measured(_share("tpr", "the share of poisoned samples that are flagged",
                      _NO_FLAGS + _NO_POISON), "poisoned samples"),
    *_measured(_share("fpr", "the share of all other training samples that are flagged",
                      _NO_FLAGS), "other samples"),
    _share("fpr_no_cover", "`fpr` without the covers", _NO_FLAGS),
    _share("cover_removal", "the share of covers that are flagged",
           _NO_FLAGS + ", or there are no covers"),
    _share("auroc", "area under the ROC curve of the scores of training samples",
           _NO_SCORES + _NO_POISON),
    _share("ap", "average precision of the scores of training samples", _NO_SCORES + _NO_POISON),
    _share("tpr_at_1fpr", "the largest TPR with an FPR of at most 1 %, over all thresholds",
           _NO_SCORES + _NO_POISON),
    *_measured(_share(INPUT.of("tpr"), "the share of triggered inputs that are rejected",
                      _NO_DETECTOR), "triggered test inputs"),
    *_measured(_share(INPUT.of("fpr"), "the share of clean test inputs that are rejected",
                      _NO_DETECTOR), "test inputs"),
    _share(INPUT.of("auroc"), "area under the ROC curve of the scores of inputs", _NO_DETECTOR),
    _share(INPUT.of("ap"), "average precision of the scores of inputs", _NO_DETECTOR),
    _share(INPUT.of("tpr_at_1fpr"), "the largest TPR with an FPR of at most 1 %, of inputs",
           _NO_DETECTOR),
    _answer("verdict", "whether the model is held to have a backdoor", _NO_VERDICT),
    _text("verdict_classes", "the classes held to be targets, joined by commas",
          missing=_NO_VERDICT),
    _answer("verdict_correct", "whether a true target is among the classes, or, of a clean model, "
            "no class is named", _NO_VERDICT),
    _answer("target_found", "whether a true target is among the classes",
            _NO_VERDICT + ", or there is no backdoor"),
    Column(name="anomaly", dtype="Float64", meaning="the largest anomaly of all classes",
           missing=_NO_VERDICT + ", or it scores no classes"),
    Column(name="p_value", dtype="Float64", meaning="p-value of the verdict", bounds=SHARE,
           missing=_NO_VERDICT + ", or the method has none"),
    _count("poison_count", "number of poisoned samples", "samples"),
    _count("cover_count", "number of covers", "samples"),
    _count("relabeled_count", "number of poisoned samples whose label was changed", "samples"),
    _count("n_train", "number of training samples", "samples"),
)  # fmt: skip
_ORIGIN = (
    _text("host", "where the trial was evaluated", missing=FINISHED),
    _text("git_commit", "of the code that evaluated it; empty if it was no checkout",
          missing=FINISHED),
    Column(name="finished_at", dtype="Float64", unit="seconds since 1970, UTC",
           meaning="when the trial was evaluated", missing=FINISHED),
)  # fmt: skip
_COSTS = (
    _seconds("own_seconds", "that stages took which only this trial uses"),
    _seconds("shared_seconds", "the trial's even part of stages that several use"),
    _seconds("standalone_seconds", "of everything that the trial needs, as if run by itself"),
    _seconds("gpu_seconds", "of GPUs, the trial's even part of shared stages"),
)
_ROLES = {
    "data": "the decoded dataset", "victim": "the victim's training",
    "poison": "the replaced samples", "defend": "the defense's run",
    "reference": "the decision whose removal count is matched",
    "decide": "the defense's decision", "model": "the model that is evaluated",
    "tested": "its predictions on test inputs", "evaluate": "the evaluation",
}  # fmt: skip
_KEYS = tuple(
    _text(KEYS.of(role), f"key of the artifact: {what}", missing="if the trial has no such stage")
    for role, what in _ROLES.items()
)
COLUMNS = (*_WHO, *_STATUS, *_METRICS, *_ORIGIN, *_COSTS, *_KEYS)
METRICS = tuple(column.name for column in _METRICS)
FAMILIES = (
    *(
        Column(
            name=PARAMETERS[part].of("<parameter>"), dtype=None,
            meaning=f"a parameter of the {part}; lists and mappings as JSON",
            missing=f"if the {part} has no such parameter, or none is set",
        )
        for part in PARAMETERS
    ),
    Column(
        name=SEPARABILITY.of("<space>"), dtype="Float64", bounds="about 0.5 to 1",
        meaning="how far apart poison lies in a space of the defense, as an AUROC",
        missing="unless the defense gives the space, or too little is poisoned",
    ),
    Column(
        name=FOUND.of("<fact>"), dtype="Float64",
        meaning="what the attack or the defense measured of its own run",
        missing="unless one of them measures it",
    ),
)  # fmt: skip


def typed(rows: pd.DataFrame) -> pd.DataFrame:
    """Return records in the schema's columns, order and types; its index is that of `rows`.

    Columns of families, and columns that the schema does not know, are there if `rows` has them:
    whole numbers as Int64, numbers as Float64, answers as boolean, anything else as string.
    """
    given = uniform(rows)
    known = {column.name: column.dtype for column in COLUMNS}
    series = {
        name: _as(given[name], known.get(name)) if name in given
        else pd.Series(pd.NA, index=given.index, dtype=known[name])
        for name in _arranged(map(str, given.columns))
    }  # fmt: skip
    return pd.DataFrame(series, index=given.index)


def _arranged(given: Iterable[str]) -> Sequence[str]:
    """Return the names of all columns, given ones and the schema's, in the schema's order."""
    fixed = {column.name for column in COLUMNS}
    more = [name for name in given if name not in fixed]
    parameters = [n for family in PARAMETERS.values() for n in family.within(more).values()]
    found = list(FOUND.within(more).values())
    others = [name for name in more if name not in {*parameters, *found}]
    keys = [column.name for column in _KEYS]
    return (*WHO, *parameters, *STATUS, *METRICS, *others, *ORIGIN, *found, *COSTS, *keys)


def _as(values: pd.Series, dtype: Dtype | None) -> pd.Series:
    """Return a column in a type that knows missing values; by default the one of its values."""
    kind = dtype or _kind(values)
    if kind in ("Int64", "Float64"):
        return pd.to_numeric(values, errors="coerce").astype(kind)
    return values.astype(kind)


def _kind(values: pd.Series) -> Dtype:
    present = values.dropna()
    if len(present) and pd.api.types.is_bool_dtype(present.infer_objects()):
        return "boolean"
    if pd.api.types.is_integer_dtype(values):
        return "Int64"
    return "Float64" if pd.api.types.is_numeric_dtype(values) else "string"
