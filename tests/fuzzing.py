"""How many generated inputs a test tries: an eighth of them, or all where the marker `fuzz` is chosen (see conftest.py)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

WHOLE = "ALIGNLAB_WHOLE_FUZZ"
"""Set in the environment where all are tried, worker processes included."""
PART = 8


def examples(count: int) -> int:
    """How many of `count` inputs are tried."""
    return count if WHOLE in os.environ else count // PART


def fuzzed(count: int) -> Callable[[Any], Any]:
    """Marks a test of `count` generated inputs, the same ones each time."""
    chosen = settings(
        max_examples=examples(count), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
    )
    return lambda test: pytest.mark.fuzz(chosen(test))
