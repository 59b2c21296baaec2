"""Whatever happens to runs, store and data, in whatever order: nothing finished is computed again, nothing stale is used, and a
cell that is done equals a run that nothing disturbed, to the bit. `histories.py` has the commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from alignlab.errors import RunFolderError
from alignlab.files import PART
from alignlab.tables.sweep import read_sweep
from alignlab.tracking.ledger import STATES, state_of
from alignlab.tracking.sweeps import every_sweep
from tests.contracts.histories import (
    CELLS,
    CONTENTS,
    STEPS,
    VERSIONS,
    Cell,
    Command,
    End,
    Ended,
    World,
    left,
    one_run,
    sweep,
    undisturbed,
    write_data,
)

cells = st.sampled_from(CELLS)
ends = st.builds(End, st.sampled_from([signal.SIGKILL] * 4 + [signal.SIGINT, signal.SIGUSR2]), st.integers(1, 190))
"""A whole run has about 180 steps and file operations."""
places = st.integers(0, 10**6)
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "garbage": lambda _: b"\xff\x00{",
    "other bytes at the end": lambda content: content[:-9] + bytes(byte ^ 129 for byte in content[-9:]),
}
"""No byte that text of ours has is above 127: what is left is no text."""
made: Counter[str] = Counter()
"""Steps of histories that were made, by rule, and what was seen."""
_references: list[Path] = []


@dataclass(frozen=True)
class Known:
    """What was known before a command: see `Histories`."""

    steps: dict[tuple[str, tuple[object, ...]], int]
    stored: set[tuple[object, ...]]
    finished: dict[str, str]
    hurt: set[str]


class Histories(RuleBasedStateMachine):
    """What is known of each run folder and of the store, without looking: what must not be computed again, and of which code
    a finished run is."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(mkdtemp(prefix="histories-"))
        self.world = World(self.home / "runs-0", self.home / "data-0", CONTENTS[0], VERSIONS[0])
        write_data(self.world.data, CONTENTS[0])
        self.world.runs.mkdir()
        self.folders: dict[str, tuple[Cell, str]] = {}
        """Name of a run folder -> its cell and its data."""
        self.steps: dict[tuple[str, tuple[object, ...]], int] = {}
        """Run folder and stage -> steps that are saved in it."""
        self.stored: dict[tuple[object, ...], str] = {}
        """Stages that the store has, with their keys."""
        self.finished: dict[str, str] = {}
        """Run folder -> the code that has finished it."""
        self.hurt: set[str] = set()
        """Run folders of which a file was damaged since they were finished."""
        self.commands = 0

    def teardown(self) -> None:
        made["histories"] += 1
        shutil.rmtree(self.home)

    # what can happen

    @rule(cell=cells)
    def start(self, cell: Cell) -> None:
        self._run(cell, None)

    @rule(cell=cells, end=ends)
    def start_and_end(self, cell: Cell, end: End) -> None:
        self._run(cell, end)

    @rule(cell=cells, end=st.none() | ends)
    def start_with_force(self, cell: Cell, end: End | None) -> None:
        self._run(cell, end, force=True)

    @rule(cell=cells, end=st.none() | ends)
    def repeat_what_is_outdated(self, cell: Cell, end: End | None) -> None:
        self._run(cell, end, rerun="outdated")

    @rule(pair=st.tuples(cells, cells), end=st.none() | ends)
    def two_processes(self, pair: tuple[Cell, Cell], end: End | None) -> None:
        named = self._names(pair)
        before = self._known()
        both = [self._command(self.world, cell, each) for cell, each in zip(pair, (end, None), strict=True)]
        ended = [each.ended() for each in both]

        self._count("two processes", end, ended[0])
        assert ended[1].code == 0, ended[1].said
        self._nothing_twice(named, before, *ended, both_whole=ended[0].code == 0)
        self._learn(ended)
        for cell, each in zip(pair, ended, strict=True):
            self._ended(cell, each, before)

    @rule(end=st.none() | ends)
    def sweep(self, end: End | None) -> None:
        named = self._names(CELLS)
        before = self._known()
        ended = Command(self.world, lambda: sweep(self.world), self._place(), end).ended()

        self._count("sweep", end, ended)
        self._check_code(ended, end)
        self._nothing_twice(named, before, ended)
        self._learn([ended])
        for cell in CELLS:
            self._ended(cell, ended, before, own=ended.code == 0)

    @rule(content=st.sampled_from(CONTENTS))
    def data_is_written(self, content: str) -> None:
        write_data(self.world.data, content)
        made["other data" if content != self.world.content else "data written again"] += 1
        self.world = replace(self.world, content=content)

    @rule()
    def code_changes(self) -> None:
        self.world = replace(self.world, version=VERSIONS[1 - VERSIONS.index(self.world.version)])
        made["other code"] += 1

    @rule()
    def data_moves(self) -> None:
        self.world = replace(self.world, data=self._moved(self.world.data))
        made["data moved"] += 1

    @rule()
    def runs_move(self) -> None:
        self.world = replace(self.world, runs=self._moved(self.world.runs))
        made["runs moved"] += 1

    def _moved(self, old: Path) -> Path:
        name, _, number = old.name.partition("-")
        return old.rename(old.with_name(f"{name}-{int(number) + 1}"))

    @precondition(lambda self: self.stored)
    @rule(place=places)
    def store_loses(self, place: int) -> None:
        stage, key = sorted(self.stored.items(), key=str)[place % len(self.stored)]
        shutil.rmtree(self.world.runs / ".store" / "stages" / key)
        del self.stored[stage]
        made["removed from the store"] += 1

    @precondition(lambda self: self._files())
    @rule(place=places, how=st.sampled_from(list(DAMAGES)))
    def file_is_damaged(self, place: int, how: str) -> None:
        """Writes into a file, and so into all that are hard links to it."""
        files = self._files()
        file = files[place % len(files)]
        same = [each for each in files if each.stat().st_ino == file.stat().st_ino]
        file.write_bytes(DAMAGES[how](file.read_bytes()))
        for each in same:
            self._forget(each.relative_to(self.world.runs).parts)
        made[how] += 1

    @precondition(lambda self: self._files())
    @rule(place=places)
    def file_is_removed(self, place: int) -> None:
        files = self._files()
        file = files[place % len(files)]
        file.unlink()
        self._forget(file.relative_to(self.world.runs).parts)
        made["removed"] += 1

    def _files(self) -> list[Path]:
        """What can be damaged: locks hold nothing."""
        found = sorted(file for file in self.world.runs.rglob("*") if file.is_file())
        return [file for file in found if file.stat().st_size and file.name[0] != "." and file.suffix != ".lock"]

    # what holds at any time

    @invariant()
    def every_state_can_be_told(self) -> None:
        for name in self.folders:
            assert state_of(self.world.runs / name).name in STATES
        for name in self.finished.keys() - self.hurt:
            assert state_of(self.world.runs / name).name == "done"

    @invariant()
    def every_number_of_a_table_is_that_of_an_undisturbed_run(self) -> None:
        for each in every_sweep(self.world.runs):
            try:
                jobs = read_sweep(self.world.runs, each.name).jobs
            except RunFolderError:  # its ledger is damaged; its command writes it again
                continue
            for job in jobs:
                name = job.spec.folder
                if job.results and name in self.finished and name not in self.hurt:
                    cell, content = self.folders[name]
                    wanted = self._undisturbed(cell, content, self.finished[name])
                    assert job.results == wanted["results"]
                    made["cells of tables"] += 1

    # how it is told

    def _run(self, cell: Cell, end: End | None, **changed: object) -> None:
        named = self._names([cell])
        (name,) = named
        again = "force" in changed or ("rerun" in changed and self._may_be_outdated(name))
        earlier = self.finished.get(name)
        if again:
            self._begun_anew(name)
        before = self._known()
        ended = self._command(self.world, cell, end, **changed).ended()

        self._count(" ".join(["start", *map(str, changed)]), end, ended)
        self._check_code(ended, end)
        self._nothing_twice(named, before, ended, force="force" in changed)
        self._learn([ended])
        self._ended(cell, ended, before, earlier=earlier)

    def _may_be_outdated(self, name: str) -> bool:
        """Other code has finished it, or the file that says which has been damaged."""
        return name in self.finished and (self.finished[name] != self.world.version or name in self.hurt)

    def _command(self, world: World, cell: Cell, end: End | None, **changed: object) -> Command:
        config = world.config(cell, **changed)
        return Command(world, lambda: one_run(config), self._place(), end)

    def _place(self) -> Path:
        self.commands += 1
        return self.home / f"command-{self.commands}"

    def _count(self, rule_name: str, end: End | None, ended: Ended) -> None:
        how = "whole" if ended.code == 0 else signal.Signals(end.signal).name if end else "failed"
        made[f"{rule_name}: {how}"] += 1
        made["batches"] += len(ended.of("batch"))

    def _check_code(self, ended: Ended, end: End | None) -> None:
        assert ended.code in (end.codes if end else (0,)), (ended.code, end, ended.said)
        assert "Traceback" not in ended.said, ended.said

    def _name(self, cell: Cell) -> str:
        return str(self.world.folder(cell).relative_to(self.world.runs))

    def _names(self, asked: Sequence[Cell]) -> dict[str, Cell]:
        named = {self._name(cell): cell for cell in asked}
        for name, cell in named.items():
            self.folders[name] = (cell, self.world.content)
        return named

    def _known(self) -> Known:
        return Known(dict(self.steps), set(self.stored), dict(self.finished), set(self.hurt))

    def _begun_anew(self, name: str) -> None:
        self.finished.pop(name, None)
        self.steps = {key: value for key, value in self.steps.items() if key[0] != name}

    def _nothing_twice(
        self, named: dict[str, Cell], before: Known, *ended: Ended, force: bool = False, both_whole: bool = True
    ) -> None:
        """What was saved, kept or finished before is not computed, and nothing is computed by two at once."""
        computed: Counter[tuple[tuple[object, ...], int]] = Counter()
        for each in ended:
            for folder, stage, step in each.of("batch"):
                name = str(Path(folder).relative_to(self.world.runs))
                identity = self.world.stage(named[name], stage)
                computed[identity, int(step)] += 1
                assert force or identity not in before.stored, (name, identity, "is in the store", each.said)
                assert int(step) >= before.steps.get((name, identity), 0), (name, identity, step, "is saved", each.said)
                assert name in before.hurt or name not in before.finished, (name, "is finished", each.said)
        if both_whole:
            assert not computed or max(computed.values()) == 1, computed

    def _learn(self, ended: Sequence[Ended]) -> None:
        for each in ended:
            for folder, stage, step in each.of("batch"):
                del stage, step
                self._only_this_version(str(Path(folder).relative_to(self.world.runs)))
            for folder, stage, step in each.of("saved"):
                name = str(Path(folder).relative_to(self.world.runs))
                self.steps[name, self.world.stage(self.folders[name][0], stage)] = int(step)
            for folder, stage, key in each.of("kept"):
                name = str(Path(folder).relative_to(self.world.runs))
                identity = self.world.stage(self.folders[name][0], stage)
                self.steps[name, identity] = STEPS[stage]
                self.stored[identity] = key

    def _only_this_version(self, name: str) -> None:
        kept = {key: value for key, value in self.steps.items() if key[0] != name or key[1][-1] == self.world.version}
        self.steps = kept

    def _ended(self, cell: Cell, ended: Ended, before: Known, *, own: bool | None = None, earlier: str | None = None) -> None:
        """A command that ended well has left what an undisturbed run leaves, and so has any other where the run says that it is
        done. `earlier`: the code that had finished what the command was to repeat, which a kill may have come before."""
        name = self._name(cell)
        folder = self.world.runs / name
        done_before = before.finished.get(name)
        well = ended.code == 0 if own is None else own
        if not well and state_of(folder).name != "done":
            if done_before is None or name in before.hurt:
                self._only_this_version(name)
                self.finished.pop(name, None)
            return
        found, hurt = left(folder), name in before.hurt
        of_others = [done_before] if well else [done_before, earlier]
        versions = [done_before] if done_before and not hurt else [*filter(None, of_others), self.world.version]
        possible = {version: self._undisturbed(cell, self.world.content, version) for version in versions}
        for stage, hashes in found["stages"].items():
            assert hashes != "damaged" or hurt, (name, stage, ended.said)
        fitting = [version for version, wanted in possible.items() if _equal(found, wanted)]
        assert fitting, (name, versions, found, possible, ended.said)
        assert not list(folder.rglob(f"*{PART}"))
        if "damaged" not in found["stages"].values():
            self.hurt.discard(name)
        self.finished[name] = fitting[0]
        made["cells compared"] += 1

    def _undisturbed(self, cell: Cell, content: str, version: str) -> dict[str, Any]:
        return undisturbed(cell, content, version, _references[0])

    def _forget(self, parts: tuple[str, ...]) -> None:
        """A file of a run or of the store was damaged."""
        if parts[0] == ".store":
            self.stored = {stage: key for stage, key in self.stored.items() if key not in parts}
            return
        if parts[0] == "sweeps":
            return
        name = "/".join(parts[:2])
        self.hurt.add(name)
        if parts[2] == "stages":
            self.steps = {key: value for key, value in self.steps.items() if key[0] != name or key[1][0] != parts[3]}


def _equal(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a run has left this, where it is not damaged."""
    stages = (hashes in ("damaged", wanted["stages"][stage]) for stage, hashes in found["stages"].items())
    return found["results"] == wanted["results"] and all(stages)


def told(place: Path, examples: int, steps: int, **more: object) -> Counter[str]:
    """Makes so many histories of so many steps each, and prints what was done in them."""
    _references[:] = [place]
    made.clear()
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        phases=[Phase.generate],  # to make a history shorter takes as many runs again; explaining it slows each of them
        database=None,
        suppress_health_check=list(HealthCheck),
        **more,  # type: ignore[arg-type]
    )
    run_state_machine_as_test(Histories, settings=chosen)
    sys.stdout.write(f"{json.dumps(made)}\n")
    return made


def test_a_few_histories_end_as_undisturbed_runs(tmp_path: Path) -> None:
    seen = told(tmp_path, 3, 10, derandomize=True)

    assert seen["cells compared"] > 3


@pytest.mark.slow
def test_many_histories_end_as_undisturbed_runs(tmp_path: Path) -> None:
    histories = int(os.environ.get("HISTORIES", "60"))

    seen = told(tmp_path, histories, 25, print_blob=True)

    assert seen["cells compared"] > 2 * histories
