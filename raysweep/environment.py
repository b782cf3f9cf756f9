"""The settings that workers need of the driver's environment: data folder, access to storage.

Settings travel with the work, paths written out. Secrets never do: on this machine workers inherit
them, and on a cluster each host has its own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from raysweep.errors import FilesError, StoreError
from raysweep.paths import setting

PATHS: Final = (
    "RAYSWEEP_DATA", "RAYSWEEP_CACHE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CA_BUNDLE", "GOOGLE_APPLICATION_CREDENTIALS",
)  # fmt: skip
NAMES: Final = (
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE",
)  # fmt: skip
OF_DATA: Final = ("RAYSWEEP_DATA",)  # what data are looked for by; all else is the storage's
SECRETS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_LACKING: dict[str, str] = {}


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The driver's settings, as they travel with the work.

    Attributes:
        values: variable → value; paths from the root, no secrets.
        secrets: names of the variables that hold secrets and are set.
        local: whether workers run on the driver's own machine, started by it.
    """

    values: Mapping[str, str]
    secrets: tuple[str, ...]
    local: bool


def gathered(*, local: bool) -> Environment:
    """Return the settings of this process; asked in the driver, before workers start."""
    paths = {name: str(path) for name in PATHS if (path := setting(name))}
    values = {name: os.environ[name] for name in NAMES if os.environ.get(name)}
    secrets = tuple(name for name in SECRETS if os.environ.get(name))
    return Environment(values=paths | values, secrets=secrets, local=local)


def apply(environment: Environment) -> None:
    """Set in this worker what the driver has set, before it opens a store or a dataset.

    On the driver's own machine the driver's values stand. On a cluster a host's own values stand,
    since its data may lie elsewhere; a variable that it has not set is taken from the driver, a
    path only if it leads to something here.
    """
    _LACKING.clear()
    secrets = [name for name in environment.secrets if not os.environ.get(name)]
    _LACKING.update(dict.fromkeys(secrets, "but it is where the sweep was launched"))
    for name, value in environment.values.items():
        if not environment.local and os.environ.get(name):
            continue
        if environment.local or name not in PATHS or Path(value).exists():
            os.environ[name] = value
        elif name != "RAYSWEEP_CACHE":  # without it there is a cache too
            _LACKING[name] = f"and the driver's {value!r} is not there"


def explained(error: BaseException) -> str:
    """Return the message of an error that other hosts may not have: names this one and its lack."""
    lacks = [
        f"{name} is not set there, {why}"
        for name, why in _LACKING.items()
        if isinstance(error, FilesError if name in OF_DATA else StoreError)
    ]
    return "; ".join([f"host {socket.gethostname()}: {error}", *lacks])
