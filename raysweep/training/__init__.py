"""The one training loop, and networks in use.

loop          fit: streams of batches, an objective over them, a recipe
streams       batches of one set, augmented      augmentation  crop, flip, rotate, cutout
step          one step of the loop, eager or captured into a CUDA graph
optimizer     optimizer and learning rate        network       networks as a stage builds them
inference     predictions, losses per sample, features of a layer
ensemble      many small networks trained as one
operations    those of a forward pass
resume        checkpoints of a training          resident      training sets that stay on the device
device        a stage's share of a GPU           room          how many images its memory holds
"""

from __future__ import annotations

from raysweep.training.inference import (
    Dynamics,
    features,
    layer_inputs_and_outputs,
    per_sample_losses,
    predict,
)
from raysweep.training.loop import CrossEntropy, cross_entropy, fit, keep_memory
from raysweep.training.network import build, global_seed
from raysweep.training.optimizer import learning_rate, make_optimizer
from raysweep.training.resume import Steps
from raysweep.training.step import Objective, autocast, capturable, resumable
from raysweep.training.streams import Batch, Source, Stream

__all__ = [
    "Batch",
    "CrossEntropy",
    "Dynamics",
    "Objective",
    "Source",
    "Steps",
    "Stream",
    "autocast",
    "build",
    "capturable",
    "cross_entropy",
    "features",
    "fit",
    "global_seed",
    "keep_memory",
    "layer_inputs_and_outputs",
    "learning_rate",
    "make_optimizer",
    "per_sample_losses",
    "predict",
    "resumable",
]
