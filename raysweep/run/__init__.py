"""Carries out a plan.

run           a sweep under way: schedule, store, ledger
schedule      what is ready, out, failed, grown; pure
ready         queues of ready stages             tally    stages counted by kind
leases        this run among other drivers       pace     how long the rest will take
source        trials that come while it is under way
pauses        stages that are tried again later
stored        which stored stages count          force    which stages are done anew
inline        in this process                      ray      on Ray Tune
session       the plan as Tune's searcher          worker   the process at the other end
batch         messages between the two            watch    tells of the stage at work
death         why a worker process died           output   what a stage writes
limits        how long stages may run             queue    how long stages waited
cluster       nodes and what they have             preview  what a launch would do
address       of a cluster, found and tried        runtime_env  the driver's code on every node
jobs_server   takes a sweep from outside           probe    what a host sees of storage and data
unmet         requests that no host can meet       head     knocked at, until it is lost
interruption  signals                             nearest  how a stage differs from stored ones
"""
