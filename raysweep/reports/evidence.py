"""What can be looked at: attacked images, verdicts on models, estimated triggers; pure."""

from __future__ import annotations

import math

import numpy as np

from raysweep.reports.elements import note, shown, table, text
from raysweep.reports.material import Material
from raysweep.reports.tables import arena_column, attack_column, finished, number, words

SAMPLES = 4
MODELS = 6
CLASSES = 20


def magnified(clean_CHW: np.ndarray, triggered_CHW: np.ndarray) -> np.ndarray:
    """Return |triggered - clean| of uint8 images times `factor` of them, uint8."""
    gap = np.abs(triggered_CHW.astype(int) - clean_CHW.astype(int))
    product: np.ndarray = (gap * factor(clean_CHW, triggered_CHW)).astype(np.uint8)
    return product


def factor(clean_CHW: np.ndarray, triggered_CHW: np.ndarray) -> int:
    """Return the largest whole factor by which their difference still fits 8 bits, at least 1."""
    largest = int(np.abs(triggered_CHW.astype(int) - clean_CHW.astype(int)).max(initial=0))
    return 255 // largest if largest else 1


def pictures(material: Material) -> str:
    """Return clean, triggered and difference of some images, for each attack."""
    out = ""
    for attack, (clean, triggered) in material.pictures.items():
        rows = ""
        for which, (before, after) in enumerate(
            zip(clean[:SAMPLES], triggered[:SAMPLES], strict=False), 1
        ):
            largest = int(np.abs(after.astype(int) - before.astype(int)).max(initial=0))
            times = factor(before, after)
            change = f"difference × {times}" if largest else "no difference"
            gap = f"absolute difference times {times}, at most {largest} of 255 per pixel"
            three = (
                (before, "clean", "clean"),
                (after, "triggered", "with the trigger"),
                (magnified(before, after), change, gap),
            )
            images = "".join(
                shown(image, caption, f"{attack}, test image {which}: {alt}")
                for image, caption, alt in three
            )
            rows += f'<div class="triple">{images}</div>'
        if rows:
            out += f'<h3>{text(attack)}</h3><div class="gallery">{rows}</div>'
    return out


def verdicts(material: Material) -> str:
    """Return what inspectors say of each model, and the triggers that they estimate."""
    rows = finished(material.rows)
    if "verdict" not in rows or rows["verdict"].notna().sum() == 0:
        return ""
    judged = rows[rows["verdict"].notna()]
    arenas, attacks = arena_column(judged), attack_column(judged)
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
        named = words(row.get("verdict_classes")).split(", ")
        images = "".join(
            shown(
                np.rint(np.clip(np.nan_to_num(t), 0, 1) * 255).astype(np.uint8),
                f"class {k}" + (" (named)" if str(k) in named else ""),
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
    said = note(f"Shown: {' and '.join(fewer)}.") if fewer else ""
    return f"<h3>Estimated triggers</h3>{said}{out}"
