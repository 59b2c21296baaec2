"""alignlab: parameter-efficient alignment of language models, with one strength dial for every method.

`import alignlab` alone stays light and makes our tuners known to peft; what is named below is imported when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from alignlab.tuners.peft_hook import install

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

install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'alignlab' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
