"""Reports: pure functions of the records.

material    everything that a page shows, read from records and store
document    a page, made of sections, data and the templates in templates/
html        the page of a sweep        comparison  the page of two sweeps
answer      what the findings say             cells      the trials that differ in seeds alone
sections    curves, internals, verdicts, tuning, adaptive, pictures, costs, failures, provenance:
sheets      tables as data                    drawings   figures as data, thinned
data        compact, compressed JSON          logs       of failed stages, for trials
tables      aggregation over seeds            formats    CSV, JSON, Markdown, LaTeX
leaderboard  a site of several sweeps

The page draws its data by the scripts in page/, one for each thing, with the libraries in vendor/.
"""
