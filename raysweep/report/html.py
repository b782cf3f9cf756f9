"""The HTML report: one self-contained file that opens offline; a pure function of the material."""

from __future__ import annotations

import html
import importlib.resources
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from raysweep.report import figures
from raysweep.report.material import Material
from raysweep.report.tables import (
    METRICS,
    aggregate,
    attack_column,
    failed_attacks,
    percent,
    spread,
    with_detection,
)

EXTRA = ("ra", "auroc", "ap", "tpr_at_1fpr", "fpr_no_cover", "cover_removal")
TITLES = {
    "ca": "CA", "asr": "ASR", "ra": "RA", "tpr": "TPR", "fpr": "FPR", "auroc": "AUROC",
    "ap": "AP", "tpr_at_1fpr": "TPR@1%FPR", "fpr_no_cover": "FPR without covers",
    "cover_removal": "covers removed",
}  # fmt: skip


def render(material: Material) -> str:
    """Return the page."""
    from plotly.offline import get_plotlyjs

    name = html.escape(str(material.sweep.get("name", "sweep")))
    sections = [
        ("answer", "Question and answer", _answer(material)),
        ("headline", "Headline", _headline(material.rows)),
        ("results", "Results by attack", _results(material.rows)),
        ("maps", "Attack × defense", _figures(figures.heat_maps, material.rows)),
        ("rates", "Metrics against poison rate", _figures(figures.rate_lines, material.rows)),
        ("roc", "ROC curves", _figures(figures.roc_curves, material)),
        ("verdicts", "Verdicts", _verdicts(material)),
        ("pictures", "What the attacks look like", _pictures(material)),
        ("cost", "Cost and reuse", _cost(material)),
        ("failures", "Failures", _failures(material.rows)),
        ("provenance", "Provenance", _provenance(material)),
    ]
    shown = [(key, title, body) for key, title, body in sections if body]
    links = " ".join(f'<a href="#{key}">{title}</a>' for key, title, _ in shown)
    bodies = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>'
        f"{body}</section>"
        for key, title, body in shown
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{name} · raysweep</title><link rel="icon" href="data:,">'
        f"<style>{_asset('page.css')}</style><script>{get_plotlyjs()}</script></head><body>"
        f'<a class="skip" href="#answer">Skip to the results</a><header><h1>{name}</h1>'
        f'<nav aria-label="Sections">{links}</nav></header><main>{bodies}</main>'
        f"<script>{_asset('page.js')}</script></body></html>"
    )


def _asset(name: str) -> str:
    return importlib.resources.files("raysweep.report").joinpath(name).read_text()


def _table(
    caption: str, headers: Sequence[str], lines: Iterable[Sequence[str]], text: int = 1
) -> str:
    """Return a sortable table in a scroll region; cells are HTML, the first `text` are words."""
    head = "".join(
        f'<th scope="col"{" class=text" if n < text else ""}>'
        f'<button type="button">{h}</button></th>'
        for n, h in enumerate(headers)
    )
    body = ""
    for line in lines:
        cells = [f'<th scope="row">{line[0]}</th>'] + [
            f"<td{' class=text' if n < text else ''}>{cell}</td>"
            for n, cell in enumerate(line[1:], 1)
        ]
        body += f"<tr>{''.join(cells)}</tr>"
    label = html.escape(caption, quote=True)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table>'
        f"<caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _finished(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["status"] == "ok"] if len(rows) else rows


def _badges(text: Any) -> str:
    names = [part for part in str(text or "").split(", ") if part]
    return " ".join(f'<span class="badge">{html.escape(name)}</span>' for name in names)


def _answer(material: Material) -> str:
    rows = _finished(material.rows)
    question = html.escape(str(material.sweep.get("question") or "No question was written down."))
    parts = [f"<p><strong>{question}</strong></p>"]
    total = len(material.rows)
    if rows.empty:
        return parts[0] + f"<p>None of {total} trials has finished.</p>"
    sentences = [f"{len(rows)} of {total} trials finished."]
    kept = _kept(rows)
    means = _ranked(kept[kept["kind"] != "control"])
    if len(means):
        best = means.iloc[0]
        sentences.append(
            f"Of the defenses, {html.escape(str(best['defense']))} leaves the lowest ASR: "
            f"{spread(best, 'asr')} % at a clean accuracy of {spread(best, 'ca')} %, over all "
            f"attacks that worked."
        )
    alone = _ranked(kept[kept["defense_name"] == "none"])
    if len(alone):
        sentences.append(
            f"Without a defense the ASR is {spread(alone.iloc[0], 'asr')} % at a clean accuracy "
            f"of {spread(alone.iloc[0], 'ca')} %."
        )
    failed = sorted(failed_attacks(rows))
    if failed:
        names = html.escape(", ".join(failed))
        sentences.append(
            f"Attack failed (undefended ASR under 50 %), left out of averages: {names}."
        )
    return parts[0] + f'<p class="answer">{" ".join(sentences)}</p>'


