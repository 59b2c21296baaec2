"""Uploads, later, what runs have kept offline for W&B."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from alignlab.errors import RunFolderError
from alignlab.tracking.states import state_of

log = logging.getLogger(__name__)


def sync(folder: Path) -> int:
    """Uploads every offline run below a folder by `wandb sync`, which joins the parts of one run by its id, oldest first, and
    leaves a mark beside each uploaded part. A run that still writes is left for the
    next time. Returns how many runs were uploaded.

    Raises RunFolderError where there is no offline run, and where some could not be uploaded, with wandb's own reason.
    """
    found = sorted(folder.glob("**/wandb/offline-run-*/run-*.wandb"))
    if not found:
        raise RunFolderError(f"no offline W&B run below {folder}; give the folder that `paths.runs` names.")
    waiting = _waiting(found)
    still = [part for part in waiting if state_of(part.parents[2]).name == "running"]
    if still:
        log.info("%d runs still write; they are left for the next time", _runs(still))
    ready = [part for part in waiting if part not in still]
    said = _wandb("sync", *(str(part.parent) for part in ready)) if ready else ""
    left = _waiting(ready)
    if left:
        raise RunFolderError(
            f"{_runs(left)} of {_runs(ready)} offline runs below {folder} could not be uploaded ({said}); nothing is lost,"
            " the same command tries again."
        )
    return _runs(ready)


def _waiting(parts: list[Path]) -> list[Path]:
    """Those that wandb has not marked as uploaded."""
    return [part for part in parts if not part.with_suffix(".wandb.synced").exists()]


def _runs(parts: list[Path]) -> int:
    """A run that was resumed has several parts with its id."""
    return len({part.name for part in parts})


def _wandb(*words: str) -> str:
    """Runs wandb's command line, passes its lines on and returns the last one. It cannot ask: there is nobody to type."""
    online = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    command = [sys.executable, "-m", "wandb", *words]
    last = ""
    with subprocess.Popen(
        command, env=online, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            last = line.strip() or last
            sys.stderr.write(line)
    return last
