"""Contracts: the tests that raysweep's own methods pass, for methods of other packages.

    import raysweep.testing
    from my_package.my_defense import MyDefense

    class TestMine(raysweep.testing.DefenseContract):
        method = MyDefense

pytest collects them as it does any class whose name begins with Test. Install them with
`pip install "raysweep[testing]"`.

attacks   every attack                  toy           a small poisoned set and its victim
defenses  every defense, on the toy     network       a plain torch.nn.Module, as a user has one
datasets  every dataset                 pretend_cuda  a GPU that is not there, with its modules
models    every model                   pretend_tensors and pretend_graphs
devices   every method, on that GPU     kill          stages killed at a checkpoint, and resumed
"""

from __future__ import annotations

try:
    import pytest
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'raysweep.testing needs pytest: pip install "raysweep[testing]"', name=error.name
    ) from None

pytest.register_assert_rewrite(
    *(
        f"raysweep.testing.{role}"
        for role in ("attacks", "defenses", "datasets", "devices", "kill", "models")
    )
)

from raysweep.testing.attacks import AttackContract  # noqa: E402  their asserts are rewritten
from raysweep.testing.datasets import DatasetContract  # noqa: E402
from raysweep.testing.defenses import DefenseContract  # noqa: E402
from raysweep.testing.devices import DeviceContract  # noqa: E402
from raysweep.testing.models import ModelContract  # noqa: E402

__all__ = [
    "AttackContract",
    "DatasetContract",
    "DefenseContract",
    "DeviceContract",
    "ModelContract",
]
