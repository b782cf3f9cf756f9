"""Every error a user can meet, in one tree.

RaysweepError
├── SpecError        the sweep file or a value in it is wrong (exit code 2)
├── PlanError        the sweep is well-formed but cannot be run (exit code 2)
├── KnowledgeError   a method asked for something it does not declare
├── StageError       a stage failed; becomes a row of the records
│   ├── NonFiniteLoss
│   └── FilesError    this host lacks files, or has others than the plan was made with
├── HostError        no host of the cluster may work for this driver
│   └── HeadLost      the head of the cluster does not answer any more
├── DeviceError      a stage holds a GPU that its process cannot use; another worker may
└── StoreError       an artifact cannot be written or read
    └── DamagedArtifact   its bytes differ from its manifest; it is recomputed

PluginWarning (a warning)   a method of another package cannot be used; all others can
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class RaysweepError(Exception):
    """Anything that raysweep itself has found wrong."""


class SpecError(RaysweepError):
    """The sweep file, or a value in it, breaks a rule."""


class PlanError(RaysweepError):
    """The sweep cannot be carried out as asked: missing data, impossible rate, bad combination.

    Attributes:
        about: values of the sweep that the message is about, the first one first.
    """

    about: tuple[object, ...] = ()

    @classmethod
    @contextlib.contextmanager
    def on(cls, *values: object) -> Iterator[None]:
        """Say of an error that arises inside which values of the sweep it is about."""
        try:
            yield
        except PlanError as error:
            error.about = error.about or values
            raise


class KnowledgeError(RaysweepError):
    """A method read something that its `needs` do not list."""


class StageError(RaysweepError):
    """A stage failed."""


class NonFiniteLoss(StageError):
    """The training loss became NaN or infinite."""


class FilesError(StageError):
    """This host lacks files of a method, or has others than the plan was made with."""


class HostError(RaysweepError):
    """No host that is up may work for this driver: other code, or a broken installation."""


class HeadLost(HostError):
    """The head of the cluster does not answer any more; the message ends where a command may."""


class DeviceError(RaysweepError):
    """A stage holds a share of a GPU, and its process cannot use it."""


class StoreError(RaysweepError):
    """The store cannot be written or read."""


class DamagedArtifact(StoreError):
    """An artifact's bytes differ from what its manifest says."""

    def __init__(self, key: str, detail: str) -> None:
        super().__init__(f"artifact {key} is damaged: {detail}; it will be recomputed")
        self.key = key
        self.detail = detail

    def __reduce__(self) -> tuple[type[DamagedArtifact], tuple[str, str]]:
        return (type(self), (self.key, self.detail))


class PluginWarning(UserWarning):
    """A method that another package brings cannot be used; the message names the package."""
