"""Stages: one file is one stage kind, named by the kind.

prepare   decode a dataset, or prepare an attack     shard     one part of a defense's work
poison    the samples that an attack replaces        defend    run a defense, or repair a model
train     a victim, or a retraining                  decide    what a defense flags
features  a set pushed through a model               evaluate  the metrics of one trial
visibility  how far a trigger changes inputs

What all kinds share:

stage      a unit of work: parameters, key, inputs   content   what artifacts hold, typed
current    what this process performs now         memory    the most that a stage held
inputs     artifacts by role, unpacked on demand     triggers  an attack's trigger applied
knowledge  what a defense may see                    perform   run a stage; a failure is a result
"""
