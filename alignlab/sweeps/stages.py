"""The training of a job before it runs: how many steps, and which stages it may have in common with other jobs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from alignlab.config import RunConfig

READ_BY_ALL = ("model", "tuner", "data", "control", "trainer", "seed")
"""Sheets of which any stage may read something. A stage's own key (training/stages.py) knows what it does read, but needs
encoded rows; so two stages that are the same here have the same key, and others may have it too."""


@dataclass(frozen=True)
class PlannedStage:
    """`steps`: of the optimiser. `content`: the same in two jobs only if one of them computes the stage for both; "" where each
    job computes its own."""

    name: str
    steps: int
    content: str


def stages_of(config: RunConfig) -> tuple[PlannedStage, ...] | None:
    """The stages that train, in order; None where their steps depend on data whose size no config says."""
    contents = _contents(config)
    stages: list[PlannedStage] = []
    for name, fit in config.method.fits().items():
        split, per_record = config.method.reads(name)
        records = config.data.expected(split)
        if records is None and fit.steps is None:
            return None
        stages.append(PlannedStage(name, fit.total_steps((records or 0) * per_record), contents.get(name, "")))
    return tuple(stages)


def computed_once(jobs: Iterable[tuple[PlannedStage, ...]]) -> tuple[int, dict[str, tuple[int, int]]]:
    """Steps of all jobs where each stage they have in common is computed once; and each such stage's name, with how often it is
    computed and for how many jobs."""
    stages = [stage for job in jobs for stage in job]
    own = [stage for stage in stages if not stage.content]
    shared = [stage for stage in stages if stage.content]
    once = {stage.content: stage for stage in shared}.values()
    times, having = (Counter(stage.name for stage in each) for each in (once, shared))
    return sum(stage.steps for stage in [*own, *once]), {name: (times[name], having[name]) for name in times}


def _contents(config: RunConfig) -> dict[str, str]:
    """By the name of a stage; each says those before it, too."""
    shared = {} if config.force else config.method.shared()
    contents: dict[str, str] = {}
    so_far = json.dumps({key: config.plain[key] for key in READ_BY_ALL}, sort_keys=True) if shared else ""
    for name, read in shared.items():
        so_far = f"{so_far} {name} {read!r}"
        contents[name] = so_far
    return contents
