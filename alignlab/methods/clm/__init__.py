"""CLM (arXiv 2503.04346): an identity block in front of a fine-tuned model, tuned alone on pairs. Its sheet chooses `clm`."""

from __future__ import annotations

from alignlab.methods.preference import PreferenceConfig, stages
from alignlab.registry import Entry, words

ENTRY = Entry(PreferenceConfig, stages, needs=words("pairs"), offers=words("training"))
