"""Run folders to tables: one line per number, with the settings in which the runs differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from alignlab.errors import RunFolderError
from alignlab.tracking.ledger import Ledger

NOT_SETTINGS = ("fingerprint", "paths", "tracking")


def results(folder: Path) -> pd.DataFrame:
    """Every number of every finished run below a folder; columns: the settings that vary, then the report's.

    Raises RunFolderError where there is no finished run.
    """
    runs = [Ledger(path.parent) for path in sorted(folder.glob("**/report.json"))]
    if not runs:
        raise RunFolderError(f"no finished run below {folder}; give the folder that `paths.runs` names.")
    settings = pd.DataFrame([_flat(run.read("config.json") or {}) for run in runs])
    varying = [name for name in settings if settings[name].astype(str).nunique() > 1]
    lines = []
    for number, run in enumerate(runs):
        chosen = {name: settings[name].iloc[number] for name in varying}
        lines += [{**chosen, **row} for row in (run.read("report.json") or {})["results"]]
    return pd.DataFrame(lines)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted names."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if name in NOT_SETTINGS:
            continue
        flat.update(_flat(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat
