"""Metrics: pure functions on arrays.

rates      clean accuracy, attack success, robust accuracy, detection rates
ranking    AUROC, average precision, ROC curves, separability
intervals  of inputs, of seeds, of attacks, of differences
visibility distances and likeness of triggered inputs and their originals
pairs      tests of paired differences, ranks over settings
judgment   all metrics of one trial, against the truth, packed and unpacked as stored
parts      the flags, detector and verdict of a judgment
curves     ROC curves and losses       names      prefixes of names, written and read
"""
