"""The settings that workers need of the driver's environment: data folder, access to storage.

Settings travel with the work, paths written out. Secrets never do: on this machine workers inherit
them, and on a cluster each host has its own. What is stored or shown of an error holds none.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from raysweep.errors import FilesError, StoreError
from raysweep.paths import setting

PATHS: Final = (
    "RAYSWEEP_DATA", "RAYSWEEP_CACHE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CA_BUNDLE", "AWS_WEB_IDENTITY_TOKEN_FILE", "GOOGLE_APPLICATION_CREDENTIALS",
    "AZURE_FEDERATED_TOKEN_FILE",
)  # fmt: skip
NAMES: Final = (
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE",
    "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_EC2_METADATA_DISABLED",
    "GOOGLE_CLOUD_PROJECT", "CLOUD_STORAGE_EMULATOR_ENDPOINT",
    "AZURE_STORAGE_ACCOUNT", "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_AUTHORITY_HOST",
)  # fmt: skip
OF_DATA: Final = ("RAYSWEEP_DATA",)  # what data are looked for by; all else is the storage's
SECRETS: Final = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_CLIENT_SECRET",
)  # fmt: skip
MASK: Final = "***"
_SECRET_NAMES: Final = re.compile(
    r"SECRET|TOKEN|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|ACCOUNT_?KEY|STORAGE_KEY"
    r"|CONNECTION_STRING",
    re.IGNORECASE,
)
_NO_SECRETS: Final = re.compile(r"(_FILE|_PATH|_DIR|_MODE|_NAME|_URL|_URI)$", re.IGNORECASE)
_PASSWORDS: Final = re.compile(r"://[^/@\s]*:([^/@\s]+)@")
_SHORTEST = 8  # of a value that is looked for: a short one would mask words
_SHORTEST_PART = 4  # of what is left of a value where a text was cut
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
    given = {name: os.environ.get(name, "") for name in NAMES}
    values = {n: value for n, value in given.items() if value and not _PASSWORDS.search(value)}
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
    return masked("; ".join([f"host {socket.gethostname()}: {error}", *lacks]))


def masked(text: str) -> str:
    """Return a text in which `***` stands for every secret of this process's environment.

    Secrets are the values of variables that are named like one, and passwords in URLs, as they are
    or as Python, JSON or a URL quotes them; also the end of one where the text was cut.
    """
    if not text:
        return text
    for secret in _secrets():
        text = text.replace(secret, MASK)
        text = _without_part(text, secret)
    return text


def _secrets() -> list[str]:
    """Return the secrets of the environment in all their forms, the longest first."""
    found = set()
    for name, value in os.environ.items():
        if _SECRET_NAMES.search(name) and not _NO_SECRETS.search(name) and name not in PATHS:
            found.add(value.strip())
        found.update(match[1] for match in _PASSWORDS.finditer(value))
    forms = {
        form
        for value in found
        for form in (value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, safe=""))
    }
    return sorted((form for form in forms if len(form) >= _SHORTEST), key=len, reverse=True)


def _without_part(text: str, secret: str) -> str:
    """Mask the beginning of a secret where a text ends, or its end where a text begins."""
    for length in range(len(secret) - 1, _SHORTEST_PART - 1, -1):
        if text.endswith(secret[:length]):
            text = text[:-length] + MASK
        if text.startswith(secret[-length:]):
            text = MASK + text[length:]
    return text
