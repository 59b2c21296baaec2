"""What one process has, and what it does where the file system cannot say so."""

from __future__ import annotations

import errno
import fcntl
import re
import time
from pathlib import Path
from threading import Thread

import pytest

from alignlab.errors import RunFolderError
from alignlab.files import alone, held, remove_free, replaced_alone, storage_error, write_whole


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


def test_a_lock_that_need_not_stay_goes_and_whoever_waits_for_it_gets_the_next_one(tmp_path: Path) -> None:
    lock, order = tmp_path / "key.lock", []

    def second() -> None:
        with alone(lock, "waits", stays=False):
            order.append("second")

    with alone(lock, "waits", stays=False):
        waiting = Thread(target=second)
        waiting.start()
        time.sleep(0.2)  # longer than it takes to begin to wait
        order.append("first")
    waiting.join(30)

    assert order == ["first", "second"]
    assert not lock.exists()


def test_only_the_lock_of_a_dead_process_is_removed(tmp_path: Path) -> None:
    (tmp_path / "dead.lock").touch()

    with alone(tmp_path / "alive.lock", "waits"):
        remove_free(tmp_path, "*.lock")
        left = [lock.name for lock in tmp_path.iterdir()]

        assert left == ["alive.lock"]
        assert held(tmp_path / "alive.lock")


def half_written(file: Path) -> None:
    file.write_text("ne")
    raise OSError(errno.ENOSPC, "full")


def test_a_file_that_cannot_be_replaced_is_what_it_was(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.md", "old")

    with pytest.raises(OSError, match="full"), replaced_alone(tmp_path / "a.md") as unfinished:
        half_written(unfinished)

    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a.md": "old"}


def test_what_a_dead_process_has_left_beside_a_file_goes_when_it_is_written_again(tmp_path: Path) -> None:
    for name in ("a.md.7.part", "b.md.7.part", ".a.md.lock"):
        (tmp_path / name).write_text("")

    with replaced_alone(tmp_path / "a.md") as unfinished:
        unfinished.write_text("new")

    assert {file.name for file in tmp_path.iterdir()} == {"a.md", "b.md.7.part"}


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.EIO, "?", "x"), "x: the disk has failed to read or write it; mend that, and the same command resumes"),
        (RuntimeError("unable to open file <x>: Input/output error (5)"), "a file: the disk has failed to read or write it; "),
        (RuntimeError("PytorchStreamWriter failed writing file"), "a file: the disk is full; mend that"),
        (Exception("I/O error: Permission denied (os error 13)"), "a file: reading or writing it is not allowed; mend that"),
        (FileNotFoundError("No such file or directory: x"), r"a file cannot be opened \(No such file or directory: x\); mend"),
    ],
)
def test_an_error_of_the_disk_is_one_sentence_however_a_library_tells_it(error: Exception, sentence: str) -> None:
    assert re.match(sentence, str(storage_error(error)))


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "?", "x"), RuntimeError("shapes do not fit"), KeyError("x")])
def test_an_error_of_the_code_is_none_of_the_disk(error: Exception) -> None:
    assert storage_error(error) is None
