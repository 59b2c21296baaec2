"""Files told apart without reading them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def stamps(files: Iterable[Path]) -> list[str]:
    """Name, size in bytes and time of change of each file: another list where a file was replaced."""
    return [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
