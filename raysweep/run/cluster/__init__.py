"""Carries out a plan on the hosts of a Ray cluster.

address      of a cluster, found and tried      nodes        what they have, and room for stages
runtime_env  the driver's code on every node    jobs_server  takes a sweep from outside
probe        what a host sees of storage and data
hosts        which host can do what             unmet        requests that no host can meet
head         knocked at, until it is lost
ray          one Tune experiment                session      the plan as Tune's searcher
idle         workers kept while stages come     worker       the process at the other end
batch        messages between the two           watch        tells of the stage at work
output       what a stage writes                death        why a worker process died
"""
