"""What the histories of `test_histories.py` are made of: commands in processes of their own, which may be ended at any of their
steps and file operations, what each of them did, and what a run of the same cell leaves that nothing ever disturbed."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from alignlab import finished, running
from alignlab.config import folder_of, parse
from alignlab.errors import AlignlabError
from alignlab.files import damage
from alignlab.training import trainer
from alignlab.training.processes import COME_AGAIN
from alignlab.training.stages import DONE
from run import run
from tests.contracts.faults import job
from tests.contracts.test_methods import composed

STEPS = {"sft": 2, "prefer": 2}
"""The stages of the one job that all histories are of, and their steps. `prefer` reads beta, `sft` does not."""
WORDS = (
    *("data=jsonl", "data.test=test.jsonl", "tuner=red", "method.sft_first=true", "method.sft.epochs=null"),
    *("method.sft.steps=2", "method.sft.batch=4", "trainer.checkpoint_every_steps=1", "trainer.threads=1"),
    *("evaluation.suites=[preference]", "evaluation.pairs=2", "control.strengths=[1.0]", "control.figure=false"),
)
CONTENTS = ("alpha", "omega")
"""Words of the data: files of either have the same size."""
VERSIONS = ("old", "new")
"""Of the code; the new one trains uphill."""
SECONDS = 180
"""After which a command that has not ended is killed, which fails the history."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
WITH_VERSION = ("files", "running", "tracking.ledger", "training.stages", "training.references")
"""Modules that ask for the version of the code."""


@dataclass(frozen=True)
class Cell:
    """One cell of the table."""

    seed: int
    beta: float


CELLS = tuple(Cell(seed, beta) for seed in (0, 1) for beta in (0.1, 0.3))


@dataclass(frozen=True)
class World:
    """What a command finds: folder of runs, folder and content of the data, version of the code."""

    runs: Path
    data: Path
    content: str
    version: str

    def config(self, cell: Cell, **changed: Any) -> DictConfig:
        """Of one cell; `changed`: top-level keys."""
        config = copy.deepcopy(_base())
        config.paths.runs, config.data.path = str(self.runs), str(self.data)
        config.seed, config.method.beta = cell.seed, cell.beta
        for key, value in changed.items():
            config[key] = value
        return config

    def folder(self, cell: Cell) -> Path:
        """The run folder of a cell."""
        return folder_of(parse(self.config(cell)))

    def stage(self, cell: Cell, name: str) -> tuple[object, ...]:
        """What decides the result of a stage: cells that share it are told apart no further."""
        return (name, cell.seed, cell.beta if name == "prefer" else None, self.content, self.version)


@cache
def _base() -> DictConfig:
    return composed(Path("somewhere"), "dpo", *WORDS, "folder=null", data=(), batch=4)


