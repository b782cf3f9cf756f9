"""What a user asks for: a file becomes typed values.

yaml         text in which every part knows its line
loading      axes opened, methods made             spec       a sweep, its trials
resources    what a stage may hold                 tuning     the `tune` section
schema       the JSON Schema of a sweep file       catalog    tables of all methods
differences  what tells two sweeps apart
"""
