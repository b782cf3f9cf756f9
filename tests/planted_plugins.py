"""Faults of what users bring, networks and plugins, for `python -m tests.faults`."""

from __future__ import annotations

from tests.faults import Fault

SOURCE, NETWORK, REGISTRY = "models/_source.py", "models/_network.py", "methods/registry.py"
OWN = "test_own_networks.py::test_"
PLUGINS = "test_plugins.py::test_"

FAULTS = (
    Fault(
        "a key without the files that a network imports", SOURCE,
        "found[other] = file", "found = {module: first}",
        (OWN + "a_changed_network_is_another_model",),
    ),
    Fault(
        "a network that was imported before its file changed", "models/module.py",
        " and not is_stale(found.files)", "",
        (OWN + "a_network_that_was_imported_before_its_file_changed_is_refused",),
    ),
    Fault(
        "a softmax after the head", NETWORK,
        "features.ndim != 2 or not torch.equal(made, logits)", "features.ndim != 2",
        (OWN + "data_and_head_are_tried_before_a_training",),
    ),
    Fault(
        "the first of several heads", NETWORK,
        "if len(fit) != 1:", "if not fit:",
        (OWN + "what_is_wrong_names_the_value_and_the_remedy",),
    ),
    Fault(
        "a plugin in the place of a method of our own", REGISTRY,
        "if any(other.package == OWN for other in before):", "if False:",
        (PLUGINS + "the_name_of_raysweeps_own_method_is_its_own",),
    ),
    Fault(
        "a plugin that stops the list of all methods", REGISTRY,
        "_warn(_offers(role)[name][0].package, str(error))", "raise",
        (PLUGINS + "a_plugin_that_cannot_be_used_is_told_and_stops_nothing_else",
         PLUGINS + "two_packages_that_bring_one_name_are_both_named"),
    ),
    Fault(
        "an estimate that takes images of one size alone for granted", "plan/costs.py",
        "except Exception:", "except NotImplementedError:",
        (OWN + "work_is_estimated_for_any_network",),
    ),
    Fault(
        "a name that an imported package hides", "__init__.py",
        '"launch": "raysweep.jobs.api"', '"launch": "raysweep.jobs.launch"',
        ("test_api.py::test_editors_know_each_public_name",),
    ),
)  # fmt: skip
