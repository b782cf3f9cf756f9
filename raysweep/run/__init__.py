"""Carries out a plan.

run           a sweep under way: schedule, store, ledger
schedule      what is ready, out, failed, grown; pure
inline        in this process                      ray      on Ray Tune
session       the plan as Tune's searcher          worker   the process at the other end
batch         messages between the two
cluster       nodes and what they have             preview  what a launch would do
interruption  signals
"""
