"""Results: rows that anything else is a view of.

columns      the columns of both tables, named once      rows        made from manifests at any time
table        both tables as Parquet files                records     as a user reads them
description  what is written down about a sweep          history     versions of a name's records
tuned        what a tuning leaves, typed                 json_fields stored JSON, field by field
status       of one sweep, and of all in a store         removal     of all that is stored of one
entries      what W&B is told of a trial or a tuning     wandb       publishes entries as runs
wandb_runs   the W&B client                     published   what W&B is seen to hold
arrivals     trials as they finish
"""
