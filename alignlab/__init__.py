"""alignlab: parameter-efficient alignment of language models, with one strength dial for every method.

The names below are imported when they are first used, so `import alignlab` alone needs no torch. Our PEFT types (RED, CLM,
CONTROL, ADAPTER, LOREFT, TPT) are registered by the first name that is used, or by `import alignlab` itself where peft is
imported already.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignlab.finished import load
    from alignlab.models.policy import Policy
    from alignlab.models.sampling import Sampling
    from alignlab.tuners.at_strength import at_class, at_strength
    from alignlab.tuners.clm import ClmConfig
    from alignlab.tuners.control import ControlConfig
    from alignlab.tuners.red import RedConfig

__all__ = ["ClmConfig", "ControlConfig", "Policy", "RedConfig", "Sampling", "at_class", "at_strength", "load"]

_HOMES = {
    "ClmConfig": "alignlab.tuners.clm",
    "ControlConfig": "alignlab.tuners.control",
    "Policy": "alignlab.models.policy",
    "RedConfig": "alignlab.tuners.red",
    "Sampling": "alignlab.models.sampling",
    "at_class": "alignlab.tuners.at_strength",
    "at_strength": "alignlab.tuners.at_strength",
    "load": "alignlab.finished",
}

PEFT_METHODS = (
    "alignlab.tuners.red",
    "alignlab.tuners.clm",
    "alignlab.tuners.control",
    "alignlab.tuners.adapter",
    "alignlab.tuners.loreft",
    "alignlab.tuners.token_bank",
)
"""What registers a PEFT method when they are imported."""


def _register() -> None:
    for package in PEFT_METHODS:
        importlib.import_module(package)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'alignlab' has no attribute {name!r}; it offers {', '.join(__all__)}")
    _register()
    return getattr(importlib.import_module(_HOMES[name]), name)


if "peft" in sys.modules:
    _register()
