"""CLM (arXiv 2503.04346): an identity block in front of a fine-tuned model, tuned alone on pairs. Its sheet chooses `clm`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignlab.methods.preference import PreferenceConfig, needs, stages
from alignlab.registry import Entry

if TYPE_CHECKING:
    from alignlab.training.method import Method


def build(config: PreferenceConfig) -> Method:
    """`sft` makes the paper's base if asked for; `prefer` tunes the block, the reference being the model without it."""
    return stages(config)


ENTRY = Entry(PreferenceConfig, build, needs=needs)
