"""Which checkpoint can be trusted."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alignlab.errors import RunFolderError
from alignlab.training.trainer import MARK, drop_optimizers, latest, mark
from tests.unit.conftest import session_in
from tests.unit.training.test_stages import FromCall, StoppedError, result, run, same_bits, stage, stop


def checkpoint(folder: Path, step: int, *, complete: bool = True) -> Path:
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    for name in ("weights", "optimizer.pt", "scheduler.pt"):
        (made / name).write_text(f"{name} of {step}")
    if complete:
        mark(made)
    return made


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


DAMAGES: dict[str, Callable[[Path], object]] = {
    "optimizer.pt is missing": lambda made: (made / "optimizer.pt").unlink(),
    "scheduler.pt is missing": lambda made: (made / "scheduler.pt").unlink(),
    "weights has 3 bytes and had 12": lambda made: (made / "weights").write_text("wei"),
    "the content of weights has changed": lambda made: (made / "weights").write_text("weights of 5"),
    "complete cannot be read": lambda made: (made / MARK).write_text(""),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(
    said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("alignlab"), "propagate", True)
    before = checkpoint(tmp_path, 2)
    DAMAGES[said](checkpoint(tmp_path, 4))

    found = latest(tmp_path)

    assert found == before
    assert f"checkpoint-4 is damaged ({said}); the one before it is taken" in caplog.text


def test_the_optimiser_of_a_finished_stage_goes_and_its_weights_stay(tmp_path: Path) -> None:
    made = checkpoint(tmp_path, 2)

    drop_optimizers(tmp_path)

    assert [file.name for file in made.iterdir()] == ["weights"]
    assert latest(tmp_path) is None


@pytest.mark.parametrize("file", ["optimizer.pt", "adapter_model.safetensors", "rng_state.pth", "trainer_state.json"])
def test_a_stage_with_a_damaged_checkpoint_ends_as_if_it_had_never_stopped(file: str, tmp_path: Path) -> None:
    """Stopped at step 6, so that checkpoints 2 and 4 are there, and 4 is damaged."""
    whole = session_in(tmp_path / "whole")
    run(stage(), whole)
    stopped = session_in(tmp_path / "stopped")
    with pytest.raises(StoppedError):
        run(stage(FromCall(5, stop)), stopped)
    damaged = stopped.stage_folder("fit") / "checkpoint-4" / file
    damaged.write_bytes(damaged.read_bytes()[:-7])

    run(stage(), stopped)

    assert same_bits(result(tmp_path / "whole"), result(tmp_path / "stopped"))


class Payload:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_state_of_a_stranger_runs_no_code(file: str, tmp_path: Path) -> None:
    session = session_in(tmp_path / "run")
    with pytest.raises(StoppedError):
        run(stage(FromCall(3, stop)), session)
    made = session.stage_folder("fit") / "checkpoint-2"
    torch.save({"state": Payload(tmp_path / "ran")}, made / file)
    mark(made)

    with pytest.raises(RunFolderError, match=r"checkpoint-2 cannot be resumed from"):
        run(stage(), session)

    assert not (tmp_path / "ran").exists()
    shutil.rmtree(made)
    run(stage(), session)
