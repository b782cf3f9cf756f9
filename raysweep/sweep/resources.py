"""The resources of stages, and the precision that pays on them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from raysweep.errors import PlanError
from raysweep.methods.value import Value

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:iB|B)?\s*")
MOST_DEVICES = 100_000
MOST_SECONDS = 10 * 365 * 86_400.0
_SPANS = {"": 1, "s": 1, "m": 60, "h": 3600}
_TIME = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*")


def _bytes_in(memory: int | str) -> float:
    """Return the bytes that a number, or a text such as 4GiB, stands for."""
    if not isinstance(memory, str):
        return memory
    match = _MEMORY.fullmatch(memory)
    assert match is not None, "it is checked when it is read"
    return float(match[1]) * _UNITS[match[2]]


class ResourceClass(Value):
    """The resources that one stage of a class asks of the cluster."""

    cpu: float = Field(1.0, gt=0, le=MOST_DEVICES, description="CPUs")
    gpu: float = Field(
        0.0, ge=0, le=MOST_DEVICES, description="GPUs; below 1 several stages share one"
    )
    memory: int | str | None = Field(None, description="bytes, or text such as 4GiB")

    @field_validator("gpu")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("must be a fraction up to 1, or a whole number")
        return value

    @field_validator("memory")
    @classmethod
    def _readable(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, str) and not _MEMORY.fullmatch(value):
            raise ValueError("must be bytes or text such as 512MiB or 4GiB")
        if not 0 <= _bytes_in(value or 0) < 2**63:
            raise ValueError(f"must be from 0 to {2**63 - 1} bytes")
        return value

    @property
    def memory_bytes(self) -> int:
        """The memory in bytes; 0 if none is asked for."""
        return int(_bytes_in(self.memory or 0))


class Resources(Value):
    """Two classes of stages: `gpu` trains and runs models, `cpu` does the rest."""

    cpu: ResourceClass = Field(ResourceClass(), description="light stages")
    gpu: ResourceClass = Field(ResourceClass(), description="stages that train or run models")
    limits: dict[str, float | str] = Field(
        {}, description="stage kind or method: the longest that a stage may run, e.g. 90s, 2h"
    )

    @field_validator("limits")
    @classmethod
    def _are_times(cls, values: Mapping[str, float | str]) -> Mapping[str, float | str]:
        for name, value in values.items():
            if not 0 < seconds_in(value) <= MOST_SECONDS:
                raise ValueError(
                    f"{name}: must be seconds above 0, or text such as 90s, 30m or 2h, and at "
                    f"most ten years, got {value!r}"
                )
        return values

    @model_serializer(mode="wrap")
    def _without_empty_limits(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return values if self.limits else {n: v for n, v in values.items() if n != "limits"}


def seconds_in(value: float | str) -> float:
    """Return the seconds that a number, or a text such as 90s, 30m or 2h, stands for."""
    if not isinstance(value, str):
        return float(value)
    match = _TIME.fullmatch(value)
    return float(match[1]) * _SPANS[match[2]] if match else 0.0


def bfloat16_is_fast(resources: Resources) -> bool:
    """Return whether stages of the gpu class run where bfloat16 pays: on a GPU, or AMX.

    Without a GPU request the workers are taken to have the driver's processor. RAYSWEEP_PRECISION,
    `float32` or `bfloat16`, overrides this, for a driver unlike its workers.

    Raises:
        PlanError: if RAYSWEEP_PRECISION is something else.
    """
    precision = os.environ.get("RAYSWEEP_PRECISION")
    if precision:
        if precision not in ("float32", "bfloat16"):
            raise PlanError(
                f"RAYSWEEP_PRECISION must be float32 or bfloat16, which `precision: auto` then "
                f"stands for, got {precision!r}; correct it, or unset it"
            )
        return precision == "bfloat16"
    if resources.gpu.gpu > 0:
        return True
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as facts:  # noqa: PTH123
            return any("amx_bf16" in line for line in facts)
    except OSError:
        return False
