"""A user's jobs, from beginning to end.

launch   run what is missing of a sweep      tune    search better parameters
publish  the page, which ends both                   api     the jobs as functions of Python
compare  two stored sweeps, and defenses on one victim
sync     publish to W&B what is missing              publishing  that, beside a driver
live     the page, while a sweep runs                beside      commands that leave stages alone
submit   hand a sweep to a cluster from outside      detached    a driver without its terminal
wandb_report  a W&B Report of sweeps
"""
