"""W&B Reports: one report and one saved view of one sweep or more; the same when written again.

report   writes them          subject  a sweep that a report is about
blocks   what a report says   panels   sets of runs, and charts over them
view     the saved view

Only `report` and `subject` are imported from outside: the others need wandb-workspaces, an extra.
Filters compare parameters whose values are plain names, since the library writes `>` as `>=` and
`=` as `==` even inside of what is compared.
"""
