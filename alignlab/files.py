"""Files told apart by their content, written whole or not at all, and sealed; locks that one process has at a time; and the
version of the code that runs.

Every mark (a file that declares others complete) and every ledger is written by `write_whole` or `seal`.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import glob
import hashlib
import itertools
import json
import logging
import os
import platform
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from alignlab.errors import AlignlabError, RunFolderError, StorageError

log = logging.getLogger(__name__)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system without `flock` answers."""
PACKAGES = ("alignlab", "torch", "transformers", "peft", "accelerate", "datasets", "hydra-core", "wandb", "numpy")
PIECE = 1 << 20
"""Bytes that are read at once."""
REMEMBERED = 4 << 20
"""Files of at least so many bytes have their hash remembered on disk; smaller ones are read again in every process."""
YOUNG_NS = 2_000_000_000
"""A file that changed so shortly ago may change again within a tick of the file system's clock: its hash is not remembered."""
SEALED_WHOLE = 256 << 20
"""A sealed file of more bytes is told by its size and its two ends, so that checking takes no longer than writing."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""What a full disk answers."""
STORAGE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EIO: "the disk has failed to read or write it",
    errno.EACCES: "reading or writing it is not allowed",
    errno.EROFS: "the disk cannot be written",
}
"""Errors that come from the disk, and not from the code."""
WORDS = {**{os.strerror(number): number for number in STORAGE}, "PytorchStreamWriter failed writing": errno.ENOSPC}
"""What torch says of them: the words of the system, the number being lost, and its own for a full disk."""
MEND = "mend that, and the same command resumes from what is complete."
NUMBERED = re.compile(r"\(os error (\d+)\)")
"""How safetensors writes the number of an error."""
BEAT_SECONDS = 10.0
"""Between two counts of a living run."""
SILENT_SECONDS = 60
"""A run on another machine that has not counted for so long, by the clock of the machine that looks, is over."""
PART = ".part"
"""How the name of an unfinished file or folder ends."""
_known: dict[tuple[object, ...], str] = {}


def content_keys(files: Sequence[Path]) -> list[str]:
    """Name and hash of the content of each file, of a folder those of the files in it: the same list wherever the files lie and
    whenever they were written."""
    whole = [(file, file.parent) for file in files if not file.is_dir()]
    inside = [(file, folder) for folder in files if folder.is_dir() for file in sorted(folder.rglob("*")) if file.is_file()]
    return [f"{file.relative_to(above).as_posix()} {content_hash(file)}" for file, above in [*whole, *inside]]


