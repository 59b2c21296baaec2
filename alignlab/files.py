"""Files told apart without reading them, and files that only one process has at a time."""

from __future__ import annotations

import errno
import fcntl
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alignlab.errors import RunFolderError

log = logging.getLogger(__name__)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system without `flock` answers."""


def file_keys(files: Iterable[Path]) -> list[str]:
    """Name, size in bytes and time of change of each file: another list where a file was replaced."""
    return [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]


@contextmanager
def alone(lock: Path, waiting: str) -> Iterator[None]:
    """One process at a time per lock file: a second one says `waiting`, and waits. A process that dies lets go.

    Raises RunFolderError where the file cannot be written.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        opened = lock.open("w")
    except OSError as error:
        raise RunFolderError(f"{lock.parent} cannot be written: {error.strerror}; give another folder.") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info(waiting)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log.warning("%s: this file system has no locks; start nothing twice at once.", lock.parent)
        yield


def held(lock: Path) -> bool | None:
    """Whether a living process has the lock; None where the file system has none."""
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
