"""A server on a socket of this machine. Its tests skip where alignlab[serve] is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alignlab.evaluation.safe_range import SafeRange
from alignlab.serving.engine import Engine
from benchmarks.serving import listening

KEY = "a key"


def held(low: float, high: float) -> SafeRange:
    """A safe range that rests on no points."""
    return SafeRange(low, high, "toy/capability", 0.1, ())


@contextmanager
def serving(engine: Engine, ui: Any = None, **given: Any) -> Iterator[str]:
    """The address of a server on an engine, which ends with it; with the page where the rows of reports are given for `ui`."""
    from alignlab.serving.app import application

    given = {"key": KEY, "body_bytes": 10_000, "hosts": ["127.0.0.1"], **given}
    app = application(engine, page=None if ui is None else "/ui", **given)
    if ui is not None:
        from alignlab.serving.page import mount

        app = mount(app, engine, "/ui", ui, given["key"])
    with listening(app) as address:
        yield address
