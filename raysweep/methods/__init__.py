"""The base class of methods, and their surroundings: parameters, recipe, context.

method    the base class, fields that only decisions read
registry  all methods by name, those of other packages too
value     the base of all that a user writes
recipe    how a model is trained
context   random streams, device, progress, checkpoints
checkpoints  the checkpoint of a stage, part by part
"""

from __future__ import annotations

from raysweep.methods.context import Arrays, Context
from raysweep.methods.method import (
    Method,
    decision,
    decision_fields,
    log_range,
    path_fields,
    paths_of,
    reduction,
    reduction_fields,
    search_ranges,
    searched,
)
from raysweep.methods.recipe import Recipe
from raysweep.methods.registry import (
    ROLES,
    Role,
    available,
    by_content,
    check_version,
    load,
    restore,
    usable,
)

__all__ = [
    "ROLES",
    "Arrays",
    "Context",
    "Method",
    "Recipe",
    "Role",
    "available",
    "by_content",
    "check_version",
    "decision",
    "decision_fields",
    "load",
    "log_range",
    "path_fields",
    "paths_of",
    "reduction",
    "reduction_fields",
    "restore",
    "search_ranges",
    "searched",
    "usable",
]
