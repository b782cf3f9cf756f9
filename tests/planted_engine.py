"""Faults of the engine that cost a user silently, for `python -m tests.faults`."""

from __future__ import annotations

from tests.faults import Fault

SCHEDULE, PERFORM, STORE = "run/schedule.py", "stages/perform.py", "store/store.py"
ROWS, HISTORY, LEDGER = "results/rows.py", "results/history.py", "store/ledger.py"
SEARCH, RANKING, FOLDS = (f"tuning/{name}.py" for name in ("search", "ranking", "folds"))
ENGINE = "test_engine.py::test_"
ORDER = "test_schedule.py::test_"
KEPT = "test_store.py::test_"
PAST = "test_history.py::test_"
TUNE = "test_tune.py::test_"
TRACK = "test_track.py::test_"
FORCE = "test_force.py::test_"
RUNNING = "test_running.py::test_"

HANDED_OUT = (
    Fault(
        "a stage's rank without its own seconds", "plan/route.py",
        "rank[key] = seconds[key] + (", "rank[key] = (",
        (ENGINE + "a_stages_own_seconds_count_in_its_path",),
    ),
    Fault(
        "a stage that must run alone joins a batch", SCHEDULE,
        "(total + seconds > SHORT_SECONDS or key in self._alone)",
        "total + seconds > SHORT_SECONDS",
        (ENGINE + "a_stage_that_must_run_alone_joins_no_batch_and_takes_none_along",),
    ),
    Fault(
        "a stage that must run alone takes others along", SCHEDULE,
        "            total += seconds\n            if key in self._alone:",
        "            total += seconds\n            if False:",
        (ENGINE + "a_stage_that_must_run_alone_joins_no_batch_and_takes_none_along",),
    ),
    Fault(
        "a batch takes what other workers could do", SCHEDULE,
        "min(MOST_PER_BATCH, share)", "MOST_PER_BATCH",
        (ENGINE + "a_batch_is_as_long_as_is_fair_to_other_workers",),
    ),
    Fault(
        "a damaged artifact is discarded and not logged", SCHEDULE,
        "self.log(Damaged(key=key))", "pass",
        (ENGINE + "what_is_damaged_is_discarded_and_logged_by_its_key",),
    ),
    Fault(
        "a damaged manifest is not discarded", SCHEDULE,
        "for key in damaged:", "for key in ():",
        (ORDER + "what_is_stored_and_cannot_be_read_is_discarded_and_recomputed",),
    ),
    Fault(
        "a lone death is not counted", SCHEDULE,
        "len(gone) > 1 or self._try_again(result)", "gone",
        (ENGINE + "a_lone_death_counts_until_it_is_a_failure",
         ORDER + "a_lone_death_counts_and_a_shared_one_does_not"),
    ),
    Fault(
        "a shared death is counted", SCHEDULE,
        "len(gone) > 1 or self._try_again(result)", "self._try_again(result)",
        (ORDER + "a_lone_death_counts_and_a_shared_one_does_not",),
    ),
    Fault(
        "a retry counted twice", SCHEDULE,
        "self._tries[attempt] += 1", "self._tries[attempt] += 2",
        (ENGINE + "a_passing_failure_is_tried_as_often_as_asked_and_a_lasting_one_once",),
    ),
    Fault(
        "a failure that lasts is tried again", SCHEDULE,
        ' and not result.lasting and self._try_again(result)', " and self._try_again(result)",
        (ENGINE + "a_passing_failure_is_tried_as_often_as_asked_and_a_lasting_one_once",),
    ),
)  # fmt: skip

