"""The code of a sweep as it was when it was submitted: a copy that nobody edits while jobs wait in a queue."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Where run.py, the configs and the package are."""
PARTS = ("run.py", "alignlab", "conf", "experiments", "hydra_plugins")
"""What a run needs; all there is to copy where there is no git."""


CHUNK = 1 << 20
"""Bytes of a file that are in memory at a time."""


def snapshot(into: Path, runs: Path) -> Path:
    """A copy of the code in a folder named by its contents, made once.

    Of a git checkout it has all files that git does not ignore, committed or not, and it is a checkout itself, at the same
    commit: `git diff` in it shows what was not committed. It borrows the history of the one it was copied from. What is below
    the folder of runs is left out: it changes while jobs run.
    """
    files = _files(runs.resolve())
    into = into.absolute()
    target = into / _digest(files)
    if not target.is_dir():
        into.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".part-", dir=into))
        for file in files:
            (unfinished / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, unfinished / file, follow_symlinks=False)
        _remember_commit(unfinished)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(target)
        except OSError:  # another submission of the same code was faster
            shutil.rmtree(unfinished)
            if not target.is_dir():
                raise
    return target


def _files(runs: Path) -> list[Path]:
    """Relative to ROOT, in order, without the runs; a link is one file."""
    root = ROOT.resolve()
    around = root.is_relative_to(runs)  # the runs lie beside the code, or above it
    listed = _git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed is not None:
        names = {Path(name) for name in listed.split("\0") if name}
    else:
        found = (path for part in PARTS for path in [ROOT / part, *(ROOT / part).rglob("*")])
        names = {path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts}
    names = {name for name in names if (name.parts[0] in PARTS if around else not (root / name).is_relative_to(runs))}
    return sorted(name for name in names if (ROOT / name).is_symlink() or (ROOT / name).is_file())


def _digest(files: list[Path]) -> str:
    """Eight characters that change with any byte of the code and with the commit."""
    read = hashlib.sha256((_git(ROOT, "rev-parse", "HEAD") or "").encode())
    for file in files:
        path = ROOT / file
        read.update(f"{file} {path.lstat().st_size} ".encode())
        if path.is_symlink():
            read.update(os.readlink(path).encode())
            continue
        with path.open("rb") as content:
            while chunk := content.read(CHUNK):
                read.update(chunk)
    return read.hexdigest()[:8]


def _remember_commit(copy: Path) -> None:
    """Makes the copy a checkout of the same commit, where there is one; its files stay as they are."""
    if _git(ROOT, "rev-parse", "HEAD") is None:
        return
    empty = copy / ".clone"
    if _git(ROOT, "clone", "-q", "--shared", "--no-checkout", str(ROOT), str(empty)) is not None:
        (empty / ".git").rename(copy / ".git")
        _git(copy, "reset", "-q")
    shutil.rmtree(empty, ignore_errors=True)


def _git(folder: Path, *words: str) -> str | None:
    """What git says; None where it cannot, or where the folder only lies inside some other checkout."""
    if not (folder / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip("\n") if done.returncode == 0 else None
