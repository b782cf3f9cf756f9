"""Candidates as the ledger remembers them, should their study's storage have been lost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

import optuna
from optuna.trial import TrialState

from raysweep.store.events import CandidateEnd, Event

# Attributes of a study and of its candidates.
FAILED, METRICS, REPLAYED, TIED = "failed", "metrics", "replayed", "evaluated_on"
INSTANCES = "instances"
UNKNOWN = 1e9  # by how much an unknown constraint is broken: a database's JSON has no infinity


def candidate_ends(lines: Iterable[Event], name: str, tied: str) -> list[CandidateEnd]:
    """Return the candidates that a ledger remembers of a study, evaluated on the same."""
    told = (line for line in lines if isinstance(line, CandidateEnd))
    return [line for line in told if (line.study, line.tied) == (name, tied)]


def recover(
    study: optuna.Study,
    told: Iterable[CandidateEnd],
    spread: Mapping[str, optuna.distributions.BaseDistribution],
) -> None:
    """Enter candidates into a study whose storage was lost; damaged lines are left out.

    Args:
        study: an empty study.
        told: what the ledger remembers of it.
        spread: parameter → its distribution.
    """
    for line in told:
        with contextlib.suppress(KeyError, TypeError, ValueError):  # a damaged ledger
            state = TrialState[line.state]
            read = {name: dict(line.attrs[name]) for name in (METRICS, REPLAYED)}
            study.add_trial(
                optuna.trial.create_trial(
                    state=state,
                    params=dict(line.params),
                    distributions={name: spread[name] for name in line.params},
                    values=line.values if state == TrialState.COMPLETE else None,
                    constraints=dict(line.constraints),
                    user_attrs={**line.attrs, **read},
                )
            )
