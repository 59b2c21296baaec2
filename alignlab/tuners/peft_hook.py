"""Registers our tuners as soon as somebody imports peft, without importing peft or torch for those who do not."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

ROOMS = ("alignlab.tuners.red", "alignlab.tuners.clm", "alignlab.tuners.control")
"""The rooms that register a PEFT method when they are imported."""


def install() -> None:
    """Register now if peft is loaded, else at the moment it is; calling it again changes nothing."""
    if sys.modules.get("peft") is not None:
        _register_rooms()
    elif not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftFinder())


class _PeftFinder(MetaPathFinder):
    """Finds peft where the other finders find it, and has its loader register our rooms after the real import."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = None if find is None or isinstance(finder, _PeftFinder) else find(fullname, path, target)
            if spec is not None:
                return self._with_registration(spec)
        return None

    def _with_registration(self, spec: ModuleSpec) -> ModuleSpec:
        loader = spec.loader
        if loader is None:
            return spec
        real = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            # An import that fails leaves the finder in place for the next attempt.
            real(module)
            vars(loader).pop("exec_module", None)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register_rooms()

        # Shadowed on this one instance: `__loader__` stays what it was, for inspect, pkgutil and importlib.resources.
        vars(loader)["exec_module"] = exec_module
        return spec


def _register_rooms() -> None:
    """Import each room, which registers itself.

    A room that is itself importing peft at this moment is returned half-made by importlib and registers when it is
    done. A failure is a warning: `import peft` must go on working for everybody else.
    """
    for room in ROOMS:
        try:
            importlib.import_module(room)
        except Exception as error:  # whatever went wrong, peft itself is intact
            warnings.warn(f"{room} could not be registered with this peft: {error}", RuntimeWarning, stacklevel=2)
