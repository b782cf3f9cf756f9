"""Faults of the engine that cost a user silently, for `python -m tests.faults`."""

from __future__ import annotations

from tests.faults import Fault

SCHEDULE, PERFORM, STORE = "run/schedule.py", "stages/perform.py", "store/store.py"
READY = "run/ready.py"
ROWS, HISTORY, LEDGER = "results/rows.py", "results/history.py", "store/ledger.py"
ENGINE = "test_engine.py::test_"
ORDER = "test_schedule.py::test_"
KEPT = "test_store.py::test_"
PAST = "test_history.py::test_"
TRACK, SYNC = "test_track.py::test_", "test_sync.py::test_"
WANDB = "results/wandb.py"
CURRENT = "test_current.py::test_"
FORCE = "test_force.py::test_"
RUNNING = "test_running.py::test_"
IDLE, LIMITS = "test_idle.py::test_", "test_limits.py::test_"
PACE = "test_pace.py::test_"
LEASES, ELSEWHERE = "test_leases.py::test_", "test_elsewhere.py::test_"

HANDED_OUT = (
    Fault(
        "a stage's rank without its own seconds", "plan/route.py",
        "rank[key] = seconds[key] + (", "rank[key] = (",
        (ENGINE + "a_stages_own_seconds_count_in_its_path",),
    ),
    Fault(
        "a stage that must run alone joins a batch", READY,
        "if batch and (long or key in self._alone):", "if batch and long:",
        (ENGINE + "a_stage_that_must_run_alone_joins_no_batch_and_takes_none_along",),
    ),
    Fault(
        "a method comes when its turn does, in a row with others of it", READY,
        "entry in together + others:", "entry in entries:",
        ("test_schedule.py::test_the_longest_of_each_kind_and_method_go_before_all_others",),
    ),
    Fault(
        "a method that nobody timed takes as long as others", "run/pace.py",
        "/ len(others), False", "/ len(others), True",
        ("test_pace.py::test_a_method_that_comes_late_makes_no_estimate_wrong",),
    ),
    Fault(
        "a stage that must run alone takes others along", READY,
        "            total += seconds\n            if key in self._alone:",
        "            total += seconds\n            if False:",
        (ENGINE + "a_stage_that_must_run_alone_joins_no_batch_and_takes_none_along",),
    ),
    Fault(
        "a batch takes what other workers could do", READY,
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
        "self._verified.get(path) == stamp", "path in self._verified",
        (KEPT + "damage_after_the_first_read_is_seen",),
    ),
    Fault(
        "a damaged manifest counts as one that is missing", STORE,
        "                damaged.append(key)\n", "                pass\n",
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
        "a trial's run without the sweep's name", "results/entries/trial.py",
        """run_id(sweep, str(row["trial"]))""", """run_id("", str(row["trial"]))""",
        (TRACK + "two_sweeps_with_the_same_trial_and_their_tunings_are_runs_of_their_own",),
    ),
    Fault(
        "a tuning's run without the sweep's name", "results/entries/tuning.py",
        "run_id(sweep, JOB)", 'run_id("", JOB)',
        (TRACK + "two_sweeps_with_the_same_trial_and_their_tunings_are_runs_of_their_own",),
    ),
    Fault(
        "a run that arrived with other content counts", "results/wandb_runs.py",
        'entry.state not in ("running", run.state) or run.summary_metrics.get(MARK) != entry.mark',
        'entry.state not in ("running", run.state)',
        (TRACK + "earlier_content_is_not_taken_for_what_was_refused",),
    ),
    Fault(
        "W&B is not asked before runs are sent", WANDB,
        "left = self._confirmed(entries, 0)", "left = list(entries)",
        (TRACK + "a_run_that_stands_is_not_sent_again_by_who_remembers_nothing",),
    ),
    Fault(
        "a project grows beyond what W&B documents", WANDB,
        "if new > self._room or", "if",
        (TRACK + "a_project_that_would_grow_too_large_is_refused_before_anything_is_sent",),
    ),
    Fault(
        "a passing fault is final", WANDB,
        "for pause in PAUSES:", "for pause in PAUSES[:1]:",
        (TRACK + "a_limit_that_outlasts_the_patience_of_wandbs_client_is_waited_for",),
    ),
    Fault(
        "a fault that passes refuses a run for good", WANDB,
        "elif status in OF_ONE_RUN:", "else:",
        (TRACK + "a_limit_that_outlasts_the_patience_of_wandbs_client_is_waited_for",),
    ),
    Fault(
        "W&B's client answers from memory what arrived", "results/wandb_runs.py",
        "self._api.flush()", "self._api.default_entity",
        (TRACK + "a_metric_that_is_no_longer_defined_leaves_the_server",),
    ),
    Fault(
        "an earlier offline copy of a run stays", "results/wandb_runs.py",
        "        _remove(self._offline.get(entry.run, ()))\n", "",
        (TRACK + "offline_runs_are_written_once_and_read_back",),
    ),
    Fault(
        "integers of a table are other values than those of a manifest", "jobs/sync.py",
        "int(cell) if isinstance(cell, float) and cell.is_integer() else cell", "cell",
        (SYNC + "a_row_says_the_same_from_manifests_and_from_the_table",),
    ),
    Fault(
        "a trial that is not settled is forgotten", "results/arrivals.py",
        "                else:\n                    found.append(number)",
        "                else:\n                    found.append(number)\n"
        "                    self._open.pop(number)",
        (SYNC + "each_trial_comes_until_it_is_settled_and_what_is_open_is_looked_at_again",),
    ),
    Fault(
        "the end of a launch waits for W&B without an end", "jobs/publishing.py",
        "elif waited > END_SECONDS and", "elif waited > 1e9 and",
        (SYNC + "a_server_that_hangs_holds_up_neither_records_nor_the_end",),
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
        "before = () if self._remote else self._objects(key)", "before = ()",
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

SHARED = (
    Fault(
        "a stage that another driver holds is run", "run/leases.py",
        "if made is False or (made is None and name in self._held):", "if False:",
        (LEASES + "what_one_claims_another_waits_for_until_it_is_stored",
         ELSEWHERE + "a_forced_stage_is_done_once_by_two_who_force_it"),
    ),
    Fault(
        "a stage that another driver has stored meanwhile is run", "run/run.py",
        "self._take_in(self.leases.stored_meanwhile(keys - refused))", "set[str]()",
        (ELSEWHERE + "where_no_file_decides_drivers_share_what_was_begun_before_the_last_beat",),
    ),
    Fault(
        "the old result of a forced stage is taken for another driver's", "run/stored.py",
        "if self._before.get(k) != _making(m)", "if k",
        (ELSEWHERE + "a_result_of_before_does_not_count_for_a_stage_that_is_done_again",
         ELSEWHERE + "a_forced_stage_is_done_once_by_two_who_force_it"),
    ),
    Fault(
        "a run ends while another driver works for it", SCHEDULE,
        "not (self._ready or self.elsewhere)", "not self._ready",
        (ELSEWHERE + "what_is_set_aside_is_neither_ready_nor_out_and_the_schedule_goes_on",),
    ),
    Fault(
        "a dead driver keeps its leases", "run/leases.py",
        "if self._owner(key) == dead:", "if False:",
        (LEASES + "the_leases_of_a_driver_that_stands_still_are_taken_over",
         LEASES + "a_relaunch_finds_nothing_of_a_process_that_was_killed_here"),
    ),
    Fault(
        "a driver that wakes up ends the lease of another", "run/leases.py",
        "(not self._in_doubt() or self._owner(key) == self.run)", "True",
        (LEASES + "the_leases_of_a_driver_that_stands_still_are_taken_over",),
    ),
    Fault(
        "a stage stays claimed where its driver will not try again", "run/run.py",
        'if event.event == "failed" or event.event == "upstream_failed":', "if False:",
        (ELSEWHERE + "what_fails_for_good_here_may_be_tried_elsewhere",),
    ),
)  # fmt: skip

WATCHED = (
    Fault(
        "what would end the process ends the run", PERFORM,
        "except BaseException as error:", "except Exception as error:",
        (CURRENT + "what_would_end_the_process_costs_its_own_rows_alone",),
    ),
    Fault(
        "a signal is a failure of the stage at work", "run/inline.py",
        'if result.status == "failed":\n                interruption.check()',
        'if result.status == "failed":\n                pass',
        (CURRENT + "a_signal_stops_the_run_and_is_no_failure",),
    ),
    Fault(
        "progress reaches nobody", PERFORM,
        "progress=now.progress,", "",
        (CURRENT + "another_thread_sees_how_far_a_stage_is",),
    ),
    Fault(
        "a kind's limit goes before a method's", "run/limits.py",
        "known.get(stage.method) or known.get(stage.kind)",
        "known.get(stage.kind) or known.get(stage.method)",
        (CURRENT + "a_limit_is_of_a_kind_or_of_a_method_which_goes_first",),
    ),
    Fault(
        "a preempted host counts against its stages", "run/cluster/death.py",
        "return Death(reason=reason, key=key, counts=False, output=text)",
        "return Death(reason=reason, key=key, output=text)",
        (CURRENT + "rays_errors_are_told_by_their_type",),
    ),
    Fault(
        "the peak of an earlier stage counts", "stages/memory.py",
        '_RESET.write_bytes(b"5")', '_RESET.write_bytes(b"0")',
        (CURRENT + "the_peak_is_that_of_the_stage",),
    ),
    Fault(
        "seconds of work count as waiting", "run/queue.py",
        "now - ready - result.seconds", "now - ready",
        (CURRENT + "a_stage_has_waited_since_its_inputs_came_in",),
    ),
    Fault(
        "output of a stage before counts as the stage's", "run/cluster/output.py",
        "os.ftruncate(self._file, 0)\n            os.write(self._file, self._key)\n",
        "os.write(self._file, self._key)\n",
        (CURRENT + "output_is_taken_with_what_c_code_writes_and_given_back",),
    ),
)  # fmt: skip

FOLLOWED = (
    Fault(
        "what fails for a passing reason is tried at once", SCHEDULE,
        "self.elsewhere.add(result.key)", "self._ready.add(result.key)",
        ("test_schedule.py::test_what_failed_for_a_passing_reason_waits_until_it_comes_back",),
    ),
    Fault(
        "a mounted folder that is away for a moment ends the launch", "store/root.py",
        "error.errno in AWAY", "False",
        (KEPT + "a_mounted_folder_that_is_away_is_waited_for",),
    ),
    Fault(
        "the time that is left is told from guesses", "run/pace.py",
        "if left and unknown > UNKNOWN_SHARE * left:", "if False:",
        ("test_pace.py::test_nothing_is_said_while_most_of_the_rest_is_a_guess",),
    ),
    Fault(
        "what running stages have done is left to do", "run/pace.py",
        "seconds - under_way.get(key, 0.0)", "seconds",
        ("test_pace.py::test_running_stages_count_by_what_they_have_done",),
    ),
    Fault(
        "stop ends the drivers of other sweeps", "results/drivers.py",
        "and (not places or beat.folder in places)", "",
        ("test_attach.py::test_stop_asks_every_driver_of_the_sweep",),
    ),
    Fault(
        "an old page overwrites the last one", "jobs/live.py",
        "self._writing.kill()", "",
        ("test_live.py::test_a_page_that_is_being_written_is_ended_before_the_last_one",),
    ),
)  # fmt: skip

ALONE = (
    Fault(
        "every driver of a sweep publishes it", "jobs/publishing.py",
        'return run.leases.hold(f"publish-{run.sweep.name}")', "return True",
        (SYNC + "of_two_drivers_of_a_sweep_one_publishes",),
    ),
    Fault(
        "a launch that brings nothing new starts a publisher", "jobs/publishing.py",
        "if (before := completion.note()) is not None:", "if (before := None) is not None:",
        (SYNC + "a_launch_that_brings_nothing_new_starts_no_publisher",),
    ),
    Fault(
        "a driver that publishes what is left has given up the lease of it", "run/leases.py",
        "self.release(self._mine - self._lasting)", "self.release(set(self._mine))",
        (LEASES + "what_a_run_holds_to_its_very_end_is_another_drivers_only_then",),
    ),
    Fault(
        "idle workers are asked one by one", "run/cluster/idle.py",
        "worker for worker in idle}", "worker for worker in idle[:1]}",
        (IDLE + "idle_workers_are_asked_together_and_silent_ones_dropped_when_none_answers",),
    ),
    Fault(
        "a driver waits for its own node that is lost", "run/cluster/head.py",
        "if alive[self._node]:", "if True:",
        ("test_head.py::test_a_driver_whose_own_node_is_lost_does_not_wait_for_it",),
    ),
    Fault(
        "a dead Ray of this machine is waited for", "run/cluster/head.py",
        "self._local and not listens(self.place)", "False",
        ("test_head.py::test_a_head_of_this_machine_that_has_ended_is_not_waited_for",),
    ),
    Fault(
        "Tune writes down each trial", "run/cluster/idle.py",
        "controller._get_trial_checkpoints = dict", "pass",
        (IDLE + "nothing_is_written_down_of_each_trial",),
    ),
    Fault(
        "stages are blamed for a host on which no worker starts", "run/cluster/death.py",
        "return _failed_start(error)",
        "return Death(reason=str(error)[-2000:], key=key, output=text)",
        ("test_hosts.py::test_a_host_on_which_no_worker_can_start_is_named_and_given_no_work",),
    ),
    Fault(
        "trainings to come take as long as a plan guesses", "run/pace.py",
        "self._expected(stages[longest], drift) if longest else (0.0, True)",
        "schedule.longest_grown[0], True",
        (PACE + "trials_that_wait_count_a_training_as_long_as_trainings_were",),
    ),
    Fault(
        "a method that was not timed is paced in another one's units", "run/pace.py",
        "sum(one.mean for one in others) / len(others)",
        "work * sum(one.seconds / one.work for one in others) / len(others)",
        (PACE + "a_method_that_was_not_timed_takes_as_long_as_others_of_its_kind",),
    ),
    Fault(
        "a launch inline keeps silent on limits that it cannot hold", "run/inline.py",
        "if run.sweep.resources.limits:", "if False:",
        (LIMITS + "a_launch_that_can_hold_no_limit_says_so",),
    ),
    Fault(
        "one timed stage makes a limit", "run/limits.py",
        "if timed < FEWEST:", "if not timed:",
        (LIMITS + "a_limit_follows_from_the_slowest_of_enough_stages_like_it",),
    ),
    Fault(
        "a limit follows from stages of another recipe", "run/limits.py",
        "own = digest(canonical(params))[:12]", 'own = ""',
        (LIMITS + "a_limit_that_was_timed_is_of_the_very_same_setup",),
    ),
    Fault(
        "a part of the package alone travels to a cluster", "run/cluster/runtime_env.py",
        "raysweep.__path__[0],", "str(Path(__file__).parents[1]),",
        ("test_submit.py::test_the_whole_package_travels",),
    ),
    Fault(
        "an address is tried when nobody reads any more", "cli/running.py",
        "found(address)  #", "pass  #",
        ("test_submit.py::"
         "test_an_address_where_no_cluster_answers_is_told_before_the_terminal_is_left",),
    ),
)  # fmt: skip

FAULTS = HANDED_OUT + STORED + TOLD + ANEW + SHARED + WATCHED + FOLLOWED + ALONE
