"""Carries out a plan.

run           a sweep under way: schedule, store, ledger
schedule      what is ready, out, failed, grown; pure
ready         queues of ready stages             tally    stages counted by kind
leases        this run among other drivers       pace     how long the rest will take
source        trials that come while it is under way
pauses        stages that are tried again later
limits        how long stages may run            queue    how long stages waited
stored        which stored stages count          force    which stages are done anew
preview       what a launch would do             nearest  how a stage differs from stored ones
interruption  signals
inline        in this process                    cluster  on Ray Tune
"""
