"""Hydra's basic sweeper with a plan before the jobs and a summary after them.

Only hydra_plugins/alignlab may import this file: Hydra executes the module of its basic sweeper once more when it looks for
plug-ins, and a subclass that exists before then no longer fits it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus

from alignlab.command_line import console, run_command, sentence
from alignlab.config import remove_left_locks
from alignlab.errors import ConfigError, MeasureError, SweepError
from alignlab.evaluation.report import refuse_unmeasured
from alignlab.sweeps.jobs import (
    Composer,
    Inputs,
    PlannedJob,
    checked_name,
    decisive,
    name_of,
    plan_jobs,
)
from alignlab.sweeps.printed import show_outcome, show_plan, show_table
from alignlab.tracking.ledger import REPORT, Ledger, state_of
from alignlab.tracking.sweeps import SweepLedger
from alignlab.training.processes import refuse_sweep

log = logging.getLogger(__name__)


class PlannedSweeper(BasicSweeper):
    """Writes every job into the sweep's ledger, gives those that are not done to the launcher, and prints how each ended.

    A failed job does not stop the others; the sweep then ends with an error.
    """

    def sweep(self, arguments: list[str]) -> Any:
        """Runs what is missing. Raises ConfigError for a sweep without jobs, and SweepError for one of which every job is
        refused, and at the end of one with failures."""
        assert self.config is not None
        assert self.hydra_context is not None
        refuse_sweep()
        if not isinstance(self.config.paths.runs, str):
            raise ConfigError(f"paths.runs={self.config.paths.runs} must be a folder.")
        loader = self.hydra_context.config_loader
        arguments = [override for override in arguments if not override.startswith("plan=")]
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        (commands,) = self.split_arguments(parsed, None)
        commands = list(dict.fromkeys(tuple(command) for command in commands))  # seed=0,0 is one job
        if not commands:
            raise ConfigError("this sweep has no jobs: one of its keys has no value; check glob(...) and the lists.")
        shared = [
            override
            for override in commands[0]
            if not self._varies(override) and all(override in command for command in commands)
        ]
        swept_here = [override for override in arguments if override not in shared]
        given = [override for override in shared if override in arguments]
        name = checked_name(self.config.sweep) or name_of(given, list(self.params), swept_here)
        # without a filter the folders count too: all configs of `experiment` are in folders
        choices = partial(loader.get_group_options, results_filter=None)
        composer = Composer(lambda overrides: loader.load_sweep_config(self.config, overrides), choices)
        inputs = Inputs() if self.config.plan else None
        planned = plan_jobs(commands, shared, composer, inputs)
        refused = [each.job.refused for each in planned if each.job.refused]
        hopeless = len(refused) == len(planned)
        show_plan(name, planned, console(), whole=bool(self.config.plan) or hopeless)
        if any(each.state.outdated and not each.pending for each in planned):
            log.info("some jobs were done by another version of the code or of a library; rerun=outdated repeats them")
        if hopeless:
            raise SweepError(f"every job of this sweep is refused, and nothing was begun; the first: {refused[0]}")
        if self.config.plan and refused:
            raise SweepError(f"{len(refused)} of {len(planned)} jobs of this sweep are refused; the first: {refused[0]}")
        if inputs:
            self._show_inputs(name, planned, inputs)
            return []
        ledger = SweepLedger(Path(self.config.paths.runs), name)
        if self.config.sweep and ledger.jobs() and decisive(ledger.overrides(), self.params) != decisive(shared, self.params):
            raise ConfigError(
                f"sweep={name} exists already, with other overrides: {' '.join(ledger.overrides())}; give another name."
            )
        own = [override for override in self.config.hydra.overrides.hydra if not override.startswith("hydra.mode=")]
        command = run_command(["-m", *own, *arguments])
        ledger.declare(shared, [each.job for each in planned], self._seeds(), command)
        return self._run(name, planned)

    def _seeds(self) -> list[int]:
        """The seeds that an experiment's config names."""
        if "seed" not in (self.params or {}):
            return []
        override = OverridesParser.create().parse_override(f"seed={self.params['seed']}")
        return [
            int(seed) for seed in (override.sweep_string_iterator() if override.is_sweep_override() else [override.value()])
        ]

    def _varies(self, override: str) -> bool:
        """Whether the override belongs to its job even if all jobs of this command share it: another command may add jobs."""
        key = override.partition("=")[0]
        return key == "seed" or key in self.params

    def _show_inputs(self, name: str, planned: Sequence[PlannedJob], inputs: Inputs) -> None:
        """The plan of the first job that has to run, and what a cluster's launcher would submit."""
        if inputs.first:
            from alignlab.plan_text import show
            from alignlab.running import found, stage_keys

            console().print("\nthe first job to run:")
            show(inputs.first, found(inputs.first, stage_keys(inputs.first)), console())
        pending = [each for each in planned if each.pending]
        if pending and hasattr(self.launcher, "scripts"):
            self._tell_launcher(pending)
            for what, script in self.launcher.scripts([self._command(name, each) for each in pending]):
                console().print(f"\nan array of {what}", soft_wrap=True)
                console().print(script, markup=False, highlight=False, soft_wrap=True)

    def _tell_launcher(self, pending: Sequence[PlannedJob]) -> None:
        self.launcher.folders = [each.folder for each in pending]  # type: ignore[union-attr]
        self.launcher.resources = [each.resources for each in pending]  # type: ignore[union-attr]

    @staticmethod
    def _command(name: str, planned: PlannedJob) -> list[str]:
        """The command line of a job, which knows its sweep."""
        return [*planned.overrides, f"sweep='{name}'"]

    def _run(self, name: str, planned: Sequence[PlannedJob]) -> list[Sequence[JobReturn]]:
        assert self.launcher is not None
        pending = [index for index, each in enumerate(planned) if each.pending]
        done = (each.folder for each in planned if not each.pending and each.state.name == "done")
        remove_left_locks(self.config.paths.runs, done)
        pending.sort(key=lambda index: planned[index].state.name == "killed")  # what killed its process may do so again
        failures = {index: each.job.refused for index, each in enumerate(planned) if each.job.refused}
        failures |= {index: why for index, each in enumerate(planned) if (why := _lacking(each))}
        results: Sequence[JobReturn] = []
        if pending:
            self._tell_launcher([planned[index] for index in pending])
            results = self.launcher.launch([self._command(name, planned[index]) for index in pending], initial_job_idx=0)
        submitted = 0 if results else len(pending)
        for index, result in zip(pending, results, strict=False):
            if result.status != JobStatus.COMPLETED:
                failures[index] = _error_of(result)
                if state_of(planned[index].folder).name in ("missing", "queued"):  # it ended before its run had a ledger
                    Ledger(planned[index].folder).status("failed", error=failures[index])
        show_outcome(name, planned, failures, submitted, console())
        if not submitted:
            show_table(Path(self.config.paths.runs), name, console())
        if failures:
            raise SweepError(
                f"{len(failures)} of {len(planned)} jobs failed; the same command runs those that are not done, and no others."
            )
        return [results] if results else []


def _lacking(planned: PlannedJob) -> str:
    """What a job that was done before could not measure, as a sentence; empty where it has all its numbers, or runs again."""
    if planned.pending or planned.state.name != "done":
        return ""
    try:
        refuse_unmeasured(planned.folder / REPORT)
    except MeasureError as error:
        return str(error)
    return ""


def _error_of(result: JobReturn) -> str:
    error = result._return_value  # `return_value` would raise it
    assert isinstance(error, Exception)
    return sentence(error) or f"{type(error).__name__}: {error}"
