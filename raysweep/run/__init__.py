"""Carries out a plan.

run           a sweep under way: schedule, store, ledger
schedule      what is ready, out, failed, grown; pure
stored        which stored stages count          force    which stages are done anew
inline        in this process                      ray      on Ray Tune
session       the plan as Tune's searcher          worker   the process at the other end
batch         messages between the two
cluster       nodes and what they have             preview  what a launch would do
address       of a cluster, found and tried        runtime_env  the driver's code on every node
jobs_server   takes a sweep from outside           probe    what a host sees of storage and data
unmet         requests that no host can meet
interruption  signals                             nearest  how a stage differs from stored ones
"""
