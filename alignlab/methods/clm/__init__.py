"""CLM (arXiv 2503.04346): an identity block in front of a fine-tuned model, tuned alone on pairs. Its config chooses `clm`."""

from __future__ import annotations

from alignlab.methods.preference import PreferenceConfig, stages
from alignlab.registry import Entry, capabilities

ENTRY = Entry(PreferenceConfig, stages, requires=capabilities("pairs"), provides=capabilities("training"))
