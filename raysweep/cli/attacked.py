"""The end of an attacker's search on a terminal: the table, its legend, and attacks to copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from raysweep.results.tuned import Tuned
    from raysweep.sweep.spec import Sweep


def print_attacked(console: Console, tuned: Tuned, sweep: Sweep) -> None:
    """Print each attack against each defense: as written, adaptive, and transferred.

    Below stand a legend, what each search has seen and cost, and the attacks that were found.
    """
    from raysweep.reports.adaptive import kept, with_interval
    from raysweep.reports.tuning import parameters_text, written

    settings = tuned.settings
    first, *others = dict.fromkeys((*settings.named_metrics, "tpr"))
    shown = Table(box=None, pad_edge=False)
    for head in ("attack", "defense", "badge", "parameters"):
        shown.add_column(head, no_wrap=head != "parameters", overflow="fold")
    for metric in (first, *others):
        shown.add_column(metric, justify="right", no_wrap=True)
    shown.add_column("constraints")
    for row in tuned.rows:
        if row.attacker is None:
            continue
        rest = [
            written(name, row.metrics[name].tuned) if name in row.metrics else "–"
            for name in others
        ]
        note = f" ({row.note})" if row.note else ""
        shown.add_row(
            row.attacker.attack, row.defense, row.labels, parameters_text(row.parameters) + note,
            with_interval(row, first), *rest, kept(row, settings),
        )  # fmt: skip
    console.print(shown)
    for line in (*legend(tuned), *costs(tuned), *to_use(tuned, sweep)):
        console.print(line)


def legend(tuned: Tuned) -> list[str]:
    """Return the lines that say what the rows are, what was met, and what they are measured on."""
    from raysweep.reports.adaptive import KNOWN, defense_text
    from raysweep.reports.tuning import split

    places = dict.fromkeys(row.attacker.measured for row in tuned.rows if row.attacker)
    third = "which no search has seen" if split(tuned) else "which the searches have seen, too"
    return [
        "; ".join(f"{name}: {text}" for name, text in KNOWN.items()),
        f"the attacker met {defense_text(tuned.settings)}; rates and shares in %; l2, "
        f"linf and ssim of inputs and their triggered copies; brackets: 95 % interval; measured on "
        f"{' and on '.join(places)}, {third}",
    ]


def costs(tuned: Tuned) -> list[str]:
    """Return a line per search: what it has seen, how many candidates, and what they cost."""
    return [
        f"{row.title} has seen {row.attacker.seen}: {row.tried} candidates, "
        f"{row.attacker.stages} stages, {row.seconds:.0f} s, {row.gpu_seconds:.0f} GPU s"
        for row in tuned.rows
        if row.attacker is not None and row.labels != "default" and row.point == 0
    ]


def to_use(tuned: Tuned, sweep: Sweep) -> list[str]:
    """Return a line per adaptive attack: YAML that can be pasted below `attacks`."""
    from raysweep.sweep.guide import entry
    from raysweep.tuning.search import attack_title
    from raysweep.tuning.space import with_parameters
    from raysweep.tuning.summary import rounded

    attacks = {attack_title(attack): attack for attack in sweep.attacks}
    lines = []
    for row in tuned.rows:
        if row.attacker is None or row.labels != "adaptive" or row.point:
            continue
        if row.kept_own:
            lines.append(f"{row.title}: nothing better than the attack as written; {row.note}")
            continue
        attack = attacks[row.attacker.attack]
        found = with_parameters(attack, rounded(attack, row.parameters))
        lines.append(f"use these: {entry(found, row.parameters)}  # adaptive to {row.defense}")
    return lines
