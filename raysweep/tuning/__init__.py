"""Tuning: which parameters of a defense are best, by what labels, on attacks that it has not seen.

stored     decisions replayed on stored scores
space      what is searched: parameters that stored scores answer for, and those that need stages
ranking    what is better: objectives, constraints, the Pareto front
study      an Optuna study that survives kills
search     one search over the settings that it may see
folds      the searches of a sweep: what each may see, and what it is reported on
feed       feeds searches into a running sweep
told       candidates as the ledger remembers them
summary    opens what was held out, and works out what tuning gained
"""
