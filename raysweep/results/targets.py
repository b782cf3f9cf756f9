"""The target class of an attack by its name, where its number does not tell it."""

from __future__ import annotations

import pandas as pd

from raysweep.errors import SpecError, StoreError
from raysweep.methods import load
from raysweep.results.columns import KEYS, PARAMETERS
from raysweep.store import Store


def sentence(dataset: str, word: str, target: int, name: str) -> str:
    """Return a sentence that names a target class; "" where its name is its number.

    Args:
        dataset: label of the dataset.
        word: what a class is in the dataset's source.
        target: number of the class.
        name: name of the class.
    """
    return "" if name == str(target) else f"{dataset}: target {target} is {word} {name!r}"


def stored_sentences(rows: pd.DataFrame, store: Store) -> list[str]:
    """Return a sentence for each target of records whose number is not the name of its class.

    Args:
        rows: one row per trial.
        store: where the decoded datasets are; of those that are gone nothing is said.
    """
    label_map, data = PARAMETERS["attack"].of("label_map"), KEYS.of("data")
    if not {label_map, data, "target", "rate", "dataset"} <= set(rows):
        return []
    evades = rows["evades"].fillna(value=False) if "evades" in rows else False
    aimed = rows[(rows[label_map] == "all_to_one") & ((rows["rate"] > 0) | evades)]
    asked = aimed[[data, "dataset", "target"]].drop_duplicates().dropna()
    said = set()
    for key, dataset, target in asked.itertuples(index=False):
        classes = _classes(store, key)
        if 0 <= target < len(classes):
            said.add(sentence(dataset, _word(dataset), int(target), classes[target]))
    return sorted(said - {""})


def _classes(store: Store, key: str) -> tuple[str, ...]:
    """Return the names of the classes of a decoded dataset; none if they are not known."""
    try:
        found = store.manifest_as_asked(key)
    except StoreError:
        return ()
    classes = found.outcome.get("classes") if found else None
    return tuple(map(str, classes)) if isinstance(classes, list) else ()


def _word(dataset: str) -> str:
    """Return the word for a class in the source of a dataset with some label."""
    try:
        return str(getattr(load("datasets", dataset.partition("(")[0]), "CLASS", "class"))
    except SpecError:
        return "class"
