"""The sweep file: text becomes typed values.

yaml         YAML, the line of every value kept
loading      axes opened, methods made             faults     a fault, said as rule and remedy
spec         a sweep                               trials     its trials, its exclusions
resources    the share of a machine per stage      tuning     the `tune` section
schema       the JSON Schema of a sweep file       catalog    tables of all methods
differences  how two sweeps differ                 overrides  values that the command line sets
ranges       the range of a tuned parameter        searching   `tune` against the defenses
rewriting    a tuned sweep file, as its author wrote it
guide        one method: parameters, an example
"""
