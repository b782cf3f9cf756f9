"""Tuning: which parameters of a defense are best, by what labels, on attacks that it has not seen.

space    what is searched: parameters that stored scores answer for, and those that need stages
merit    what is better: objectives, constraints, the Pareto front
study    an Optuna study that survives kills
search   one search over the instances that it may see
supply   feeds searches into a running sweep
conclude opens what was held out, and says what tuning gained
"""