def _kept(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that averages are over: poisoned, by attacks that worked."""
    worked = ~attack_column(rows).isin(list(failed_attacks(rows)))
    return rows[worked & (pd.to_numeric(rows["rate"]) > 0)]


def _ranked(rows: pd.DataFrame) -> pd.DataFrame:
    if rows.empty:
        return rows
    means = aggregate(with_detection(rows), ["defense", "kind", "badges"], METRICS)
    return means.sort_values(["asr", "ca"], ascending=[True, False])


def _headline(rows: pd.DataFrame) -> str:
    kept = _kept(_finished(rows)) if len(_finished(rows)) else rows[:0]
    if kept.empty:
        return ""
    lines = [
        [html.escape(str(e["defense"])), str(e["kind"]), *(spread(e, m) for m in METRICS),
         str(e["ca_seeds"]), _badges(e["badges"])]
        for _, e in _ranked(kept).iterrows()
    ]  # fmt: skip
    headers = ["defense", "kind", "CA", "ASR", "TPR", "FPR", "trials", "badges"]
    caption = "Over attacks that worked, rates and seeds: mean ± 95 %, in percent"
    return _table(caption, headers, lines, text=2)


def _results(rows: pd.DataFrame) -> str:
    finished = _finished(rows)
    if finished.empty:
        return ""
    merged = with_detection(finished)
    merged["attack"] = attack_column(finished)
    metrics = [m for m in (*METRICS, *EXTRA) if m in merged and merged[m].notna().any()]
    floors = _floors(finished)
    out = []
    keys = ["dataset", "model", "attack"]
    for (dataset, model, attack), part in merged.groupby(keys, sort=False):
        lines = []
        for _, entry in aggregate(part, ["defense", "badges"], metrics).iterrows():
            points = part[part["defense"] == entry["defense"]]
            cells = []
            for metric in metrics:
                seeds = ", ".join(
                    f"seed {s}: {percent(float(v))}"
                    for s, v in zip(points["seed"], pd.to_numeric(points[metric]), strict=True)
                )
                cells.append(f'<span title="{seeds}">{spread(entry, metric)}</span>')
            lines.append(
                [html.escape(str(entry["defense"])), *cells, str(len(points)),
                 _badges(entry["badges"])]
            )  # fmt: skip
        headers = ["defense", *(TITLES[m] for m in metrics), "n", "badges"]
        counts = part.iloc[0]
        caption = (
            f"{attack} · {dataset} · {model}: {counts.get('poison_count', 0):g} poisoned, "
            f"{counts.get('cover_count', 0):g} covers of {counts.get('n_train', 0):g}"
        )
        if attack in floors:
            caption += f"; ASR of the trigger on the clean model {percent(floors[attack])} %"
        out.append(_table(caption, headers, lines))
    return "".join(out)


def _floors(rows: pd.DataFrame) -> dict[str, float]:
    """Return the ASR of each attack's trigger on the clean model, from its trials at rate 0."""
    zero = rows[(pd.to_numeric(rows["rate"]) == 0) & (rows["defense_name"] == "none")]
    means = pd.to_numeric(zero["asr"]).groupby(zero["attack"]).mean()
    same = dict(zip(attack_column(rows), rows["attack"], strict=True))
    return {
        shown: float(means[label])
        for shown, label in same.items()
        if label in means and not math.isnan(means[label])
    }


def _figures(make: Any, source: Any) -> str:
    if isinstance(source, pd.DataFrame):
        source = _finished(source)
        if source.empty:
            return ""
    out = ""
    for number, (title, figure) in enumerate(make(source)):
        drawn = figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=f"{make.__name__}-{number}",
            config={"responsive": True},
        )
        label = html.escape(title, quote=True)
        out += f'<div class="figure" role="img" aria-label="{label}">{drawn}</div>'
    return out


