"""Carries out a plan.

run           a sweep under way: schedule, store, ledger
schedule      what is ready, out, failed, grown; pure
inline        in this process                      ray      on Ray Tune
feed          the plan as Tune's searcher          worker   the process at the other end
cluster       nodes and what they have             preview  what a launch would do
interruption  signals
"""