STORED = (
    Fault(
        "GPU seconds without the share that was held", PERFORM,
        '"gpu_seconds": round(seconds * gpus, 4)', '"gpu_seconds": round(seconds * (gpus > 0), 4)',
        (ENGINE + "gpu_seconds_are_seconds_times_the_share_that_was_held",),
    ),
    Fault(
        "a retraining on what was flagged", "stages/train.py",
        'np.flatnonzero(~given.read("decision")["flags"])',
        'np.flatnonzero(given.read("decision")["flags"])',
        (ENGINE + "a_filter_is_retrained_on_what_it_kept",),
    ),
    Fault(
        "a training that was killed begins anew", "stages/checkpoints.py",
        "restored = store.restore(stage.key)", "restored = {}",
        (ENGINE + "a_training_that_was_killed_goes_on_from_its_checkpoint",),
    ),
    Fault(
        "an object that changed is verified no more", STORE,
        "stamp is None or self._verified.get(memo) != stamp",
        "stamp is None or memo not in self._verified",
        (KEPT + "damage_after_the_first_read_is_seen",),
    ),
    Fault(
        "a damaged manifest counts as one that is missing", STORE,
        "damaged = [key for key, one in pairs if isinstance(one, DamagedArtifact)]", "damaged = []",
        (KEPT + "many_manifests_are_read_and_damaged_ones_named",),
    ),
    Fault(
        "a stage that failed once and ran stays failed", LEDGER,
        "self.failed.pop(event.key, None)", "pass",
        (ENGINE + "a_ledger_tells_how_the_last_run_stands",),
    ),
    Fault(
        "stages that grew are not counted", LEDGER,
        "self.stages += event.stages", "self.stages += event.cached or 0",
        (ENGINE + "a_ledger_tells_how_the_last_run_stands",),
    ),
)  # fmt: skip

TOLD = (
    Fault(
        "shared seconds are not divided", ROWS,
        "self._seconds(key) / self.users[key] for key", "self._seconds(key) for key",
        (ENGINE + "gpu_seconds_are_seconds_times_the_share_that_was_held",
         "test_execute.py::test_records_are_loaded_as_they_were_made"),
    ),
    Fault(
        "shared GPU seconds are not divided", ROWS,
        "fsum(gpu / self.users[key] for key, gpu in on_gpus.items())", "fsum(on_gpus.values())",
        (ENGINE + "gpu_seconds_are_seconds_times_the_share_that_was_held",),
    ),
    Fault(
        "records of a version are overwritten", HISTORY,
        "    number = max(earlier, default=0) + 1\n    for file",
        "    number = max(earlier, default=1)\n    for file",
        (PAST + "another_sweep_of_a_name_keeps_the_records_that_were_there",),
    ),
    Fault(
        "a row of other data stands in for a failure", HISTORY,
        "if all(row[key] == other.get(key) for key in keys if isinstance(row[key], str)):",
        "if keys:",
        (PAST + "only_a_row_of_the_same_trial_and_keys_is_kept",),
    ),
    Fault(
        "a trial's run without the sweep's name", "results/entries.py",
        """digest(f"{sweep}/{row['trial']}")""", """digest(f"{row['trial']}")""",
        (TRACK + "two_sweeps_with_the_same_trial_and_their_tunings_are_runs_of_their_own",),
    ),
    Fault(
        "a tuning's run without the sweep's name", "results/entries.py",
        'digest(f"{sweep}/tune")', 'digest("tune")',
        (TRACK + "two_sweeps_with_the_same_trial_and_their_tunings_are_runs_of_their_own",),
    ),
    Fault(
        "a run that arrived with other content counts", "results/wandb_runs.py",
        'run.state != "finished" or run.summary_metrics.get(MARK) != entry.mark',
        'run.state != "finished"',
        (TRACK + "earlier_content_is_not_taken_for_what_was_refused",),
    ),
)  # fmt: skip