def write_data(folder: Path, content: str) -> None:
    """Eight pairs to train on and two to test with. A file that is there keeps its time."""
    folder.mkdir(exist_ok=True)
    for name, count in (("train", 8), ("test", 2)):
        file = folder / f"{name}.jsonl"
        times = (file.stat().st_atime_ns, file.stat().st_mtime_ns) if file.exists() else None
        lines = [{"prompt": f"say {k}", "chosen": f"{content} {k}", "rejected": f"no {k}"} for k in range(count)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        if times:
            os.utime(file, ns=times)


@dataclass(frozen=True)
class End:
    """A signal, and the step or file operation at which a command gets it, from 1."""

    signal: int
    at: int

    @property
    def codes(self) -> tuple[int, ...]:
        """How a command may end then; it may have been done before."""
        return (0, -self.signal, 130) if self.signal == signal.SIGINT else (0, -self.signal, COME_AGAIN)


@dataclass(frozen=True)
class Ended:
    """A command that has ended. `events`: `batch FOLDER STAGE STEP` before a step, `saved FOLDER STAGE STEP` behind its
    checkpoint, `kept FOLDER STAGE KEY` when a stage is done and in the store."""

    code: int
    said: str
    events: tuple[tuple[str, ...], ...]

    def of(self, kind: str) -> list[tuple[str, ...]]:
        """The events of a kind, without it."""
        return [event[1:] for event in self.events if event[0] == kind]


class Command:
    """A command in a child of this process, which has its libraries."""

    def __init__(self, world: World, does: Callable[[], int], place: Path, end: End | None = None) -> None:
        self._log, self._events = place.with_suffix(".log"), place.with_suffix(".events")
        self._events.write_text("")
        self._child = os.fork()
        if self._child == 0:
            code = 70
            try:
                self._begin(world, end)
                code = does()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def _begin(self, world: World, end: End | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.alarm(SECONDS)
        written = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(written, 1)
        os.dup2(written, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        torch.set_num_threads(1)
        events = os.open(self._events, os.O_WRONLY | os.O_APPEND)

        def tell(*event: object) -> None:
            os.write(events, (json.dumps([str(each) for each in event]) + "\n").encode())

        ends = _ending(world.runs, end)
        _watch(tell, ends, world.version)

    def ended(self) -> Ended:
        """Waits for it."""
        _, status = os.waitpid(self._child, 0)
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        lines = self._events.read_text(encoding="utf-8").splitlines()
        said = self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""
        return Ended(code, said, tuple(tuple(json.loads(line)) for line in lines))


def _ending(runs: Path, end: End | None) -> Callable[[], None]:
    """Counts what a command does to files below the runs, and returns what counts its steps too; at the end it gets the
    signal."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if end and done == end.at:
            os.kill(os.getpid(), end.signal)

    def audited(event: str, given: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and isinstance(given[0], str) and given[2] & WRITES):
            named = str(given[0])
            if not named.startswith("/") or named.startswith(str(runs)):  # shutil.rmtree gives names inside folders
                count()

    sys.addaudithook(audited)
    return count


def _watch(tell: Callable[..., None], step: Callable[[], None], version: str) -> None:
    """Puts the version of the code in place, and tells what is computed, saved and kept."""
    real_loss, real_mark, real_keep = trainer.FitTrainer.compute_loss, trainer.mark, running._keep

    def compute_loss(self: Any, *given: Any, **more: Any) -> Any:
        tell("batch", self._session.folder, self._stage, self.state.global_step)
        step()
        loss = real_loss(self, *given, **more)
        return loss if version == VERSIONS[0] else -loss

    def mark(checkpoint: Path) -> None:
        real_mark(checkpoint)
        tell("saved", checkpoint.parents[2], checkpoint.parent.name, checkpoint.name.rpartition("-")[2])

    def keep(stage: Any, work: Any, key: str, store: Any, session: Any) -> None:
        real_keep(stage, work, key, store, session)
        tell("kept", session.folder, stage.name, key)

    trainer.FitTrainer.compute_loss = compute_loss  # type: ignore[method-assign]
    trainer.mark = mark
    running._keep = keep
    finished.draw_curves = lambda _, path: path
    for module in WITH_VERSION:
        sys.modules[f"alignlab.{module}"].code_version = lambda: version  # type: ignore[attr-defined]


def one_run(config: DictConfig) -> int:
    """What `python run.py` does with a config, and its exit status."""
    try:
        run(config)
    except AlignlabError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def sweep(world: World) -> int:
    """`python run.py -m` over all cells."""
    words = ["-m", "method=dpo", *_given(), *WORDS, f"paths.runs={world.runs}", f"data.path={world.data}"]
    axes = ["seed=0,1", "method.beta=0.1,0.3"]
    return job(words + axes)


def _given() -> list[str]:
    return [
        *("evaluation.prompts=4", "evaluation.max_new_tokens=8", "tracking=off", "trainer.device=cpu"),
        *("method.prefer.epochs=null", "method.prefer.steps=2", "method.prefer.batch=4"),
    ]


def left(folder: Path) -> dict[str, Any]:
    """What a run leaves: its numbers, and the hashes of what each stage has trained; "damaged" where its mark says so."""
    stages: dict[str, Any] = {}
    for name in STEPS:
        stage = folder / "stages" / name
        files = sorted((stage / "result").rglob("*.safetensors"))
        hashes = {str(file.relative_to(stage)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        stages[name] = "damaged" if damage(stage, DONE) else hashes
    return {"stages": stages, "results": json.loads((folder / "report.json").read_text(encoding="utf-8"))["results"]}


_REFERENCES: dict[tuple[Cell, str, str], dict[str, Any]] = {}


def undisturbed(cell: Cell, content: str, version: str, place: Path) -> dict[str, Any]:
    """What a run of a cell leaves in a folder of its own; computed once in this process."""
    key = (cell, content, version)
    if key not in _REFERENCES:
        here = place / "-".join(str(each) for each in (cell.seed, cell.beta, content, version))
        here.mkdir(parents=True)
        write_data(here / "data", content)
        world = World(here / "runs", here / "data", content, version)
        ended = Command(world, lambda: one_run(world.config(cell)), here / "command").ended()
        assert ended.code == 0, ended.said
        assert [event[-1] for event in ended.of("batch")] == ["0", "1", "0", "1"]
        _REFERENCES[key] = left(world.folder(cell))
    return _REFERENCES[key]
