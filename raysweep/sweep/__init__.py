"""The sweep file: text becomes typed values.

yaml         YAML, the line of every value kept
scalars      numbers and words of YAML 1.2        syntax     the likely slip behind bad YAML
reading      axes opened, methods made            faults     a fault, said as rule and remedy
loading      a file, in YAML or Python             editing    a file, with other values in it
spec         a sweep                               trials     its trials, its exclusions
resources    the share of a machine per stage      tuning     the `tune` section
schema       the JSON Schema of a sweep file       catalog    tables of all methods
differences  how two sweeps differ                 overrides  values that the command line sets
ranges       the range of a tuned parameter        searching   `tune` against the defenses
race         the rules of `seeds: {max: 20, until: separated}`
guide        one method: parameters, an example
"""
