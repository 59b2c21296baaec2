"""`alignlab run`, and `python run.py` in a checkout: compose the configs, build the parts, run the stages, evaluate, report."""

from __future__ import annotations

import functools
import gc
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from alignlab.command_line import (
    CONF,
    NO_PLAN,
    asks_for_completion,
    asks_for_config,
    asks_for_help,
    console,
    expand_overrides,
    sentence,
    share_config_store,
    show_words,
    take_config_folders,
)
from alignlab.config import RunConfig, finished, folder_of, headline_of, parse, remove_left_locks
from alignlab.errors import AlignlabError, ConfigError
from alignlab.files import alone, beating
from alignlab.tracking.ledger import LOCK, state_of, wait_for_other_machine
from alignlab.training import processes

if TYPE_CHECKING:
    from alignlab.planning import Plan

OUTDATED = "another version of the code made it; rerun=outdated repeats it"


def add_run(commands: Any) -> None:
    """The command, whose words are Hydra's. `commands`: the sub-parsers of argparse."""
    commands.add_parser("run", help="one run, or a sweep: train, evaluate, report; `run --help` lists what to choose from")


def start(words: Sequence[str], commands: Sequence[str] = ()) -> None:
    """Runs what the words of the command line ask for. Ends the process after an error: status 1, or 130 after Ctrl-C.
    `commands`: what a shell may complete in place of `run`."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here whole and leave as one sentence
    share_config_store()
    show_words(logging.INFO if processes.is_main_process() else logging.ERROR)
    if not processes.is_main_process():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        rest = take_config_folders(words)
        if asks_for_help(rest):
            from alignlab.commands.help import usage

            print(usage(), end="")
            return
        if asks_for_completion(rest):
            from alignlab.commands.help import complete

            if complete(commands):
                return
        sys.argv[1:] = expand_overrides(rest)
        if asks_for_config(rest):
            from alignlab.commands.help import note_on_config

            print(note_on_config(sys.argv[1:]), file=sys.stderr, end="")
        main()
    except KeyboardInterrupt as stop:
        print(f"interrupted; {stop.args[0] if stop.args else 'the same command begins anew'}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        said = sentence(error)
        if said is None:
            raise
        _end(said)


@hydra.main(config_path=str(CONF), config_name="run", version_base="1.3")
def main(raw: DictConfig) -> float | None:
    """One job of Hydra. A single job ends with its sentence; in a sweep, Hydra collects the errors of its jobs."""
    try:
        return run(raw)
    except AlignlabError as error:
        if HydraConfig.get().mode == RunMode.RUN:
            _end(str(error))
        raise


def run(raw: DictConfig) -> float | None:
    """Returns the headline number, so that a sweeper can optimise it."""
    config = parse(raw)  # no torch up to here: every config error answers at once
    if config.plan:
        _plan(config)
        return None
    with processes.joined(config.trainer.device):
        return _once(config)


def _plan(config: RunConfig) -> None:
    """What would be done. Refused is whatever the run would refuse before it trains."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:  # a sweep by alignlab's own sweeper plans its jobs itself
        raise ConfigError(NO_PLAN)
    done = finished(config)
    if done:
        _say_finished(config, done)
        return
    from alignlab.plan_text import show
    from alignlab.planning import make_plan
    from alignlab.running import found, stage_keys

    planned = make_plan(config)
    show(planned, found(planned, stage_keys(planned)), console())


def _once(config: RunConfig) -> float | None:
    done = processes.by_main_process(lambda: finished(config))
    if done is None:
        from alignlab.planning import make_plan

        with processes.Preemption().heeded(lambda: None):
            planned = make_plan(config)  # bad data ends here, with nothing written
        lock = folder_of(config) / LOCK
        with _alone_at(lock) if processes.is_main_process() else nullcontext():
            done = processes.by_main_process(lambda: finished(config))
            if done is None:
                return _run(planned)
    _say_finished(config, done)
    return headline_of(done)


def _say_finished(config: RunConfig, report: Path) -> None:
    """That there is nothing to do. Raises MeasureError for a report without a number that was asked for."""
    from alignlab.evaluation.report import refuse_unmeasured

    remove_left_locks(config.paths.runs, [report.parent])
    outdated = state_of(report.parent).outdated
    print(f"this run is finished; {OUTDATED if outdated else 'force=true repeats it'}")
    print(f"report: {report}")
    refuse_unmeasured(report)


@contextmanager
def _alone_at(lock: Path) -> Iterator[None]:
    """Inside, this process is the only one at a run, on any machine, and shows that it lives."""
    with alone(lock, "waits for another process that is at the same run"):
        wait_for_other_machine(lock.parent)
        with beating(lock):
            yield


def _run(planned: Plan) -> float | None:
    from alignlab.evaluation.report import refuse_unmeasured
    from alignlab.evaluation.report import show as show_report
    from alignlab.finished import evaluate, report
    from alignlab.plan_text import show
    from alignlab.running import found, list_dropped, open_session, policy_of, run_stages, stage_keys

    _freeze_libraries()
    keys = stage_keys(planned)
    show(planned, found(planned, keys), console())
    with open_session(planned.config) as session:
        list_dropped(planned, session)
        policy = policy_of(planned, session)
        run_stages(planned, keys, policy, session)
        processes.disband()
        if not processes.is_main_process():
            return None
        made = report(planned, evaluate(planned, keys, policy, session), session)
    show_report(made, console())
    print(f"report: {made.path}")
    if made.unmeasured:
        refuse_unmeasured(made.path)
    return made.value


@functools.cache
def _freeze_libraries() -> None:
    """Once per process: collections of garbage need not look through what the imports have made. accelerate asks for one behind
    each stage, and without this it takes a third of a second, a third of what the frame needs for a job of a sweep."""
    gc.freeze()


def _end(said: str) -> NoReturn:
    """One sentence, from the main process."""
    if not processes.is_main_process():
        processes.wait_for_the_end()
    sys.exit(f"error: {said}")
