"""A run that is killed in the middle of a stage is resumed from its last checkpoint, and ends with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from run import run

ROOT = Path(__file__).parents[2]
WORDS = (
    "method=red",
    "method.fit.steps=40",
    "method.fit.batch=8",
    "data.pairs=64",
    "trainer.checkpoint_every_steps=4",
    "trainer.threads=1",
    "evaluation=off",
    "tracking=off",
)
PATIENCE_SECONDS = 240


def words(folder: Path) -> list[str]:
    """Of a run into a folder."""
    return [*WORDS, f"paths.runs={folder}", f"folder={folder}/run"]


def start(folder: Path) -> subprocess.Popen[bytes]:
    """`python run.py` into a folder."""
    command = [sys.executable, str(ROOT / "run.py"), *words(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow  # process starts; a fork that is killed at a call of its own choice is in the samples of faults and histories
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        run(compose("run", words(tmp_path / "whole")))

    killed = start(tmp_path / "killed")
    stage = tmp_path / "killed" / "run" / "stages" / "fit"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not list(stage.glob("checkpoint-*/complete")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    interrupted = not (stage / "result").exists()
    again = start(tmp_path / "killed")
    assert again.wait(PATIENCE_SECONDS) == 0

    first, second = (next((tmp_path / name / "run/stages/fit/result").glob("*.safetensors")) for name in ("whole", "killed"))
    assert interrupted
    assert first.read_bytes() == second.read_bytes()
