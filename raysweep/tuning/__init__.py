"""Tuning: which parameters of a defense are best, by what labels, on attacks that it has not seen.

Or which parameters of an attack are best for an attacker, against which defenses: one engine
searches both. Its subject is the method that is searched.

stored     decisions replayed on stored scores
answer     the decision of a defense that answers an attack
measurements  metrics of a subject, each measured once
space      what is searched: parameters that stored scores answer for, and those that need stages
ranking    what is better: objectives, constraints, the Pareto front
storage    the place of studies: a database, or a journal
samplers   Optuna's samplers and pruners, with every argument
stopping   the ends of a search before its trials are used up
study      an Optuna study that survives kills
recording  exact searches, left as studies
search     one search over the settings that it may see
folds      the searches of a sweep: what each may see, and what it is reported on
feed       feeds searches into a running sweep
forecast   searches and candidates before they are run
costs      the stages and seconds of a search
candidates what the ledger remembers of candidates
notes      the note of a row: the end of a range, thresholds that cannot be told apart
summary    opens what was held out, and works out what tuning gained
"""
