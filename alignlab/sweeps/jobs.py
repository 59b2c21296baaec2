"""The jobs of a sweep: what each would do, where its run is, and how it stands."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.command_line import sentence
from alignlab.config import RunConfig, finished, folder_of, parse
from alignlab.sweeps.compose import Composer
from alignlab.sweeps.stages import PlannedStage, stages_of
from alignlab.sweeps.words import ROW
from alignlab.tracking.ledger import State, state_of
from alignlab.tracking.sweeps import Job, relative


@dataclass(frozen=True)
class Planned:
    """A job before it runs. `words`: its whole command line; `job`: what the sweep writes down; `folder`: of its run; `stages`:
    those that train, empty where their steps are not known."""

    words: tuple[str, ...]
    job: Job
    state: State
    folder: Path = Path()
    stages: tuple[PlannedStage, ...] = ()

    @property
    def pending(self) -> bool:
        """Whether it has to run."""
        return not self.job.refused and self.state.name != "done"


def plan_jobs(commands: Sequence[Sequence[str]], fixed: Collection[str], composer: Composer) -> list[Planned]:
    """Every job of a sweep, in order. `fixed`: the words that all of them share."""
    return [_planned(tuple(words), fixed, composer) for words in commands]


def describe(config: RunConfig, words: Sequence[str], fixed: Collection[str] = ()) -> Planned:
    """One job, from its config and its command line. Raises RunFolderError for a folder that another config made."""
    done = finished(config)
    folder = folder_of(config)
    run = relative(folder, Path(config.paths.runs))
    stages = stages_of(config)
    steps = None if stages is None else sum(stage.steps for stage in stages)
    job = Job(**_own(words, fixed), seed=config.seed, fingerprint=config.fingerprint, folder=run, steps=steps)
    state = state_of(folder)
    if state.name == "done" and done is None:
        state = State("missing")  # force=true
    return Planned(tuple(words), job, state, folder, stages or ())


def _planned(words: tuple[str, ...], fixed: Collection[str], composer: Composer) -> Planned:
    try:
        return describe(parse(composer(words)), words, fixed)
    except Exception as error:
        why = sentence(error)
        if why is None:
            raise
        return _refused(words, fixed, why)


def _refused(words: tuple[str, ...], fixed: Collection[str], why: str) -> Planned:
    seeds = [word.partition("=")[2] for word in words if word.startswith("seed=")]
    seed = int(seeds[-1]) if seeds and re.fullmatch(r"-?\d+", seeds[-1]) else 0
    job = Job(**_own(words, fixed), seed=seed, fingerprint="", folder="", steps=None, refused=why)
    return Planned(words, job, State("failed", {"error": why}))


def _own(words: Sequence[str], fixed: Collection[str]) -> dict[str, Any]:
    """What the words of a job say that the sweep's do not, and its row."""
    own = tuple(word for word in words if word not in fixed)
    row = next((word for word in words if word.startswith(ROW)), "")
    settings = dict(_setting(word) for word in own if word != row and not word.startswith("seed="))
    return {"words": own, "row": row.partition("=")[2], "settings": settings}


def _setting(word: str) -> tuple[str, str]:
    key, _, value = word.partition("=")
    return key.lstrip("+"), value
