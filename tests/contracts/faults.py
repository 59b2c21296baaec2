"""Runs one small command again and again, each time with another call on its files that fails or kills it: faults.c beneath.

    LD_PRELOAD=faults.so python -m tests.contracts.faults faults.so FOLDER SUBJECT[:EVERY:FIRST] ... [--only NTH]

Of the faults of each subject every so many are tried, from the first on; all without these. The libraries are imported once;
every command is a fork of this process. After each fault the same command runs again without one, and has to leave what it
leaves where there was none. Prints one line of JSON for each fault, and a summary.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import hashlib
import json
import os
import re
import runpy
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignlab.__main__ import main as main_of_alignlab
from alignlab.tracking.ledger import Ledger
from alignlab.tracking.sweeps import SweepLedger

ROOT = Path(__file__).parents[2]
CALLS = 65536
SMALL = (
    *("method=red", "method.fit.steps=2", "method.fit.batch=4", "data.pairs=16", "trainer.checkpoint_every_steps=1"),
    *("trainer.threads=1", "evaluation=quick", "evaluation.pairs=2", "evaluation.prompts=2", "evaluation.max_new_tokens=2"),
    *("control.strengths=[1.0]", "control.figure=false", "tracking=off"),
)
"""A whole job: two steps, two checkpoints, a stage for the store, an evaluation, a report."""
SHORT = ("method.fit.steps=1", "evaluation.suites=[toy]", "sweep=pair", "seed=0,1")
"""Two jobs of one step each."""
TEXT = (".md", ".csv", ".html")
TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d\+00:00)?")
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


ENDS = {0: "finished all the same", 1: "one sentence"}
SAID = re.compile("damaged|cannot be read")
LEFT = re.compile(r"\.part$|.\.lock$")
"""Names of what only a living process needs."""


@dataclass(frozen=True)
class Ended:
    """Exit status, both outputs, and a letter for each call, none of a process that was killed."""

    code: int
    said: str
    calls: str


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


def job(words: list[str]) -> int:
    """`python run.py` in this process; the exit status, 70 for an exception that nobody caught."""
    sys.argv = ["run.py", *words]
    return _status(lambda: runpy.run_path(str(ROOT / "run.py"), run_name="__main__"))


def command(words: list[str]) -> int:
    """`python -m alignlab` in this process, likewise."""
    return _status(lambda: sys.exit(main_of_alignlab(words)))


def _status(does: Callable[[], object]) -> int:
    try:
        does()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


@dataclass(frozen=True)
class Subject:
    """A command and what it leaves in a folder. `behind`: the command whose folder it reads; that must not be changed."""

    does: Callable[[Path], int]
    leaves: Callable[[Path], Any]
    behind: Subject | None = None


def _run(folder: Path) -> int:
    return job([*SMALL, f"paths.runs={folder}", f"folder={folder}/run"])


def _sweep(folder: Path) -> int:
    return job(["-m", *SMALL, *SHORT, f"paths.runs={folder}/runs"])


def _read(name: str, *outputs: str) -> Callable[[Path], int]:
    """A command that reads the sweep, and its options with a file below the folder each."""
    options = [(option, f"out/{file}") for option, _, file in (output.partition("=") for output in outputs)]

    def does(folder: Path) -> int:
        named = [word for option, file in options for word in (option, str(folder / file))]
        return command([name, "pair", "--runs", str(folder / "runs"), *named])

    return does


def _export(folder: Path) -> int:
    (run,) = folder.glob("runs/*/seed-0")
    return command(["export", str(run), "--to", str(folder / "out" / "plain")])


def of_runs(folder: Path) -> Any:
    """Of all runs below a folder: the bits of the trained weights, the numbers of the report, and the losses."""
    found = {}
    for report in sorted(folder.rglob("report.json")):
        run = report.parent
        weights = {str(file.relative_to(run)): _hash(file) for file in sorted(run.glob("stages/*/result/**/*.safetensors"))}
        lines = list(Ledger(run).history())  # a line that a kill has cut is no line
        losses = sorted({(line["step"], line["fit/loss"]) for line in lines if "fit/loss" in line})
        found[run.parent.name, run.name] = (weights, json.loads(report.read_text())["results"], losses)
    return found


def of_sweep(folder: Path) -> Any:
    """The same, and the jobs of the sweep."""
    return of_runs(folder), [asdict(each) for each in SweepLedger(folder / "runs", "pair").jobs()]


def of_output(folder: Path) -> Any:
    """What was written, times left out, and what it was made of."""
    written = {str(file.relative_to(folder)): file for file in sorted((folder / "out").rglob("[!.]*")) if file.is_file()}
    read = {str(file.relative_to(folder)): _hash(file) for file in sorted((folder / "runs").rglob("*")) if file.is_file()}
    return read, {
        name: TIME.sub("", file.read_text()) if file.suffix in TEXT else _hash(file) for name, file in written.items()
    }


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


SWEEP = Subject(_sweep, of_sweep)
SUBJECTS = {
    "run": Subject(_run, of_runs),
    "sweep": SWEEP,
    "table": Subject(_read("table", "--to=table.md"), of_output, SWEEP),
    "results": Subject(_read("table", "--results=results.csv"), of_output, SWEEP),
    "report": Subject(_read("report", "--to=report.html"), of_output, SWEEP),
    "export": Subject(_export, of_output, SWEEP),
}


def forked(subject: Subject, folder: Path, log: Path, injector: Injector, fault: tuple[int, str, int] | None) -> Ended:
    """The command in a child. Its exit status (minus the signal that killed it), what it wrote, and the calls it made."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(written, 1)
        os.dup2(written, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)  # the parent's has lines of its own to write
        injector.arm(folder, *fault) if fault else injector.arm(None)
        status = subject.does(folder)
        calls = injector.calls()
        injector.arm(None)
        os.write(writes, calls.encode())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    os.close(writes)
    with os.fdopen(reads) as told:
        calls = told.read()
    _, status = os.waitpid(child, 0)
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return Ended(code, log.read_text(encoding="utf-8", errors="replace"), calls)


