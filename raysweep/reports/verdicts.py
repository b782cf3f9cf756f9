"""Verdicts on models, and the triggers that inspectors estimate; pure."""

from __future__ import annotations

import math

import numpy as np

from raysweep.metrics.parts import classes_in
from raysweep.reports.html_elements import note, shown, table, text
from raysweep.reports.material import Material
from raysweep.reports.tables import attack_column, finished, number, setting_column, words

MODELS = 6
CLASSES = 20


def verdicts(material: Material) -> str:
    """Return the section on the verdicts of inspectors, and the triggers that they estimate."""
    rows = finished(material.rows)
    if "verdict" not in rows or rows["verdict"].notna().sum() == 0:
        return ""
    judged = rows[rows["verdict"].notna()]
    arenas, attacks = setting_column(judged), attack_column(judged)
    lines = []
    records = judged.to_dict("records")
    for row, attack, arena in zip(records, attacks, arenas, strict=True):
        right = row.get("verdict_correct")
        lines.append(
            [text(row["defense"]), text(attack), text(arena), text(row["seed"]),
             "backdoor" if row["verdict"] else "clean", text(row.get("verdict_classes")),
             "–" if not words(right) else "right" if right else "wrong",
             _yes(row.get("target_found")), _short(row.get("anomaly")), _short(row.get("p_value"))]
        )  # fmt: skip
    headers = ["defense", "attack", "trained on", "seed", "verdict", "classes", "verdict is",
               "target among them", "largest anomaly", "p-value"]  # fmt: skip
    return table("Verdicts on models", headers, lines, words_first=3) + _triggers(material)


def _yes(value: object) -> str:
    return ("yes" if value else "no") if words(value) else "–"


def _short(value: object) -> str:
    return "–" if math.isnan(number(value)) else f"{number(value):.3g}"


def _triggers(material: Material) -> str:
    rows = material.rows.drop_duplicates("trial").set_index("trial")
    attacks = attack_column(rows)
    known = [trial for trial in material.triggers if trial in rows.index]
    out = ""
    for trial in known[:MODELS]:
        row, triggers = rows.loc[trial], material.triggers[trial]
        who = f"{row['defense']}, {attacks[trial]}, seed {row['seed']}"
        named = classes_in(words(row.get("verdict_classes")))
        images = "".join(
            shown(
                np.rint(np.clip(np.nan_to_num(t), 0, 1) * 255).astype(np.uint8),
                f"class {k}" + (" (named)" if k in named else ""),
                f"{who}: estimated trigger of class {k}",
            )
            for k, t in enumerate(triggers[:CLASSES])
        )
        out += f'<h4>{text(who)}</h4><div class="gallery">{images}</div>'
    if not out:
        return ""
    fewer = [f"the first {MODELS} of {len(known)} models"] if len(known) > MODELS else []
    if any(len(material.triggers[t]) > CLASSES for t in known[:MODELS]):
        fewer.append(f"the first {CLASSES} classes")
    shortened = note(f"Shown: {' and '.join(fewer)}.") if fewer else ""
    return f"<h3>Estimated triggers</h3>{shortened}{out}"
