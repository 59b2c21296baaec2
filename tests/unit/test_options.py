"""docs/options.md is what docs/options.py writes now, and each option says what it means."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def options() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(DOCS))
        yield importlib.import_module("options")


def test_the_option_reference_is_current(options: ModuleType) -> None:
    assert (DOCS / "options.md").read_text() == options.page(), "run `python docs/options.py`"


def test_each_option_has_a_meaning(options: ModuleType) -> None:
    rows = re.findall(r"^\| `(\S+)` \|.*\| (.*) \|$", options.page(), re.MULTILINE)

    assert [key for key, meaning in rows if not meaning.strip()] == []
