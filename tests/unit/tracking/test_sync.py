"""Uploading later what runs have kept offline."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignlab.errors import RunFolderError
from alignlab.tracking.ledger import Ledger
from alignlab.tracking.weights_and_biases import sync


def part(run: Path, time: str, name: str) -> Path:
    """An offline part of a run, as wandb lays it out."""
    file = run / "wandb" / f"offline-run-{time}-{name}" / f"run-{name}.wandb"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"records")
    return file


def mark(file: Path) -> None:
    """What wandb leaves beside a part that it has uploaded."""
    file.with_suffix(".wandb.synced").touch()


@pytest.fixture
def uploaded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The folders of each call of a wandb that uploads everything."""
    calls: list[list[str]] = []

    def upload(_command: str, *folders: str) -> str:
        calls.append(list(folders))
        for folder in folders:
            mark(*Path(folder).glob("*.wandb"))
        return "done"

    monkeypatch.setattr("alignlab.tracking.weights_and_biases._run_wandb", upload)
    return calls


def test_parts_of_a_resumed_run_go_up_together_as_one_run(tmp_path: Path, uploaded: list[list[str]]) -> None:
    parts = [part(tmp_path / "a", "1", "x-0"), part(tmp_path / "a", "2", "x-0"), part(tmp_path / "deep" / "b", "1", "y-0")]

    assert sync(tmp_path) == 2
    assert uploaded == [[str(file.parent) for file in parts]]


def test_what_is_marked_is_not_uploaded_again(tmp_path: Path, uploaded: list[list[str]]) -> None:
    mark(part(tmp_path / "a", "1", "x-0"))

    assert sync(tmp_path) == 0
    assert uploaded == []


def test_a_run_that_still_writes_is_left_for_the_next_time(tmp_path: Path, uploaded: list[list[str]]) -> None:
    part(tmp_path / "a", "1", "x-0")
    done = part(tmp_path / "b", "1", "y-0")
    Ledger(tmp_path / "a").write("status.json", {"state": "running", "host": "elsewhere"})

    assert sync(tmp_path) == 1
    assert uploaded == [[str(done.parent)]]


def test_a_folder_without_offline_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no offline W&B run below .*`paths\.runs`"):
        sync(tmp_path)


def test_what_wandb_did_not_mark_is_counted_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_the_second(_command: str, first: str, _second: str) -> str:
        mark(*Path(first).glob("*.wandb"))
        return "connection lost"

    for name in ("x-0", "y-0"):
        part(tmp_path / name, "1", name)
    monkeypatch.setattr("alignlab.tracking.weights_and_biases._run_wandb", lose_the_second)

    with pytest.raises(RunFolderError, match=r"1 of 2 offline runs .* \(connection lost\); nothing is lost"):
        sync(tmp_path)


def test_without_a_login_wandbs_own_sentence_comes_out_and_nothing_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_API_KEY", "NETRC", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = part(tmp_path / "a", "1", "x-0")

    with pytest.raises(RunFolderError, match=r"1 of 1 offline runs .*`wandb login`"):
        sync(tmp_path)

    assert [path.name for path in file.parent.iterdir()] == ["run-x-0.wandb"]
