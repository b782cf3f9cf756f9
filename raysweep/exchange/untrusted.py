"""Other projects' files, read without running anything in them: labels, row numbers, weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raysweep.datasets import IntArray
from raysweep.errors import PlanError
from raysweep.paths import placeholder

# What a file of these formats holds beside tensors and plain values: NumPy's arrays and numbers, by
# the module names of NumPy 1 too.
_CORE = np._core.multiarray  # type: ignore[attr-defined]
ALLOWED: list[Any] = [
    np.ndarray, np.dtype,
    bytes,  # an array without elements
    *(getattr(np.dtypes, f"{n}DType") for n in (
        "Bool", "Int8", "UInt8", "Int16", "Int32", "Int64", "Float16", "Float32", "Float64",
    )),
    *(
        (function, f"numpy.{module}.multiarray.{name}")
        for module in ("core", "_core")
        for name, function in (("_reconstruct", _CORE._reconstruct), ("scalar", _CORE.scalar))
    ),
]  # fmt: skip
MOST = 2**53  # floats are whole numbers one by one up to here
PLAIN_PICKLE = (b"\x80\x03", b"\x80\x04", b"\x80\x05")


def read_untrusted(file: Path) -> Any:
    """Return the content of another project's file, without running any code in it.

    Raises:
        PlanError: if it was cut off or is no file of PyTorch, or if it holds more than tensors,
            arrays and plain values.
    """
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  torch and its unpickler raise whatever bytes provoke
        raise PlanError(f"{file}: {_fault(file, str(error))}") from None


def _fault(file: Path, detail: str) -> str:
    """Return the fault of a file that cannot be read: whether it is cut, or not safe."""
    try:
        with file.open("rb") as stream:
            head = stream.read(64)
            stream.seek(max(0, file.stat().st_size - 256))
            tail = stream.read()
    except OSError as error:
        return f"cannot be read ({error.strerror}); make it readable"
    said = " ".join(detail.partition("Please file")[0].split())
    for line in detail.splitlines():
        if "GLOBAL" in line or "Unsupported class" in line:
            said = line.strip()
    blamed = re.search(r"GLOBAL \S*?([^.\s]*)( |$)", said)
    # Cut in the middle of a name, of which the unpickler drops the last byte as the line's end.
    cut_short = blamed is not None and tail[:-1].endswith(blamed[1].encode())
    unsafe = "GLOBAL" in detail or "TorchScript" in detail or head.startswith(PLAIN_PICKLE)
    if unsafe and not cut_short:
        return (
            f"holds more than tensors, arrays and plain values, and is not opened, since reading "
            f"such a file can run any program ({said[:200]}); ask whoever made it for one without "
            f"objects, with images as files"
        )
    return placeholder(head) or (
        f"cannot be read: it was cut off or damaged, or torch.save did not write it "
        f"({said[-200:]}); copy it again"
    )


def class_labels(given: Any, where: object) -> IntArray:
    """Return labels (N,) that are whole numbers from 0, or rows with a single 1.

    Raises:
        PlanError: if they are neither.
    """
    values = _array(given)
    if values.ndim == 2 and values.shape[1] > 1:
        one_hot = ((values == 0) | (values == 1)).all() and (values.sum(1) == 1).all()
        values = values.argmax(1) if one_hot else values
    if values.ndim != 1 or not _whole(values) or not ((values >= 0) & (values < MOST)).all():
        raise PlanError(
            f"{where}: labels must be whole numbers from 0 of shape (N,), or one-hot rows, got "
            f"{values.dtype} of shape {values.shape}; save one whole number for each image"
        )
    return values.astype(np.int64)


def row_numbers(given: Any, where: object, total: int) -> IntArray:
    """Return distinct row numbers, in the order given; of a mask (N,), the rows that are true.

    Raises:
        PlanError: if one is no row of `total`, or stands there twice.
    """
    values = _array(given)
    if values.dtype.kind == "b" and values.shape == (total,):
        values = np.flatnonzero(values)
    if not values.size:
        return np.empty(0, np.int64)
    if values.ndim != 1 or not _whole(values) or not 0 <= values.min() <= values.max() < total:
        span = f" from {values.min()} to {values.max()}" if values.dtype.kind in "iuf" else ""
        raise PlanError(
            f"{where}: indices must be whole numbers from 0 to {total - 1}, or a mask of "
            f"{total} booleans, got {values.dtype} of shape {values.shape}{span}"
        )
    if len(np.unique(values)) != len(values):
        raise PlanError(f"{where}: indices must be distinct, {len(values)} of them name fewer rows")
    return values.astype(np.int64)


def _whole(values: NDArray[Any]) -> bool:
    kind = values.dtype.kind
    return kind in "iu" or (kind == "f" and bool((values == np.floor(values)).all()))


def _array(given: Any) -> NDArray[Any]:
    """Return a tensor, an array, or a list of numbers or of either, as an array."""
    if isinstance(given, torch.Tensor):
        return _known(given).detach().numpy()
    if isinstance(given, list | tuple):
        given = [_array(one) if isinstance(one, torch.Tensor) else one for one in given]
    return np.asarray(given)


def weights(given: Any, file: Path) -> dict[str, NDArray[Any]]:
    """Return a network's weights by their names in it; none, if nothing is given.

    A training script may have put them below other entries, and `DataParallel` or `compile` their
    own parts into every name. NumPy lacks bfloat16, which becomes float32.

    Raises:
        PlanError: if the value is no state dict, and does not hold exactly one; or if the weights
            are no finite numbers.
    """
    if given is None or (isinstance(given, Mapping) and not given):
        return {}
    level, states = [given], list[Mapping[str, Any]]()
    while level and not states:
        states = [one for one in level if _is_state(one)]
        level = [v for one in level if isinstance(one, Mapping) for v in one.values()]
    if len(states) != 1:
        held = list(given) if isinstance(given, Mapping) else given
        raise PlanError(
            f"{file}: a victim must be a state dict, tensors by name, or hold one, got "
            f"{type(given).__name__} {str(held)[:80]}, with {len(states)} of them; leave the "
            f"victim out, or save its state dict alone"
        )
    names = _bare(list(states[0]))
    try:
        named = {n: _array_of(t) for n, t in zip(names, states[0].values(), strict=True)}
    except (TypeError, RuntimeError) as error:  # sparse, quantized, without values
        raise PlanError(
            f"{file}: the victim must hold plain tensors of real numbers, and one of them is none "
            f"({str(error)[:80]}); leave the victim out, or save another state"
        ) from None
    if len(named) != len(names):
        raise PlanError(
            f"{file}: two tensors of the victim have one name without _orig_mod; save the state "
            f"dict of the bare network"
        )
    for name, array in named.items():
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            raise PlanError(
                f"{file}: tensor {name!r} of the victim must hold finite real numbers, got "
                f"{array.dtype}" + (" with others" if array.dtype.kind == "f" else "")
                + "; leave the victim out, or save another state"
            )  # fmt: skip
    return named


def _is_state(given: Any) -> bool:
    return (
        isinstance(given, Mapping)
        and len(given) > 0
        and all(isinstance(name, str) for name in given)
        and all(isinstance(tensor, torch.Tensor | np.ndarray) for tensor in given.values())
    )


def _bare(names: list[str]) -> list[str]:
    """Return tensors' names without what `compile` and `DataParallel` have added to them."""
    names = [".".join(part for part in name.split(".") if part != "_orig_mod") for name in names]
    while all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return names


def _array_of(given: Any) -> NDArray[Any]:
    if isinstance(given, np.ndarray):
        return given
    array: NDArray[Any] = _known(given).detach().resolve_conj().resolve_neg().numpy()
    return array


def _known(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of numbers that NumPy knows: others, such as bfloat16, as float32."""
    alien = tensor.is_floating_point() and tensor.dtype not in (
        torch.float16, torch.float32, torch.float64,
    )  # fmt: skip
    return tensor.float() if alien else tensor