def _verdicts(material: Material) -> str:
    rows = _finished(material.rows)
    if "verdict" not in rows or rows["verdict"].notna().sum() == 0:
        return ""
    judged = rows[rows["verdict"].notna()]
    lines = [
        [html.escape(str(r["defense"])), html.escape(str(r["attack"])), str(r["seed"]),
         "backdoor" if r["verdict"] else "clean", html.escape(str(r["verdict_classes"] or "–")),
         "right" if r["verdict_correct"] else "wrong",
         "–" if pd.isna(r["anomaly"]) else f"{r['anomaly']:.2f}"]
        for _, r in judged.iterrows()
    ]  # fmt: skip
    headers = ["defense", "attack", "seed", "verdict", "classes", "verdict is", "largest anomaly"]
    shown = ""
    for trial, triggers in list(material.triggers.items())[:4]:
        who = rows[rows["trial"] == trial]
        label = html.escape(
            ", ".join(map(str, who.iloc[0][["attack", "seed"]])) if len(who) else ""
        )
        images = "".join(
            f'<figure><img src="{figures.picture((t * 255).round().astype("uint8"))}" '
            f'alt="estimated trigger of class {k}, {label}"><figcaption>class {k}</figcaption>'
            f"</figure>"
            for k, t in enumerate(triggers[:20])
        )
        shown += f'<h3>Estimated triggers: {label}</h3><div class="gallery">{images}</div>'
    return _table("Verdicts on models", headers, lines, text=2) + shown


def _pictures(material: Material) -> str:
    out = ""
    for attack, (clean, triggered) in material.pictures.items():
        name = html.escape(attack)
        cells = ""
        for which, image in (
            ("clean", clean[0]),
            ("triggered", triggered[0]),
            ("difference, stretched", figures.difference(clean[0], triggered[0])),
        ):
            uri = figures.picture(image)
            cells += (
                f'<figure><img src="{uri}" alt="{name}: {which}">'
                f"<figcaption>{which}</figcaption></figure>"
            )
        out += f'<h3>{name}</h3><div class="gallery">{cells}</div>'
    return out


def _cost(material: Material) -> str:
    stages = material.stages
    if stages.empty:
        return ""
    lines = []
    for kind, part in stages.groupby("kind", sort=False):
        alone = (part["seconds"] * part["trials"]).sum()
        fresh = int((part["status"] == "done").sum())
        cached = int((part["status"] == "cached").sum())
        lines.append(
            [str(kind), str(len(part)), str(fresh), str(cached), f"{part['seconds'].sum():.1f}",
             f"{part['gpu_seconds'].sum():.1f}", f"{alone:.1f}"]
        )  # fmt: skip
    once = stages["seconds"].sum()
    alone = (stages["seconds"] * stages["trials"]).sum()
    factor = f"{alone / once:.1f}" if once else "–"
    headers = ["stage", "distinct", "run now", "cached", "seconds", "GPU seconds", "unshared"]
    text = f"<p>{once:.0f} s of stages serve trials that alone would take {alone:.0f} s: "
    return (
        text + f"a factor of {factor}.</p>" + _table("Cost by stage kind", headers, lines)
        + _figures(figures.cost_bars, material)
    )  # fmt: skip


def _failures(rows: pd.DataFrame) -> str:
    bad = rows[rows["status"] != "ok"] if len(rows) else rows
    if bad.empty:
        return "<p>None.</p>"
    lines = [
        [html.escape(str(status)), html.escape(str(stage or "–")), html.escape(str(error or "–")),
         html.escape(str(part.iloc[0]["log"] or "–")), str(len(part))]
        for (status, stage, error), part in bad.groupby(
            ["status", "error_stage", "error"], sort=False
        )
    ]  # fmt: skip
    return _table(
        "Trials that did not finish, by cause", ["status", "stage", "error", "log", "trials"],
        lines, text=4,
    )  # fmt: skip


def _provenance(material: Material) -> str:
    sweep = material.sweep
    facts = {
        "commit": sweep.get("git_commit") or "not in a checkout",
        "storage": sweep.get("storage", ""),
        **dict(sweep.get("versions", {})),
    }
    lines = [[html.escape(str(k)), html.escape(str(v))] for k, v in facts.items()]
    text = html.escape(str(sweep.get("text", "")))
    return _table("What this was made with", ["what", "value"], lines, text=2) + (
        f"<details><summary>The sweep file</summary><pre>{text}</pre></details>"
    )
