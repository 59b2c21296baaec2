"""The code that jobs on a cluster run with: as it was when they were submitted."""

from __future__ import annotations

import subprocess
import tracemalloc
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException

from alignlab.errors import SweepError
from alignlab.sweeps import cluster
from alignlab.sweeps.cluster import Command, snapshot


def git(folder: Path, *words: str) -> str:
    own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", "-C", str(folder), *own, *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project: a committed file that was changed since, one that is not committed, one that is ignored, and a link."""
    root = tmp_path / "code"
    (root / "alignlab").mkdir(parents=True)
    (root / "alignlab" / "loss.py").write_text("1\n")
    (root / "run.py").write_text("run\n")
    (root / ".gitignore").write_text("/runs/\n")
    (root / "conf").symlink_to("alignlab")
    git(tmp_path, "init", "-q", str(root))
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    (root / "alignlab" / "loss.py").write_text("2\n")
    (root / "alignlab" / "new.py").write_text("new\n")
    (root / "runs").mkdir()
    (root / "runs" / "big").write_text("big\n")
    monkeypatch.setattr(cluster, "ROOT", root)
    return root


def test_it_has_what_is_committed_and_what_is_not_and_nothing_that_is_ignored(code: Path) -> None:
    copy = snapshot(code / "runs" / "sweep" / "code", code / "runs")

    assert (copy / "alignlab" / "loss.py").read_text() == "2\n"
    assert (copy / "alignlab" / "new.py").is_file()
    assert (copy / "conf").is_symlink()
    assert not (copy / "runs").exists()


def test_what_is_edited_later_does_not_reach_it(code: Path, tmp_path: Path) -> None:
    copy = snapshot(tmp_path / "copies", code / "runs")

    (code / "alignlab" / "loss.py").write_text("3\n")

    assert (copy / "alignlab" / "loss.py").read_text() == "2\n"


def test_the_same_code_is_copied_once_and_other_code_beside_it(code: Path, tmp_path: Path) -> None:
    first, again = snapshot(tmp_path / "copies", code / "runs"), snapshot(tmp_path / "copies", code / "runs")
    (code / "run.py").write_text("other\n")
    other = snapshot(tmp_path / "copies", code / "runs")

    assert first == again
    assert sorted((tmp_path / "copies").iterdir()) == sorted([first, other])


def test_it_knows_its_commit_and_what_was_not_committed(code: Path, tmp_path: Path) -> None:
    commit = git(code, "rev-parse", "HEAD")
    copy = snapshot(tmp_path / "copies", code / "runs")
    git(code, "commit", "-qam", "second")

    assert git(copy, "rev-parse", "HEAD") == commit
    assert git(copy, "status", "--porcelain").splitlines() == ["M alignlab/loss.py", "?? alignlab/new.py"]


def test_without_git_it_has_what_a_run_needs(code: Path, tmp_path: Path) -> None:
    (code / ".git").rename(tmp_path / "gone")

    copy = snapshot(tmp_path / "copies", code / "runs")

    assert sorted(path.name for path in copy.iterdir()) == ["alignlab", "conf", "run.py"]
    assert (copy / "alignlab" / "new.py").is_file()


def test_what_runs_write_makes_no_other_copy_wherever_they_are(code: Path) -> None:
    runs = code / "alignlab" / "results"  # git does not ignore them there
    (runs / "red" / "seed-0").mkdir(parents=True)
    (runs / "red" / "seed-0" / "metrics.jsonl").write_text("1\n")
    first = snapshot(runs / "sweep" / "code", runs)
    (runs / "red" / "seed-0" / "metrics.jsonl").write_text("1\n2\n")
    again = snapshot(runs / "sweep" / "code", runs)

    assert first == again
    assert not (first / "alignlab" / "results").exists()
    assert (first / "alignlab" / "new.py").is_file()


def test_runs_right_beside_the_code_leave_the_code_in(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(code)
    (code / "red").mkdir()
    (code / "red" / "metrics.jsonl").write_text("1\n")

    copy = snapshot(Path("sweep/code"), Path())

    assert sorted(path.name for path in copy.iterdir()) == [".git", "alignlab", "conf", "run.py"]
    assert (copy / "alignlab" / "new.py").is_file()


def test_no_file_is_in_memory_as_a_whole(code: Path, tmp_path: Path) -> None:
    size = 32 << 20
    with (code / "alignlab" / "weights").open("wb") as file:
        file.truncate(size)
    tracemalloc.start()
    try:
        snapshot(tmp_path / "copies", code / "runs")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most < size / 4


def test_a_job_that_is_put_back_goes_on_and_does_not_begin_anew() -> None:
    again = Command(("method=red", "force=true"), "code", "home").checkpoint().function

    assert again.overrides == ("method=red", "force=true", "force=false")


def test_a_job_knows_its_snapshot_behind_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").symlink_to(cluster.ROOT)
    monkeypatch.chdir(tmp_path)
    joined: list[str] = []
    monkeypatch.setattr(cluster, "_join", lambda: joined.append("joined"))

    with pytest.raises(MissingConfigException, match="method/rde"):
        Command(("method=rde",), str(tmp_path / "runs"), str(tmp_path))()

    assert joined == ["joined"]


def test_a_job_that_finds_other_code_than_its_own_says_so(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="and not from its snapshot"):
        Command(("method=red",), str(tmp_path), str(tmp_path))()


def test_data_beside_the_code_that_git_does_not_know_is_left_out(code: Path, tmp_path: Path) -> None:
    (code / "data").mkdir()
    (code / "data" / "pairs.jsonl").write_text("{}\n")

    copy = snapshot(tmp_path / "copies", code / "runs")

    assert not (copy / "data").exists()
    assert (copy / "alignlab" / "new.py").is_file()


def test_more_than_code_is_refused_with_its_largest_file(code: Path, tmp_path: Path) -> None:
    with (code / "alignlab" / "weights").open("wb") as file:
        file.truncate(cluster.LARGEST + 1)

    with pytest.raises(SweepError, match=r"at most 256 are copied; the largest file is alignlab/weights: move it out"):
        snapshot(tmp_path / "copies", code / "runs")
