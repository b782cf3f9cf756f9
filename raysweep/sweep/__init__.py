"""The sweep file: text becomes typed values.

yaml         YAML, the line of every value kept    scalars    words: numbers, booleans, text
syntax       a syntax error, said as a likely slip  faults     a fault, said as rule and remedy
loading      sweep files, in YAML or Python        reading    axes opened, methods made
editing      a sweep file with other values        ranges     ranges against their parameters
spec         a sweep                               trials     its trials, its exclusions
resources    the share of a machine per stage      tuning     the `tune` section
schema       the JSON Schema of a sweep file       catalog    tables of all methods
differences  how two sweeps differ                 overrides  values that the command line sets
guide        one method: parameters, an example
"""
