"""Runs one small job again and again, each time with another call on its files that fails or kills it: faults.c beneath.

    LD_PRELOAD=faults.so python -m tests.contracts.faults faults.so FOLDER [--every K] [--first F] [-- words of run.py ...]

The libraries are imported once; every job is a fork of this process. After each fault the same command runs again without one,
and has to end with the bits of a run that had none. Prints one line of JSON for each fault, and a summary.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import hashlib
import json
import os
import runpy
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignlab.tracking.ledger import Ledger

ROOT = Path(__file__).parents[2]
CALLS = 65536
WORDS = (
    "method=red",
    "method.fit.steps=2",
    "method.fit.batch=4",
    "data.pairs=16",
    "trainer.checkpoint_every_steps=1",
    "trainer.threads=1",
    "evaluation=quick",
    "evaluation.pairs=2",
    "evaluation.prompts=2",
    "evaluation.max_new_tokens=2",
    "control.strengths=[1.0]",
    "control.figure=false",
    "tracking=off",
)
"""A whole job: two steps, two checkpoints, a stage for the store, an evaluation, a report."""
ERRORS = {
    "R": [("e", errno.EIO)],
    "o": [("E", errno.ENOSPC), ("e", errno.EACCES)],
    "w": [("E", errno.ENOSPC), ("e", errno.EIO), ("s", 0), ("t", 0)],
    "f": [("e", errno.EIO)],
    "r": [("e", errno.EIO)],
    "u": [("e", errno.EACCES)],
    "d": [("e", errno.EACCES)],
    "l": [("e", errno.EPERM)],
    "m": [("e", errno.ENOSPC)],
    "c": [("e", errno.EIO)],
}
"""What can happen to each kind of call, besides the death of the process (the letters are those of faults.c)."""


class Injector:
    """The library that is preloaded: which call fails, and which calls were made."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)

    def arm(self, folder: Path | None, nth: int = 0, mode: str = "e", number: int = 0) -> None:
        """Counts calls below a folder from now on; the nth one is hit, 0: none."""
        self._library.faults_arm(None if folder is None else str(folder).encode(), nth, ord(mode), number)

    def calls(self) -> str:
        """A letter for each call since it was armed."""
        buffer = ctypes.create_string_buffer(CALLS)
        made = self._library.faults_calls(buffer, CALLS)
        return buffer.raw[:made].decode()


def job(folder: Path, words: list[str]) -> int:
    """`python run.py` in this process; the exit status, 70 for an exception that nobody caught."""
    sys.argv = ["run.py", *words, f"paths.runs={folder}", f"folder={folder}/run"]
    try:
        runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


def forked(
    folder: Path, words: list[str], log: Path, injector: Injector, fault: tuple[int, str, int] | None
) -> tuple[int, str]:
    """The job in a child. Its exit status (minus the signal that killed it), and what it wrote to stderr."""
    child = os.fork()
    if child == 0:
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(written, 1)
        os.dup2(written, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)  # the parent's has lines of its own to write
        injector.arm(folder, *fault) if fault else injector.arm(None)
        status = job(folder, words)
        injector.arm(None)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    _, status = os.waitpid(child, 0)
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return code, log.read_text(encoding="utf-8", errors="replace")


def result(folder: Path) -> dict[str, Any]:
    """What has to be equal: the bits of the trained weights, the numbers of the report, and the losses."""
    run = folder / "run"
    weights = {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(run.glob("stages/*/result/**/*.safetensors"))
    }
    lines = list(Ledger(run).history())  # a line that a kill has cut is no line
    losses = sorted({(line["step"], line["fit/loss"]) for line in lines if "fit/loss" in line})
    return {"weights": weights, "results": json.loads((run / "report.json").read_text())["results"], "losses": losses}


def judged(code: int, said: str, mode: str, again: tuple[int, str], same: bool, parts: list[str]) -> str:
    """What went wrong, "" for nothing."""
    killed = mode in "kt" and code == -signal.SIGKILL
    if "Traceback" in said or not (killed or code in (0, 1)):
        return f"ended with {code}: {said[-1500:]}"
    if code == 1 and not said.strip().rpartition("\n")[2].startswith("error: "):
        return f"ended without its sentence: {said[-600:]}"
    if again[0] != 0:
        return f"the same command ended with {again[0]} afterwards: {again[1][-1500:]}"
    if not same:
        return "the same command ended with other bits"
    return f"left behind: {', '.join(parts)}" if parts else ""


def faults(calls: str, every: int, first: int) -> Iterator[tuple[int, str, int]]:
    """Every `every`-th of: each call, killed at and failing in each way of its kind."""
    all_of_them = [
        (nth, mode, number) for nth, letter in enumerate(calls, start=1) for mode, number in [("k", 0), *ERRORS[letter]]
    ]
    yield from all_of_them[first::every]


def main() -> None:
    """Prints a line for each fault; exits with 1 if one of them lost something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int, help="the one call that is hit, in every way")
    parser.add_argument("words", nargs="*", default=list(WORDS))
    given = parser.parse_args()
    injector = Injector(given.library)
    whole = given.folder / "whole"
    printed = os.dup(1)
    log = os.open(given.folder / "whole.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    injector.arm(whole)
    code = job(whole, given.words)
    calls = injector.calls()
    injector.arm(None)
    sys.stdout = os.fdopen(printed, "w")
    if code:
        sys.exit(f"the job itself ends with {code}; look at {given.folder / 'whole.log'}")
    expected = result(whole)
    outcomes: Counter[str] = Counter()
    for nth, mode, number in faults(calls, given.every, given.first):
        if given.only not in (None, nth):
            continue
        folder = given.folder / "hit"
        shutil.rmtree(folder, ignore_errors=True)
        code, said = forked(folder, given.words, given.folder / "hit.log", injector, (nth, mode, number))
        again = forked(folder, given.words, given.folder / "again.log", injector, None)
        same = again[0] == 0 and result(folder) == expected
        parts = [file.name for file in folder.rglob("*.part")] if same else []
        wrong = judged(code, said, mode, again, same, parts)
        outcome = "wrong" if wrong else ("killed" if code < 0 else "one sentence" if code else "finished all the same")
        outcomes[outcome] += 1
        what = {"nth": nth, "call": calls[nth - 1], "mode": mode, "errno": errno.errorcode.get(number, "")}
        print(json.dumps({**what, "outcome": outcome, "wrong": wrong}), flush=True)
    kinds = Counter(calls)
    print(json.dumps({"calls": len(calls), "kinds": kinds, "outcomes": outcomes}), flush=True)
    sys.exit(1 if outcomes["wrong"] else 0)


if __name__ == "__main__":
    main()
