"""Faults of the records as a frame and of the leaderboard, for `python -m tests.faults`."""

from __future__ import annotations

from tests.faults import Fault

SCHEMA, TRIALS, ARTIFACTS = "results/schema.py", "results/trials.py", "results/artifacts.py"
BOARD, CSV = "reports/leaderboard.py", "exchange/leaderboard.py"
FRAME, SITE = "test_trials.py::test_", "test_leaderboard.py::test_"

FAULTS = (
    Fault(
        "a column that no trial filled is left out", SCHEMA,
        "(*WHO, *parameters, *STATUS, *METRICS, *others,",
        "(*WHO, *parameters, *STATUS, *(n for n in METRICS if n in given), *others,",
        (FRAME + "columns_are_the_same_whatever_failed",),
    ),
    Fault(
        "numbers of cases become floats beside a missing one", SCHEMA,
        'name=name, dtype="Int64", meaning=meaning, unit=unit, bounds="from 0"',
        'name=name, dtype="Float64", meaning=meaning, unit=unit, bounds="from 0"',
        (FRAME + "what_is_undefined_is_missing_and_numbers_of_cases_stay_whole",),
    ),
    Fault(
        "unfinished trials count in means", TRIALS,
        '.where(self["status"] == "ok")', ".fillna(0)",
        (FRAME + "pivot_keeps_what_has_no_number",),
    ),
    Fault(
        "pivot averages over rates", TRIALS,
        'DECIDING = ("dataset", "model", "attack", "rate", "defense")',
        'DECIDING = ("dataset", "model", "attack", "defense")',
        (FRAME + "pivot_averages_nothing_but_seeds",),
    ),
    Fault(
        "pivot averages over recipes", TRIALS,
        '*PARAMETERS["recipe"].within(self.columns).values()]', "]",
        (FRAME + "pivot_averages_nothing_but_seeds",),
    ),
    Fault(
        "flags are shown as what is kept", ARTIFACTS,
        "None if flags is None else ~flags", "None if flags is None else flags",
        (FRAME + "scores_tell_what_the_records_tell",),
    ),
    Fault(
        "inputs that the ASR does not count are scored", ARTIFACTS,
        "attack().eligible(labels, classes) if triggered else np.ones(len(labels), bool)",
        "np.ones(len(labels), bool)",
        (FRAME + "scores_of_a_detector_are_of_inputs",),
    ),
    Fault(
        "cells of several sweeps are averaged", BOARD,
        'rows.groupby(["sweep", "arena"], sort=False)',
        'rows.groupby([rows["arena"].map(lambda _: "first"), "arena"], sort=False)',
        (SITE + "cells_of_two_sweeps_are_shown_twice_and_never_averaged",
         SITE + "cells_are_those_of_each_sweep"),
    ),
    Fault(
        "arenas are told sweep by sweep", BOARD,
        "rows = rows.assign(arena=setting_column(rows))",
        'rows = rows.assign(arena=rows["dataset"] + " · " + rows["model"])',
        (SITE + "sweeps_of_other_recipes_are_other_arenas",),
    ),
    Fault(
        "names and files are taken for markup", BOARD,
        "autoescape=True", "autoescape=False",
        (SITE + "hostile_text_stays_text",),
    ),
    Fault(
        "one of two cells of the same line is dropped", CSV,
        "if len(twice):", "if False:",
        (SITE + "what_the_table_cannot_tell_apart_is_refused",),
    ),
    Fault(
        "what was not measured is nan", CSV,
        'return ""', 'return "nan"',
        (SITE + "what_was_not_measured_is_empty",),
    ),
)  # fmt: skip
