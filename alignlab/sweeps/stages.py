"""The training of a job before it runs: how many steps, and which stages it may have in common with other jobs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from alignlab.config import GROUPS, RunConfig

READ_BY_ALL = ("model", "tuner", "data", "control", "trainer", "seed")
"""Sheets of which any stage may read something. A stage's own key (training/stage_key.py) knows what it does read, but needs
encoded rows; so two stages that are the same here have the same key, and others may have it too."""


@dataclass(frozen=True)
class PlannedStage:
    """`steps`: of the optimiser. `content`: the same in two jobs only if one of them computes the stage for both; "" where each
    job computes its own."""

    name: str
    steps: int
    content: str


def stages_of(config: RunConfig) -> tuple[PlannedStage, ...] | None:
    """The stages that train, in order; None where their steps depend on data whose size no sheet says."""
    fits = config.method.fits()
    records = config.data.expected()
    if records is None and any(fit.steps is None for fit in fits.values()):
        return None
    both = "labelled training" in GROUPS["method"][config.method.name].offers(config.method)
    groups = (records or 0) * (2 if both else 1)
    contents = _contents(config)
    return tuple(PlannedStage(name, fit.total_steps(groups), contents.get(name, "")) for name, fit in fits.items())


def computed_once(jobs: Iterable[tuple[PlannedStage, ...]]) -> tuple[int, dict[str, tuple[int, int]]]:
    """Steps of all jobs where each stage they have in common is computed once; and each such stage's name, with how often it is
    computed and for how many jobs."""
    stages = [stage for job in jobs for stage in job]
    once = {(stage.name, stage.content): stage for stage in stages if stage.content}
    steps = sum(stage.steps for stage in [*once.values(), *(stage for stage in stages if not stage.content)])
    counts: dict[str, tuple[int, int]] = {}
    for name in dict.fromkeys(name for name, _ in once):
        counts[name] = (sum(name == other for other, _ in once), sum(stage.name == name for stage in stages))
    return steps, counts


def _contents(config: RunConfig) -> dict[str, str]:
    """By the name of a stage; each says those before it, too."""
    shared = {} if config.force else config.method.shared()
    contents: dict[str, str] = {}
    so_far = json.dumps({key: config.plain[key] for key in READ_BY_ALL}, sort_keys=True) if shared else ""
    for name, read in shared.items():
        so_far = f"{so_far} {name} {read!r}"
        contents[name] = so_far
    return contents
