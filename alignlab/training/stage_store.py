"""Finished stages, kept for every job of this machine that asks for the very same one; safe among jobs that run at once."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from alignlab.files import alone

log = logging.getLogger(__name__)
WEIGHTS = ".safetensors"
DONE = "done.json"
METRICS = "metrics.json"
"""What the stage has logged, so that a run that did not compute it has its curves all the same."""


class StageStore:
    """Folders by key below `folder`. A key stands for everything that decides a stage's result (`stage_key`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def holds(self, key: str) -> bool:
        """Whether the stage of this key has been finished by any job."""
        return (self._folder / key / DONE).is_file()

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """One job at a time per key: a second one waits, and then finds what the first has kept. A job that dies lets go."""
        with alone(self._folder / f"{key}.lock", "waits for another job that computes the same stage"):
            yield

    def keep(self, key: str, stage: Path) -> None:
        """Keeps what a finished stage of a run has left, checkpoints aside; appears whole or not at all. A full disk stops no
        run: the stage is in the run's own folder."""
        scratch = Path(mkdtemp(prefix=f"{key}.", suffix=".part", dir=self._folder))
        try:
            _copy(stage, scratch)
            scratch.rename(self._folder / key)
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            if not self.holds(key):  # else another job was faster, with the same result
                log.warning("the stage is not kept for other runs (%s)", error.strerror)

    def fetch(self, key: str, stage: Path) -> None:
        """Puts a kept stage into a run's folder, as if the run had finished it: `done.json` comes last. Its files name others
        of the run by relative paths, so nothing in them is changed."""
        kept = self._folder / key
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        _copy(kept, stage, skip=(DONE,))
        shutil.copyfile(kept / DONE, stage / DONE)


def _copy(source: Path, target: Path, skip: tuple[str, ...] = ()) -> None:
    """Every file but checkpoints. Weights are written once and never changed, so they are hard links where the file system has
    them; a run may write the others again."""
    for file in sorted(source.rglob("*")):
        inside = file.relative_to(source)
        if file.is_dir() or inside.parts[0].startswith("checkpoint-") or str(inside) in skip:
            continue
        place = target / inside
        place.parent.mkdir(parents=True, exist_ok=True)
        _link(file, place)


def _link(file: Path, place: Path) -> None:
    if file.suffix == WEIGHTS:
        try:
            os.link(file, place)
            return
        except OSError:
            log.debug("%s: no hard links here", place)
    shutil.copyfile(file, place)
