"""What every stage is told of its run (`Session`), and finished stages that runs share: their keys and their store."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from alignlab.files import alone
from alignlab.provenance import PACKAGES, package_version
from alignlab.tracking.ledger import Ledger
from alignlab.tracking.tracker import Tracker
from alignlab.training.config import TrainerConfig
from alignlab.training.processes import Preemption

if TYPE_CHECKING:
    from alignlab.training.stages import Stage, Work
    from alignlab.training.validation import Validation

log = logging.getLogger(__name__)
WEIGHTS = ".safetensors"
DONE = "done.json"
"""In a stage's folder; written last."""
METRICS = "metrics.json"
"""What the stage has logged, so that a run that fetches it has its curves too."""


@dataclass(frozen=True)
class Session:
    """One run: where it writes, what it reports to, how it trains, its seed, the store shared by all runs, whether it was asked
    to leave, and what is measured while it trains, if anything."""

    folder: Path
    store: Path
    ledger: Ledger
    tracker: Tracker
    trainer: TrainerConfig
    device: str
    seed: int
    preemption: Preemption = field(default_factory=Preemption)
    validation: Validation | None = None

    def stage_folder(self, stage: str) -> Path:
        """Where a stage keeps its checkpoints and its result."""
        return self.folder / "stages" / stage

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Metrics of a stage to the ledger and the tracker, named stage/quantity."""
        named = {f"{stage}/{quantity}": value for quantity, value in values.items()}
        self.ledger.metrics(step, named)
        self.tracker.log(step, named)


def stage_key(stage: Stage, work: Work, before: Mapping[str, Any]) -> str:
    """What decides a stage's result, as 24 hex digits: two jobs with the same key would leave the same bits.

    `before`: what the stage starts from: weights, tuner, seed, the trainer's config, the keys of earlier stages. Rows count by
    their ids, so tokenizer, template and data are in the key, and what only the evaluation reads is not. The sources of
    alignlab and the versions of its dependencies count too.
    """
    parts = [cache_key(stage), cache_key(before), work.steps, cache_key(work.weights), _code()]
    digest, rows = hashlib.sha256(json.dumps(parts).encode()), hashlib.sha256()
    for group in work.groups:
        members = [[m.ids, m.start, m.control, m.target] for m in group.members]
        rows.update(json.dumps([group.row, group.task, members]).encode())
    digest.update(rows.digest())
    return digest.hexdigest()[:24]


def cache_key(thing: Any) -> Any:
    """A thing as JSON that is equal in every process, and differs where any part differs.

    A dataclass counts by its class, by the fields that it is compared by, and by what its method `cache_key` adds; another
    object by its class and `cache_key()`; a function by its name. Raises TypeError for an object with none of these.
    """
    if thing is None or isinstance(thing, (str, int, float, bool)):
        return thing
    if isinstance(thing, PurePath):
        return str(thing)
    if isinstance(thing, (list, tuple)):
        return [cache_key(each) for each in thing]
    if isinstance(thing, (set, frozenset)):
        return sorted(cache_key(each) for each in thing)
    if isinstance(thing, Mapping):
        return {str(key): cache_key(value) for key, value in sorted(thing.items(), key=lambda item: str(item[0]))}
    if isinstance(thing, functools.partial):
        return [cache_key(thing.func), cache_key(thing.args), cache_key(thing.keywords)]
    if callable(thing) and hasattr(thing, "__qualname__"):
        return f"{thing.__module__}.{thing.__qualname__}"
    name = cache_key(type(thing))
    own = [cache_key(thing.cache_key())] if hasattr(thing, "cache_key") else []
    if dataclasses.is_dataclass(thing):
        compared = [each.name for each in dataclasses.fields(thing) if each.compare]
        return [name, {each: cache_key(getattr(thing, each)) for each in compared}, *own]
    if own:
        return [name, *own]
    raise TypeError(f"{name} does not say what decides its result; give it a method `cache_key`.")


@functools.cache
def _code() -> list[str]:
    """The sources of alignlab as one hash, and the versions of its dependencies."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return [digest.hexdigest(), *(f"{name} {package_version(name)}" for name in PACKAGES)]


class StageStore:
    """Finished stages, one folder per `stage_key` below `folder`; safe among jobs that run at once."""

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
        """Keeps what a finished stage of a run has left, without its checkpoints; appears whole or not at all. A full disk is a
        warning: the stage is in the run's own folder."""
        scratch = Path(mkdtemp(prefix=f"{key}.", suffix=".part", dir=self._folder))
        try:
            _copy(stage, scratch)
            scratch.rename(self._folder / key)
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            if not self.holds(key):  # else another job was faster, with the same result
                log.warning("the stage is not kept for other runs (%s)", error.strerror)

    def fetch(self, key: str, stage: Path) -> None:
        """Puts a kept stage into a run's folder, as if the run had finished it; `done.json` comes last. Its files name others
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
        if file.suffix == WEIGHTS:
            try:
                os.link(file, place)
                continue
            except OSError:
                log.debug("%s: no hard links here", place)
        shutil.copyfile(file, place)
