"""The answer in words, the headline, and a table for each attack; pure."""

from __future__ import annotations

import math

import pandas as pd

from raysweep.metrics.names import INPUT
from raysweep.reports.html_elements import badges, details, note, table, text
from raysweep.reports.material import Material
from raysweep.reports.tables import (
    METRICS,
    SHOWN,
    aggregate,
    attack_column,
    attacked,
    count,
    failed_attacks,
    failed_mask,
    failure_texts,
    finished,
    floors,
    number,
    percent,
    setting_column,
    spread,
    words,
)

EXTRA = (
    "ca_eligible", "ra", "auroc", INPUT.of("auroc"), "ap", "tpr_at_1fpr", "fpr_no_cover",
    "cover_removal",
)  # fmt: skip
TITLES = SHOWN | {
    "ca_eligible": "CA of eligible", "ra": "RA", "auroc": "AUROC",
    INPUT.of("auroc"): "AUROC of inputs", "ap": "AP", "tpr_at_1fpr": "TPR@1%FPR",
    "fpr_no_cover": "FPR without covers", "cover_removal": "covers removed",
}  # fmt: skip
# Differences that do not count as one: the project's equivalence margins.
CA_MARGIN = 0.02
ASR_MARGIN = 0.05
KEY = (
    "In percent. a [b–c]: mean and its 95 % interval, of the inputs of one model, of three seeds "
    "or more, or of ten families of attacks or more; a (b, c): mean and values, or their range, "
    "where no interval is honest; –: undefined. "
)


