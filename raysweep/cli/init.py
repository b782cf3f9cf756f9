"""The command that begins a sweep file: init."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from raysweep.cli.options import command, open_console
from raysweep.errors import SpecError

TEXT = """\
# A sweep: every attack with every defense, on every dataset, model and recipe, for every seed.
# See what it would run:  raysweep plan FILE
# Run it:                 raysweep launch FILE
# Tune the defenses:      raysweep tune FILE
# Where a list stands, all of its values are tried: epochs: [5, 10], rate: [0.01, 0.05].

# The name of the results: letters, digits, '_', '-' and '.'.
name: first
# One sentence that the report shows.
question: Which of these defenses hold against a patch and a blended trigger?

# What is learned, a name, or a name with parameters: digits: {size: 500}; several: a list.
# `raysweep list datasets` shows all names; digits needs no download.
dataset: digits
# The network; `raysweep list models`.
model: tiny_cnn
# What is done to the training set; `raysweep list attacks`. `none` poisons nothing.
attacks:
  - badnets: {rate: 0.05}  # rate: the share of the training set that is poisoned
  - blend: {rate: 0.05, target: 3}  # target: the class that the trigger leads to
# What is done against it; `raysweep list defenses`. `none` is the undefended victim.
defenses:
  - none
  - spectral_signatures
  - strip
  - fine_tuning

# Everything below may be left out.

# Repetitions: a number (3 is the same as [0, 1, 2]), or a list of seeds.
seeds: 1
# Combinations to leave out, such as [{attack: blend, defense: [strip, fine_tuning]}]; keys are
# dataset, model, attack, defense, rate, seed, or a parameter such as attack.target, recipe.epochs.
exclude: []

# The training of each model. In place of all this, the name of a recipe: recipe: fast,
# or a recipe with changes: {base: fast, epochs: 20}.
recipe:
  epochs: 10  # passes over the training set
  batch_size: 64  # images per step
  learning_rate: 0.1  # the highest learning rate
  optimizer: sgd  # or adam
  momentum: 0.9  # of SGD; Adam's beta 1
  nesterov: true  # whether SGD's momentum is Nesterov's
  weight_decay: 0.0005  # the L2 penalty
  schedule: one_cycle  # or constant, cosine, multistep
  milestones: [0.5, 0.75]  # of multistep: the rate is divided by 10 after these shares
  label_smoothing: 0.0  # the share of each label that is spread over all classes
  augment: []  # any of crop, flip, rotate, cutout, in this order
  precision: auto  # or float32, bfloat16; auto: bfloat16 where the hardware is fast at it
  threads: 1  # CPU threads of a stage; another number gives other last digits

# The share of the machine that one stage asks for; as many run at once as fit.
resources:
  gpu: {cpu: 1, gpu: 0, memory: null}  # stages that train or run models; gpu: 0.5 puts two on one
  cpu: {cpu: 1, gpu: 0, memory: null}  # all other stages; memory: such as 4GiB
  limits: {}  # the longest that a stage may run, by kind or method: {train: 2h, defend: 30m}

# Weights & Biases, beside the report.
track:
  wandb: disabled  # or online, or offline: `raysweep sync` sends it later; without `track`: offline
  project: raysweep  # the W&B project
  entity: null  # your W&B user or team; null: your default
  group: null  # the W&B group; null: the name of the sweep
  details: some  # charts, tables and lineage of trials: some (of the first seed), all, or none
  images: false  # whether pictures of the dataset are sent, too

# Only for `raysweep tune`: parameters of defenses are searched on some attacks, and measured on
# the attack that was left out.
tune:
  who: defense  # who searches; attack: the attacker, against each defense
  against: own  # of an attacker: defenses as written, or tuned: their decisions answer
  budget: 0.05  # of an attacker: the FPR of a defense that answers
  parameters: {}  # {strip: {fpr: {min: 0.01, max: 0.2}}}; {}: every decision, in its own range
  metric: tpr  # to improve: tpr, fpr, youden, auroc, ap, tpr_at_1fpr, ca, asr, ra, (gpu_)seconds
  constraints: [fpr <= 0.05]  # bounds that a result must keep
  over: mean  # of the attacks and seeds; or worst
  labels: transfer  # what the search may see: transfer, clean_only (no attack), oracle (all)
  hold_out: attack  # what is left out in turn: attack, dataset, rate or seed
  report_on: {}  # trials that no search sees, on which all are reported: {seed: [3, 4]}
  sampler: tpe  # of Optuna: tpe, gp, random, grid, nsga2
  pruner: none  # of Optuna: none, median, hyperband, wilcoxon
  trials: 200  # candidates of each search
  first: []  # candidates that are tried first: [{strip: {fpr: 0.02}}]
  stop: {}  # ends before that: {patience: 50, hours: 8, gpu_hours: 20}
  seed: 0  # of the sampler
"""


def init(
    file: Annotated[Path, typer.Argument(help="Where to write it; nothing is overwritten.")] = Path(
        "sweep.yaml"
    ),
) -> None:
    """Write a sweep file that runs as it is, with every option explained in a comment."""
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(TEXT.replace(" FILE\n", f" {shlex.quote(str(file))}\n"))
    except FileExistsError:
        raise SpecError(f"{file} is there already; remove it, or name another file") from None
    except OSError as error:
        raise SpecError(
            f"{file}: cannot be written ({error.strerror}); name another file"
        ) from None
    plan = command("plan", file, storage=None)
    launch = command("launch", file, storage=None)
    open_console().print(f"{file} is written; next: {plan} · {launch}")
