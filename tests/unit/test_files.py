"""What one process has, and what it does where the file system cannot say so."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from alignlab.errors import RunFolderError
from alignlab.files import alone, held


def test_a_lock_is_held_while_somebody_is_alone_and_not_afterwards(tmp_path: Path) -> None:
    lock = tmp_path / "new" / ".lock"

    before = held(lock)
    with alone(lock, "waits"):
        inside = held(lock)

    assert (before, inside, held(lock)) == (False, True, False)


def test_a_file_system_without_locks_stops_nobody_and_says_that_it_knows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    entered = False

    with alone(tmp_path / ".lock", "waits"):
        entered = True

    assert entered
    assert held(tmp_path / ".lock") is None


def test_a_lock_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    sentence = r"file/here cannot be written: Not a directory; give another folder\."
    with pytest.raises(RunFolderError, match=sentence), alone(tmp_path / "file" / "here" / ".lock", "waits"):
        pass


def test_another_error_of_a_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", break_down)

    with pytest.raises(OSError, match="Input/output error"), alone(tmp_path / ".lock", "waits"):
        pass