def _prepared(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with the columns that tables group by."""
    merged = rows.copy()
    merged["label"], merged["badges"] = rows["attack"], rows["badges"].map(words)
    merged["attack"], merged["arena"] = attack_column(rows), setting_column(rows)
    merged["failed"], merged["found"] = failed_mask(rows), failure_texts(rows)
    return merged


def _averaged(merged: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that averages are over: finished, attacked, by attacks that worked."""
    done = finished(merged)
    return done[~done["failed"] & attacked(done)]


def _ranked(rows: pd.DataFrame) -> pd.DataFrame:
    if rows.empty:
        return rows
    means = aggregate(rows, ["defense", "defense_name", "kind", "badges"], METRICS)
    return means.sort_values(["asr", "ca"], ascending=[True, False])


def answer(material: Material) -> str:
    """Return the question, and what the numbers say to it."""
    question = text(words(material.sweep.question) or "No question was written down.")
    asked = f'<p class="question">{question}</p>'
    total, rows = len(material.rows), material.rows
    if total == 0 or finished(rows).empty:
        return asked + f'<p class="answer">None of {total} trials has finished.</p>'
    merged = _prepared(rows)
    kept = _averaged(merged)
    several = merged["arena"].nunique() > 1
    paragraphs = []
    for arena, part in kept.groupby("arena", sort=False):
        before = f"<strong>{text(arena)}.</strong> " if several else ""
        paragraphs.append(before + _findings(part))
    if not paragraphs:
        paragraphs = ["No attack that worked was tried, so no defense can be judged."]
    done = f"{len(finished(rows))} of {total} trials finished."
    paragraphs[0] = f"{done} {paragraphs[0]}"
    said = "".join(f'<p class="answer">{p}</p>' for p in paragraphs)
    return asked + said + _left_out(rows)


def _left_out(rows: pd.DataFrame) -> str:
    failed = [f"{name} ({found})" for name, found in sorted(failed_attacks(rows).items())]
    if not failed:
        return ""
    said = text("; ".join(failed))
    return note(f"Attacks that failed are left out of averages: {said}.")


def _named(entry: pd.Series[float]) -> str:
    marks = words(entry["badges"])
    return f"<strong>{text(entry['defense'])}</strong>" + (f" ({text(marks)})" if marks else "")


def _findings(part: pd.DataFrame) -> str:
    """Return sentences on one arena: no defense, the best, and the best that keeps accuracy."""
    means = _ranked(part)
    alone = means[means["defense_name"] == "none"]
    rivals = means[(means["kind"] != "control") & means["asr"].notna()]
    out = []
    if len(alone):
        none = alone.iloc[0]
        out.append(
            f"Without a defense, attacks succeed on {spread(none, 'asr')} % of triggered inputs "
            f"at a clean accuracy of {spread(none, 'ca')} %."
        )
    else:
        out.append("No undefended trial finished, so whether the attacks worked is not known.")
    if rivals.empty:
        return " ".join([*out, "No defense was measured against them."])
    best = rivals.iloc[0]
    out.append(
        f"{_named(best)} leaves the lowest ASR, {spread(best, 'asr')} %, at a clean accuracy of "
        f"{spread(best, 'ca')} %."
    )
    if len(alone) and not math.isnan(alone.iloc[0]["ca"]):
        out.append(_price(rivals, best, float(alone.iloc[0]["ca"]), float(alone.iloc[0]["asr"])))
    return " ".join(out)


def _price(rivals: pd.DataFrame, best: pd.Series[float], ca: float, asr: float) -> str:
    """Return a sentence on the accuracy that the best costs, and on rivals without that cost."""
    if best["asr"] > asr - ASR_MARGIN:
        return "That is no better than no defense, within 5 points."
    loss = ca - float(best["ca"])
    if not loss > CA_MARGIN:
        near = rivals[
            (rivals["asr"] <= best["asr"] + ASR_MARGIN) & (rivals["ca"] >= ca - CA_MARGIN)
        ]
        others = ", ".join(text(name) for name in near["defense"] if name != best["defense"])
        return f"Within 5 points of it at no loss of accuracy: {others}." if others else ""
    keeps = rivals[(rivals["ca"] >= ca - CA_MARGIN) & (rivals["asr"] <= asr - ASR_MARGIN)]
    said = f"That costs {100 * loss:.1f} points of clean accuracy."
    if keeps.empty:
        return said + " No defense lowers the ASR by 5 points and keeps accuracy within 2 points."
    other = keeps.iloc[0]
    return (
        f"{said} Of those that keep it within 2 points, {_named(other)} leaves the lowest ASR: "
        f"{spread(other, 'asr')} %."
    )


def headline(rows: pd.DataFrame) -> str:
    """Return defense × metrics, over all attacks that worked, for each arena."""
    if rows.empty:
        return ""
    kept = _averaged(_prepared(rows))
    several, out = kept["arena"].nunique() > 1, []
    for arena, part in kept.groupby("arena", sort=False):
        every = part["attack"].nunique()
        lines = []
        for _, e in _ranked(part).iterrows():
            own = part[(part["defense"] == e["defense"]) & (part["badges"] == e["badges"])]
            met = own["attack"].nunique()
            lines.append(
                [text(e["defense"]), text(e["kind"]), *(spread(e, m) for m in METRICS),
                 str(met) if met == every else f"{met}/{every}", str(len(own)),
                 badges(e["badges"])]
            )  # fmt: skip
        headers = ["defense", "kind", *SHOWN.values(), "attacks", "n", "badges"]
        caption = "Over attacks that worked, their rates and seeds, in percent"
        out.append(
            table(caption + (f" · {arena}" if several else ""), headers, lines, words_first=2)
        )
    if not out:
        return ""
    uneven = "Where a defense met fewer attacks than others (a/b), its means are not comparable. "
    return "".join(out) + note(
        KEY + "Over attacks, values are means of families of attacks. " + uneven
        + "n: trials."
    ) + _floors(rows, several) + _left_out(rows)  # fmt: skip


def _floors(rows: pd.DataFrame, several: bool) -> str:
    known = [
        f"{text(attack)}{f' ({text(arena)})' if several else ''} {percent(value)} %"
        for (arena, attack), value in floors(rows).items()
    ]
    if not known:
        return ""
    return note(f"ASR₀, what a trigger achieves on the clean model (rate 0): {', '.join(known)}.")


def by_attack(rows: pd.DataFrame) -> str:
    """Return a table for each arena and attack, with every seed behind it."""
    done = finished(rows)
    if done.empty:
        return ""
    merged, floor = _prepared(rows), floors(rows)
    metrics = [m for m in (*METRICS, *EXTRA) if m in merged and merged[m].notna().any()]
    out = [note(KEY + "n: finished trials.")]
    for (arena, attack), part in merged.groupby(["arena", "attack"], sort=False):
        if finished(part).empty:
            continue
        lines = []
        here = [m for m in metrics if part[m].notna().any()]
        by = ["defense", "badges"]
        groups = [group for _, group in part.groupby(by, sort=False, dropna=False)]
        for (_, e), own in zip(aggregate(part, by, here).iterrows(), groups, strict=True):
            cells = [f'<span title="{text(_seeds(own, m))}">{spread(e, m)}</span>' for m in here]
            lines.append([text(e["defense"]), *cells, count(own), badges(e["badges"])])
        headers = ["defense", *(TITLES[m] for m in here), "n", "badges"]
        caption = _caption(part, f"{attack} · {arena}")
        zero = floor.get((str(arena), str(part.iloc[0]["label"])))
        caption += "" if zero is None else f"; ASR₀ {percent(zero)} %"
        if part["failed"].any():
            caption += f"; {part['found'].iloc[0]}"
        out.append(table(caption, headers, lines) + _every(part, here, f"{attack} · {arena}"))
    return "".join(out)


def _caption(part: pd.DataFrame, name: str) -> str:
    first = finished(part).iloc[0]
    counts = [number(first.get(c)) for c in ("poison_count", "cover_count", "n_train")]
    if any(map(math.isnan, counts)):
        return name
    poison, cover, total = counts
    return f"{name}: {poison:,.0f} poisoned and {cover:,.0f} covers of {total:,.0f} images"


def _seeds(own: pd.DataFrame, metric: str) -> str:
    values = zip(own["seed"], own[metric], strict=True)
    return ", ".join(f"seed {seed}: {percent(number(v))}" for seed, v in values)


def _every(part: pd.DataFrame, metrics: list[str], name: str) -> str:
    lines = []
    for row in part.to_dict("records"):
        lines.append(
            [text(row["defense"]), text(row["seed"]), *(percent(number(row[m])) for m in metrics),
             text(row["status"])]
        )  # fmt: skip
    headers = ["defense", "seed", *(TITLES[m] for m in metrics), "status"]
    return details(
        f"Every seed: {len(lines)} trials",
        table(f"{name}: every trial, in percent", headers, lines),
    )
