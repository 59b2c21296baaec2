"""Which checkpoint can be trusted."""

from __future__ import annotations

from pathlib import Path

from alignlab.training.trainer import latest, mark


def checkpoint(stage: Path, step: int, *, complete: bool = True) -> Path:
    folder = stage / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").touch()
    if complete:
        mark(folder)
    return folder


def test_a_stage_without_a_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert latest(tmp_path / "fit") is None


def test_the_highest_step_counts_as_a_number(tmp_path: Path) -> None:
    checkpoint(tmp_path, 9)
    last = checkpoint(tmp_path, 10)

    assert latest(tmp_path) == last


def test_a_folder_without_the_mark_is_passed_over(tmp_path: Path) -> None:
    last = checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 4, complete=False)

    assert latest(tmp_path) == last


def test_only_unmarked_folders_are_no_checkpoint(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2, complete=False)

    assert latest(tmp_path) is None
