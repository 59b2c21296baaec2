"""Identities of files, packages and code without reading file contents, and locks that one process has at a time."""

from __future__ import annotations

import errno
import fcntl
import logging
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alignlab.errors import RunFolderError

log = logging.getLogger(__name__)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system without `flock` answers."""
PACKAGES = ("alignlab", "torch", "transformers", "peft", "accelerate", "datasets", "hydra-core", "wandb", "numpy")


def file_keys(files: Iterable[Path]) -> list[str]:
    """Name, size in bytes and time of change of each file: another list where a file was replaced."""
    return [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]


def contents(config: Any) -> list[str]:
    """The identity of the files that a config names: its `cache_key()`, or an empty list."""
    return config.cache_key() if hasattr(config, "cache_key") else []


@contextmanager
def alone(path: Path, waiting: str) -> Iterator[None]:
    """One process at a time per lock file: a second one logs `waiting`, and waits. The lock of a process that dies is free.

    Raises RunFolderError where the file cannot be written. A file system without locks is logged, and nobody waits.
    """
    lock = FileLock(path, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise RunFolderError(f"{path.parent} cannot be written: {error.strerror}; give another folder.") from error
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info(waiting)
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("%s: this file system has no locks; start each run in one process only.", path.parent)
    try:
        yield
    finally:
        lock.release()


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


def environment() -> dict[str, Any]:
    """What a reader needs to repeat a run; no path and no user name."""
    import torch

    return {
        "python": sys.version.split()[0],
        "packages": {name: package_version(name) for name in PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": len((_git("status", "--porcelain") or "").splitlines()),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def package_version(name: str) -> str | None:
    """Of an installed distribution; None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(*words: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
