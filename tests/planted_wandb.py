"""Faults of what W&B is told, for `python -m tests.faults`."""

from __future__ import annotations

from tests.faults import Fault

ENTRY, TRIAL, SHARED = (f"results/entries/{name}.py" for name in ("entry", "trial", "shared"))
MEDIA, WHOLE, TUNING = (f"results/entries/{name}.py" for name in ("media", "sweep", "tuning"))
PANELS, REPORT = (f"results/wandb_reports/{name}.py" for name in ("panels", "report"))
TOLD, REPORTS = "test_entries.py::test_", "test_wandb_reports.py::test_"

FAULTS = (
    Fault(
        "a failed trial is told as finished", TRIAL,
        'state: State = "failed" if failed else "finished"', 'state: State = "finished"',
        (TOLD + "a_failed_trial_is_told_with_its_error",),
    ),
    Fault(
        "the interval of a share of other cases", TRIAL,
        "Share(value=value, n=int(n)).interval", "Share(value=value, n=int(n) + 1).interval",
        (TOLD + "every_trial_is_told_with_numbers_n_and_intervals",),
    ),
    Fault(
        "a trial does not use its victim", TRIAL,
        'for role in ("poison", "victim")', 'for role in ("poison",)',
        (TOLD + "artifacts_lead_from_the_data_to_the_result",),
    ),
    Fault(
        "a victim is told after the trials that use it", "results/entries/__init__.py",
        """        for entry in shared(row, sweep, track, store, lineage=detailed, told=known):
            known.add(entry.run)
            yield entry
        yield trial(row, sweep, track, store if detailed else None)
""",
        """        yield trial(row, sweep, track, store if detailed else None)
        for entry in shared(row, sweep, track, store, lineage=detailed, told=known):
            known.add(entry.run)
            yield entry
""",
        (TOLD + "artifacts_lead_from_the_data_to_the_result",),
    ),
    Fault(
        "epochs from 0", SHARED, "float(n + 1)", "float(n)",
        (TOLD + "a_victim_is_one_run_with_its_losses_by_epoch",),
    ),
    Fault(
        "images of a licensed set unasked", MEDIA,
        "    if images:\n        media |= _examples", "    if True:\n        media |= _examples",
        (TOLD + "images_of_a_dataset_are_shown_only_where_they_are_asked_for",),
    ),
    Fault(
        "precision of scores in the other order", MEDIA,
        "hits[some] / (hits + errors)[some]", "errors[some] / (hits + errors)[some]",
        (TOLD + "precision_and_recall_follow_from_the_roc_curve",
         TOLD + "charts_are_the_curves_and_scores_that_are_stored"),
    ),
    Fault(
        "images that are asked for later change no mark", ENTRY,
        "safe.media is not None and track.images, ", "",
        (TOLD + "details_are_told_of_the_first_seed_of_all_or_of_none",),
    ),
    Fault(
        "a whole number and a float are two marks", ENTRY,
        "float(v) if isinstance(v, int | float) else v for n, v", "v for n, v",
        (TOLD + "marks_tell_what_changed_and_nothing_else",),
    ),
    Fault(
        "control characters in the names of runs", ENTRY,
        "name=visible(entry.name)[:NAME_CHARACTERS]", "name=entry.name[:NAME_CHARACTERS]",
        (TOLD + "hostile_text_stays_text",),
    ),
    Fault(
        "a sweep under way is told as finished", WHOLE,
        'state="running" if counts["pending"] else "finished"', 'state="finished"',
        (TOLD + "the_sweep_is_one_run_that_grows",),
    ),
    Fault(
        "one run for all searches of a defense", TUNING,
        'f"{row.defense}/{row.held_out}"', "row.defense",
        (TOLD + "a_tuning_and_its_searches_are_runs",),
    ),
    Fault(
        "a second report at every writing", REPORT,
        "        report.id = standing[0]", "        pass",
        (REPORTS + "a_report_answers_and_shows_and_is_updated_in_place",),
    ),
    Fault(
        "markup in tables of a report", "results/text.py",
        r'return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$-])", r"\\\1", one_line)', "return one_line",
        (REPORTS + "hostile_text_stays_text", TOLD + "hostile_text_stays_text"),
    ),
    Fault(
        "sets of runs by a parameter that W&B takes for its own", PANELS,
        'expr.Config("sweep_name") == one.name', 'expr.Config("sweep") == one.name',
        (REPORTS + "several_sweeps_share_one_report_of_their_own",),
    ),
    Fault(
        "runs go to the server that the process named first", "results/wandb_settings.py",
        'os.environ.get("WANDB_BASE_URL") or None', "None",
        ("test_track.py::test_a_process_sends_to_the_server_that_is_named_now",),
    ),
)  # fmt: skip
