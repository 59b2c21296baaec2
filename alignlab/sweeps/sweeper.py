"""Hydra's basic sweeper, with a plan before the jobs and an account behind them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus

from alignlab.command_line import console, sentence
from alignlab.errors import ConfigError, SweepError
from alignlab.sweeps.compose import Composer
from alignlab.sweeps.jobs import Planned, plan_jobs
from alignlab.sweeps.names import checked, decisive, name_of
from alignlab.sweeps.show import show_outcome, show_plan
from alignlab.tracking.ledger import Ledger, state_of
from alignlab.tracking.sweeps import SweepLedger
from alignlab.training.processes import refuse_sweep


class PlannedSweeper(BasicSweeper):
    """Writes down every job, leaves out what is done, gives the rest to the launcher, and tells what became of them.

    One failing job neither stops nor hides the others; with any failure the sweep ends as an error.
    """

    def sweep(self, arguments: list[str]) -> Any:
        """Runs what is missing. Raises ConfigError for a sweep without jobs, and SweepError at the end of one with failures."""
        assert self.config is not None
        assert self.hydra_context is not None
        refuse_sweep()
        if not isinstance(self.config.paths.runs, str):
            raise ConfigError(f"paths.runs={self.config.paths.runs} must be a folder.")
        loader = self.hydra_context.config_loader
        arguments = [word for word in arguments if not word.startswith("plan=")]
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        (commands,) = self.split_arguments(overrides, None)
        if not commands:
            raise ConfigError("this sweep has no jobs: one of its keys has no value; check glob(...) and the lists.")
        fixed = [word for word in commands[0] if not self._tells_jobs_apart(word) and all(word in words for words in commands)]
        swept_here = [word for word in arguments if word not in fixed]
        name = checked(self.config.sweep) or name_of([w for w in fixed if w in arguments], list(self.params), swept_here)
        # without a filter the folders count too: all configs of `experiment` are in folders
        configs = partial(loader.get_group_options, results_filter=None)
        composer = Composer(lambda words: loader.load_sweep_config(self.config, words), configs)
        planned = plan_jobs(commands, fixed, composer)
        show_plan(name, planned, console(), whole=bool(self.config.plan))
        if self.config.plan:
            return []
        ledger = SweepLedger(Path(self.config.paths.runs), name)
        if self.config.sweep and ledger.jobs() and decisive(ledger.words(), self.params) != decisive(fixed, self.params):
            raise ConfigError(
                f"sweep={name} is there already, with other words: {' '.join(ledger.words())}; give another name."
            )
        ledger.declare(fixed, [each.job for each in planned], self._seeds())
        return self._run(name, planned)

    def _seeds(self) -> list[int]:
        """Those that an experiment's config names."""
        if "seed" not in (self.params or {}):
            return []
        override = OverridesParser.create().parse_override(f"seed={self.params['seed']}")
        return [
            int(seed) for seed in (override.sweep_string_iterator() if override.is_sweep_override() else [override.value()])
        ]

    def _tells_jobs_apart(self, word: str) -> bool:
        """Whether the word stays a job's own even where all jobs of this command share it: another may add to the sweep."""
        key = word.partition("=")[0]
        return key == "seed" or key in self.params

    def _run(self, name: str, planned: Sequence[Planned]) -> list[Sequence[JobReturn]]:
        assert self.launcher is not None
        places = [place for place, each in enumerate(planned) if each.pending]
        places.sort(key=lambda place: planned[place].state.name == "killed")  # what killed its process may do so again
        failures = {place: each.job.refused for place, each in enumerate(planned) if each.job.refused}
        results: Sequence[JobReturn] = []
        if places:
            self.launcher.folders = [planned[place].folder for place in places]  # type: ignore[attr-defined]
            commands = [[*planned[place].words, f"sweep='{name}'"] for place in places]
            results = self.launcher.launch(commands, initial_job_idx=0)
        submitted = 0 if results else len(places)
        for place, result in zip(places, results, strict=False):
            if result.status != JobStatus.COMPLETED:
                failures[place] = _error_of(result)
                _write_down(planned[place].folder, failures[place])
        show_outcome(name, planned, failures, submitted, console())
        if failures:
            raise SweepError(f"{len(failures)} of {len(planned)} jobs failed; the same command runs them again, and no others.")
        return [results] if results else []


def _write_down(folder: Path, error: str) -> None:
    """The failure of a job that ended before its run had a ledger: its data, say, was refused."""
    if state_of(folder).name in ("missing", "queued"):
        Ledger(folder).status("failed", error=error)


def _error_of(result: JobReturn) -> str:
    error = result._return_value  # `return_value` would raise it
    assert isinstance(error, Exception)
    return sentence(error) or f"{type(error).__name__}: {error}"
