"""Results: rows that anything else is a view of.

rows     one per trial, from manifests at any time     records     what is written and loaded
history  versions of a sweep's records                 wandb       rows as W&B runs
entries  what W&B is told of a trial                   wandb_runs  the W&B client
"""