def fresh(subject: Subject, folder: Path, given: Path) -> None:
    """An empty folder, or one with what the subject reads."""
    shutil.rmtree(folder, ignore_errors=True)
    if subject.behind:
        shutil.copytree(given, folder)


def judged(ended: Ended, mode: str, again: Ended, same: bool, honest: bool, parts: list[str]) -> str:
    """What went wrong, "" for nothing. `same`: what the command has left afterwards; `honest`: what a command that reads has
    left at once, where it said nothing of damage."""
    killed = mode in "kt" and ended.code == -signal.SIGKILL
    if "Traceback" in ended.said or not (killed or ended.code in (0, 1)):
        return f"ended with {ended.code}: {ended.said[-1500:]}"
    if ended.code == 1 and not ended.said.strip().rpartition("\n")[2].startswith("error: "):
        return f"ended without its sentence: {ended.said[-600:]}"
    if not honest:
        return f"wrote something else and did not say so: {ended.said[-600:]}"
    if again.code != 0:
        return f"the same command ended with {again.code} afterwards: {again.said[-1500:]}"
    if not same:
        return "the same command left something else"
    return f"left behind: {', '.join(parts)}" if parts else ""


def _says_so(ended: Ended, folder: Path) -> bool:
    """Whether a command has said that something is damaged, on the screen or in what it wrote."""
    written = [file.read_text() for file in (folder / "out").rglob("*") if file.suffix in TEXT]
    return any(SAID.search(text) for text in (ended.said, *written))


def faults(calls: str, every: int, first: int) -> Iterator[tuple[int, str, int]]:
    """Every `every`-th of: each call, killed at and failing in each way of its kind."""
    all_of_them = [
        (nth, mode, number) for nth, letter in enumerate(calls, start=1) for mode, number in [("k", 0), *ERRORS[letter]]
    ]
    yield from all_of_them[first::every]


def tried(name: str, folder: Path, injector: Injector, every: int, first: int, only: int | None) -> int:
    """Prints a line for each fault of a subject, and a summary; how many went wrong."""
    subject, hit, read, log = SUBJECTS[name], folder / "hit", folder / "read", folder / "command.log"
    folder.mkdir(exist_ok=True)
    printed = sys.stdout
    with log.open("w") as sys.stdout:  # in this process, which imports for all that follow
        for each in (subject.behind, subject):
            if each and (status := each.does(read)):
                sys.exit(f"{name} itself ends with {status}: {log.read_text()}")
    sys.stdout = printed
    shutil.rmtree(read / "out", ignore_errors=True)
    fresh(subject, hit, read)
    whole = forked(subject, hit, log, injector, (0, "e", 0))
    if whole.code:
        sys.exit(f"{name} itself ends with {whole.code}: {whole.said}")
    expected, calls = subject.leaves(hit), whole.calls
    outcomes: Counter[str] = Counter()
    for nth, mode, number in faults(calls, every, first):
        if only not in (None, nth):
            continue
        fresh(subject, hit, read)
        ended = forked(subject, hit, log, injector, (nth, mode, number))
        honest = ended.code != 0 or not subject.behind or _says_so(ended, hit) or subject.leaves(hit) == expected
        finished = ended.code == 0 or subject.leaves(hit) == expected  # 0: whole, or it has said what could not be read
        if (hit / "out" / "plain").exists() and finished:
            shutil.rmtree(hit / "out")  # export refuses a folder that holds files
        again = forked(subject, hit, log, injector, None)
        same = again.code == 0 and subject.leaves(hit) == expected
        parts = [str(file.relative_to(hit)) for file in hit.rglob("*") if LEFT.search(file.name)] if same else []
        wrong = judged(ended, mode, again, same, honest, parts)
        outcome = "wrong" if wrong else ENDS.get(ended.code, "killed")
        outcomes[outcome] += 1
        what = {"subject": name, "nth": nth, "call": calls[nth - 1], "mode": mode, "errno": errno.errorcode.get(number, "")}
        print(json.dumps({**what, "outcome": outcome, "wrong": wrong}), flush=True)
    print(json.dumps({"subject": name, "calls": len(calls), "kinds": Counter(calls), "outcomes": outcomes}), flush=True)
    return outcomes["wrong"]


def main() -> None:
    """Exits with 1 if a fault has lost something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("folder", type=Path)
    parser.add_argument("subjects", nargs="+", metavar="SUBJECT[:EVERY:FIRST]", help=", ".join(SUBJECTS))
    parser.add_argument("--only", type=int, help="the one call that is hit, in every way")
    given = parser.parse_args()
    injector, wrong = Injector(given.library), 0
    for asked in given.subjects:
        name, every, first = (*asked.split(":"), "1", "0")[:3]
        wrong += tried(name, given.folder / name, injector, int(every), int(first), given.only)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