def content_hash(file: Path) -> str:
    """SHA-256 of a file's content, as 64 hex digits.

    It is remembered by path, inode, size and times. The time of the inode's last change is among them, which no program can
    set back: a file of the same size and time of change with other content is read again.
    """
    begun = time.time_ns()
    seen = file.stat()
    key = (str(file.resolve()), seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
    if key in _known:
        return _known[key]
    old = begun - max(seen.st_mtime_ns, seen.st_ctime_ns) > YOUNG_NS
    place = cache_folder() / "contents" / hashlib.sha256(key[0].encode()).hexdigest()[:24]
    stamp = " ".join(str(each) for each in key[1:])
    if old and seen.st_size >= REMEMBERED and (found := _remembered(place, stamp)):
        _known[key] = found
        return found
    digest = hashlib.sha256()
    for piece in _pieces(file):
        digest.update(piece)
    made = digest.hexdigest()
    if old:
        _known[key] = made
        if seen.st_size >= REMEMBERED:
            with suppress(OSError):  # a home that cannot be written costs the time, and nothing else
                write_whole(place, f"{stamp} {made}\n", durable=False)
    return made


def _remembered(place: Path, stamp: str) -> str:
    """The hash that an earlier process has left for a file that has not changed since; empty where there is none."""
    with suppress(OSError, UnicodeDecodeError):
        before, _, found = place.read_text(encoding="ascii").strip().rpartition(" ")
        if before == stamp and len(found) == 64 and not found.strip("0123456789abcdef"):
            return found
    return ""


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while piece := opened.read(PIECE):
            yield piece


def cache_folder() -> Path:
    """The user's own folder for what can be found out again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alignlab"


def contents(config: Any) -> list[str]:
    """The identity of the files that a config names: its `cache_key()`, or an empty list."""
    return config.cache_key() if hasattr(config, "cache_key") else []


def places(config: Any) -> tuple[str, ...]:
    """The fields of a config that only say where files lie, whose content counts in their stead: the answer of its `places`."""
    return config.places() if hasattr(config, "places") else ()


def write_whole(path: Path, text: str, *, durable: bool = True) -> None:
    """Replaces a file in one move, so that a reader never sees half of it. `durable`: it is on the disk before its name is, and
    the name before this returns."""
    with replaced(path, durable=durable) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def replaced(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A name beside a file, to write what takes its place in one move when the block ends. After an error the file is what it
    was. `durable`: as in `write_whole`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f"{path.suffix}.{os.getpid()}{PART}")
    try:
        yield unfinished
        if durable:
            _flush(unfinished)
        unfinished.replace(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
        raise
    if durable:
        _flush(path.parent)


@contextmanager
def replaced_alone(path: Path) -> Iterator[Path]:
    """The same for a file that any process may write at any time: they wait for each other, and remove what a dead one has
    left beside it. Raises RunFolderError where the folder cannot be written."""
    lock = path.with_name(f".{path.name}.lock")
    with alone(lock, f"waits for another process that writes {path}", stays=False):
        for left in path.parent.glob(f"{glob.escape(path.name)}.*{PART}"):
            left.unlink(missing_ok=True)
        with replaced(path) as unfinished:
            yield unfinished


def _flush(path: Path) -> None:
    """What was written of a file or a folder is on the disk; a file system that cannot say so is taken at its word."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EROFS, *NO_LOCKS):
            raise
    finally:
        os.close(opened)


def seal(folder: Path, mark: str, content: Mapping[str, Any], counts: Callable[[Path], bool] = lambda _: True) -> None:
    """Declares a folder complete: its files go to the disk, and then the mark, which lists them with size and checksum.

    `content`: what else the mark says. `counts`: asked of each file by its path inside the folder, whether it belongs to it.
    """
    inside = [file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file() and not file.is_symlink()]
    listed = {}
    for name in inside:
        if name.as_posix() != mark and name.suffix != PART and counts(name):
            _flush(folder / name)
            listed[name.as_posix()] = _signature(folder / name)
    write_whole(folder / mark, json.dumps({**content, "files": listed}, indent=1) + "\n")


def sealed(folder: Path, mark: str) -> dict[str, Any] | None:
    """What a mark says; None where there is none, or none that can be read. `files` are names that lie inside the folder."""
    try:
        found = json.loads((folder / mark).read_text(encoding="utf-8"))
        names = [PurePosixPath(name) for name in found["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    outside = any(name.is_absolute() or ".." in name.parts for name in names)
    return None if outside or not isinstance(found["files"], dict) else found


def damage(folder: Path, mark: str) -> str:
    """What is wrong with a sealed folder; empty where each of its files is what it was when it was sealed."""
    found = sealed(folder, mark)
    if found is None:
        return f"{mark} cannot be read"
    for name, signature in found["files"].items():
        file = folder / name
        if file.is_symlink() or not file.is_file():
            return f"{name} is missing"
        size, expected = file.stat().st_size, str(signature).partition(" ")[0]
        if str(size) != expected:
            return f"{name} has {size} bytes and had {expected}"
        if _signature(file) != signature:
            return f"the content of {name} has changed"
    return ""


def _signature(file: Path) -> str:
    """Size in bytes and checksum."""
    size = file.stat().st_size
    digest = hashlib.sha256()
    if size <= SEALED_WHOLE:
        for piece in _pieces(file):
            digest.update(piece)
    else:
        with file.open("rb") as opened:
            digest.update(opened.read(PIECE))
            opened.seek(-PIECE, os.SEEK_END)
            digest.update(opened.read(PIECE))
    return f"{size} {digest.hexdigest()[:32]}"


def storage_error(error: BaseException, where: Path | str | None = None) -> StorageError | None:
    """The sentence for an error that comes from the disk, however a library has wrapped it; None for any other. `where`: what
    was written, where the error does not name it."""
    link: BaseException | None = None if isinstance(error, AlignlabError) else error
    while link is not None:
        number = link.errno if isinstance(link, OSError) else None
        if written := NUMBERED.search(str(link)):
            number = int(written[1])
        elif number is None:
            number = next((number for words, number in WORDS.items() if words in str(link)), None)
        if number in STORAGE:
            named = getattr(link, "filename", None) or where or "a file"
            return StorageError(f"{named}: {STORAGE[number]}; {MEND}")
        if isinstance(link, FileNotFoundError) and link.errno is None:  # safetensors, of any file that it cannot open
            return StorageError(f"a file cannot be opened ({link}); {MEND}")
        link = link.__cause__ or link.__context__
    return None


@contextmanager
def alone(path: Path, waiting: str, *, stays: bool = True) -> Iterator[None]:
    """One process at a time per lock file: a second one logs `waiting`, and waits. The lock of a process that dies is free.
    `stays`: the file does afterwards, as others look at it.

    Raises RunFolderError where the file cannot be written. A file system without locks is logged, and nobody waits.
    """
    lock = FileLock(path, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise RunFolderError(f"{path.parent} cannot be written: {error.strerror}; give another folder.") from error
    waits = False
    while not lock.is_locked:  # where a holder removes its file, filelock takes the next one; a shared disk tells it by ESTALE
        try:
            lock.acquire(timeout=-1 if waits else 0)
        except Timeout:
            log.info(waiting)
            waits = True
        except OSError as error:
            if error.errno in NO_LOCKS:
                log.warning("%s: this file system has no locks; start each run in one process only.", path.parent)
                break
            if error.errno != errno.ESTALE:
                raise
    try:
        yield
    finally:
        if not stays and lock.is_locked:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        lock.release()


def remove_free(folder: Path, locks: str = ".*.lock") -> None:
    """Removes lock files that no process has. Each is locked for that moment, so that nobody begins with a file that goes."""
    for lock in folder.glob(locks):
        with suppress(Timeout, OSError), FileLock(lock, timeout=0, fallback_to_soft=False):
            lock.unlink(missing_ok=True)


def held(lock: Path) -> bool | None:
    """Whether a living process has the lock; None where the file system has none. Reading the file is enough."""
    if not lock.is_file():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return None
    return False


@contextmanager
def beating(lock: Path) -> Iterator[None]:
    """Inside, a thread counts in the lock file, which tells other machines that this process lives where they cannot see its
    lock."""
    over, token = threading.Event(), secrets.token_hex(4)

    def count() -> None:
        for number in itertools.count():
            with suppress(OSError), lock.open("r+") as file:
                file.write(f"{token} {number:012d}\n")
            if over.wait(BEAT_SECONDS):
                return

    thread = threading.Thread(target=count, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def last_beat(lock: Path) -> bool:
    """Whether the process that counts in a lock file has counted within a minute of this machine's clock, as far as this user
    has seen: the first look is remembered, and always says yes."""
    seen = _beat(lock)
    memory = cache_folder() / "beats" / hashlib.sha256(str(lock.resolve()).encode()).hexdigest()[:24]
    with suppress(OSError, ValueError):
        since, _, before = memory.read_text(encoding="utf-8").partition(" ")
        if before == seen and time.time() - float(since) >= 0:
            return time.time() - float(since) < SILENT_SECONDS
    with suppress(OSError):  # without a memory it is believed
        write_whole(memory, f"{time.time():.0f} {seen}", durable=False)
    return True


def wait_for_silence(lock: Path) -> None:
    """Returns when nobody has counted in a lock file for three beats, as this process sees it."""
    seen, missed = _beat(lock), 0
    while missed < 3:
        time.sleep(BEAT_SECONDS)
        now = _beat(lock)
        seen, missed = now, missed + 1 if now == seen else 0


def _beat(lock: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return lock.read_text(encoding="ascii").strip()
    return ""


def environment() -> dict[str, Any]:
    """What a reader needs to repeat a run; no path and no user name."""
    import torch

    return {
        "python": sys.version.split()[0],
        "packages": {name: package_version(name) for name in PACKAGES},
        "code": code_version(),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": len((_git("status", "--porcelain") or "").splitlines()),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


@functools.cache
def code_version() -> str:
    """The sources of alignlab and the versions of its dependencies, as one hash of 16 hex digits."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    digest.update(json.dumps([package_version(name) for name in PACKAGES]).encode())
    return digest.hexdigest()[:16]


def package_version(name: str) -> str | None:
    """Of an installed distribution; None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    """What git says of this checkout; None where the package is installed, perhaps inside a checkout of something else."""
    root = Path(__file__).parents[1]
    command = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}", *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
