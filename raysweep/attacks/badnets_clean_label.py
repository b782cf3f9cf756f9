"""Clean-label patch: BadNets' patch on images of the target class, labels kept.

A. Khaddaj, G. Leclerc, A. Makelov, K. Georgiev, H. Salman, A. Ilyas, A. Madry: Rethinking Backdoor
Attacks, ICML 2023, arXiv:2307.10163, whose clean-label settings these are; A. Turner, D. Tsipras,
A. Madry: Label-Consistent Backdoor Attacks, 2019, name it as a weak baseline.

Where we differ: the paper's rates are 1.5 to 10 %, its patch is not known to us; a white patch of 5
pixels a side in the corner is ours. The rate counts poisoned images over the whole training set.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from raysweep.attacks.badnets import BadNets


class BadNetsCleanLabel(BadNets):
    """Only images of the target class are patched."""

    CLEAN_LABEL: ClassVar[bool] = True

    size: int = Field(5, ge=1, le=64, description="side of the patch in pixels")
    pattern: Literal["checker", "white"] = Field("white", description="what the patch shows")
