"""A user's jobs, from beginning to end.

launch   run what is missing of a sweep      tune    search better parameters
publish  the page and W&B, which end both            api     the jobs as functions of Python
compare  two stored sweeps, and defenses on one victim
submit   hand a sweep to a cluster from outside      detached   a driver without its terminal
"""
