"""Results: rows that anything else is a view of.

columns      the columns of both tables, named once      rows        made from manifests at any time
schema       types, units and meanings of columns        trials      rows that reach their artifacts
table        both tables as Parquet files                records     as a user reads them
artifacts    scores, curves and images of a trial
description  what is written down about a sweep          history     versions of a name's records
tuned        what a tuning leaves, typed                 json_fields stored JSON, field by field
account      how each search of a tuning went
grouping     columns that rows are grouped by       cells        means with honest intervals
comparison   defenses paired by setting             findings     what holds, and which is best
changes      from one sweep to another
status       of one sweep, and of all in a store         removal     of all that is stored of one
entries      the contents of W&B's runs                  wandb       publishes entries as runs
wandb_runs   the W&B client, with its wandb_settings     wandb_reports  W&B Reports and saved views
text         text that is safe to show
published    what W&B is seen to hold                arrivals    trials as they finish
"""
