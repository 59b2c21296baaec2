"""How much a test tries of what is tried in bulk: an eighth, or all where the marker `fuzz` is chosen (see conftest.py)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

WHOLE = "ALIGNLAB_WHOLE_FUZZ"
"""Set in the environment where all are tried, worker processes included."""
PART = 8


def examples(count: int) -> int:
    """How many of `count` inputs are tried."""
    return count if WHOLE in os.environ else count // PART


def part_of(things: Sequence[Any]) -> Sequence[Any]:
    """Every eighth of these, the first among them, or all."""
    return things if WHOLE in os.environ else things[::PART]


def fuzzed(count: int) -> Callable[[Any], Any]:
    """Marks a test of `count` generated inputs, the same ones each time."""
    chosen = settings(
        max_examples=examples(count), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
    )
    return lambda test: pytest.mark.fuzz(chosen(test))
