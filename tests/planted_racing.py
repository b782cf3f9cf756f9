"""Faults of races that cost a user silently, for `python -m tests.faults`."""

from __future__ import annotations

from tests.faults import Fault

RACE, PLAN = "metrics/race.py", "plan/race.py"
HERE, RUN = "test_race.py::test_", "test_racing.py::test_"

FAULTS = (
    Fault(
        "both directions of a pair share no stake", RACE,
        "np.maximum(towards(wins, losses), towards(losses, wins)) / 2",
        "np.maximum(towards(wins, losses), towards(losses, wins))",
        (HERE + "evidence_is_the_integral", HERE + "nobody_gains_by_a_fair_coin"),
    ),
    Fault(
        "each pair is tested by itself", RACE,
        "lowest = np.concatenate([[0.0], np.cumsum(others)])", "lowest = np.zeros(1)",
        (HERE + "the_closed_test_is_the_one_over_all_subsets",),
    ),
    Fault(
        "what is separated is given up again", RACE,
        'elif state == "open":', "else:",
        (HERE + "what_is_separated_stays_so_while_its_defenses_race_others",),
    ),
    Fault(
        "a seed without a value is a loss", RACE,
        "ties=pair.ties + (not one < other and not one > other)",
        "ties=pair.ties + (one == other)",
        (HERE + "a_seed_without_a_value_says_nothing",),
    ),
    Fault(
        "all defenses go on while one pair is open", RACE,
        "running = [one for one in running if one in racing]",
        "running = running if racing else []",
        (HERE + "only_defenses_of_open_pairs_go_on",),
    ),
    Fault(
        "each attack has the whole level", PLAN,
        "self.rules.false_separations / max(1, self.running)", "self.rules.false_separations",
        (RUN + "attacks_share_the_chance_of_a_false_separation",),
    ),
)  # fmt: skip