TUNED = (
    Fault(
        "the truth of held-out places is not sealed", SEARCH,
        "else instance.closed()", "else instance",
        (TUNE + "a_planted_leak_fails",),
    ),
    Fault(
        "a search of clean data reads the truth", SEARCH,
        ' and self.tune.labels != "clean_only" else', " else",
        ("test_engine_tuning.py::test_" + "a_search_that_may_see_clean_data_alone_reads_no_truth",),
    ),
    Fault(
        "a transfer that sees what it leaves out", FOLDS,
        'settings = rest if tune.labels == "transfer" else held', "settings = tuple(trials)",
        (TUNE + "transfer_never_looks_at_what_it_leaves_out",),
    ),
    Fault(
        "objectives before constraints", RANKING,
        "return excess(metrics, tune), *losses(metrics, tune)",
        "return *losses(metrics, tune), excess(metrics, tune)",
        (TUNE + "constraints_hold_where_they_can",),
    ),
    Fault(
        "the worst is the best", RANKING,
        "max(known) if metric in SMALLER_IS_BETTER else min(known)",
        "min(known) if metric in SMALLER_IS_BETTER else max(known)",
        (TUNE + "worst_case_and_mean_differ",),
    ),
)  # fmt: skip

ANEW = (
    Fault(
        "a forced stage is taken as stored", "run/stored.py",
        "            self.forced.add(key)\n            self.keys.discard(key)\n",
        "            self.forced.add(key)\n",
        (FORCE + "what_comes_out_the_same_leaves_everything_below_as_it_is",),
    ),
    Fault(
        "what was made from a replaced input counts", "run/stored.py",
        'read.get(need, "") not in ("", self._content(need))', "False",
        (FORCE + "what_was_made_from_a_replaced_input_runs_again",
         FORCE + "another_sweep_that_shares_a_replaced_result_makes_its_own_anew"),
    ),
    Fault(
        "what is below a forced stage runs in any case", "run/stored.py",
        "if all(content in", "if False and all(content in",
        (FORCE + "what_comes_out_the_same_leaves_everything_below_as_it_is",),
    ),
    Fault(
        "what is below a forced stage is never looked at", "run/stored.py",
        "need not in self.keys or read", "read",
        (FORCE + "a_held_result_is_kept_or_replaced_by_what_its_input_became",),
    ),
    Fault(
        "a row mixes results from before and after", ROWS,
        "stands = self._superseded.isdisjoint(closure)", "stands = True",
        (FORCE + "a_kill_loses_nothing_and_mixes_nothing",
         FORCE + "a_forced_stage_that_fails_is_told_and_its_old_result_stays"),
    ),
    Fault(
        "the old result of a forced stage counts as the new one", "run/run.py",
        'k not in before or m.info.get("run") == mine', "True",
        (FORCE + "a_worker_that_dies_at_a_forced_stage_has_not_done_it",),
    ),
    Fault(
        "replaced data are remembered by their key", "stages/inputs.py",
        "_remembered_data(store, manifest.key, manifest.content)",
        '_remembered_data(store, manifest.key, "")',
        (FORCE + "data_that_another_driver_replaced_are_read_anew",),
    ),
    Fault(
        "the object of a replaced result stays", STORE,
        "before = self._objects(key)", "before = ()",
        (FORCE + "what_comes_out_the_same_leaves_everything_below_as_it_is",),
    ),
    Fault(
        "a plan makes the storage folder", "run/preview.py",
        "    check_layers(sweep)\n", "    check_layers(sweep)\n    store.check()\n",
        (RUNNING + "plan_and_status_write_nothing",),
    ),
    Fault(
        "the text as written is kept where values were set", "sweep/loading.py",
        "as_yaml(changed, overrides) if overrides else text", "text",
        ("test_overrides.py::test_read_sweep_gives_the_text_as_written_or_with_its_overrides",),
    ),
    Fault(
        "a hint forgets the storage", "cli/options.py",
        '[] if storage is None else ["--storage", storage]', "[]",
        (RUNNING + "a_launch_records_what_ran_and_its_hints_can_be_pasted",),
    ),
)  # fmt: skip

FAULTS = HANDED_OUT + STORED + TOLD + TUNED + ANEW
