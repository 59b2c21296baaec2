"""A run that is asked to leave saves at the very step it is in, and ends, when started again, with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from alignlab.tracking.ledger import Ledger, state_of
from alignlab.training.processes import COME_AGAIN
from run import run as run_here

ROOT = Path(__file__).parents[2]
STEPS = 40
WORDS = (
    "method=red",
    f"method.fit.steps={STEPS}",
    "method.fit.batch=8",
    "data.pairs=64",
    "trainer.threads=1",
    "evaluation=off",
)
PATIENCE_SECONDS = 240


def words(runs: Path) -> list[str]:
    """Of a run below a folder."""
    return [*WORDS, f"paths.runs={runs}", f"folder={runs}/run"]


def start(runs: Path) -> subprocess.Popen[bytes]:
    """`python run.py`, as a script of `sbatch --requeue` would start it: SUBMITIT_EXECUTOR is not set."""
    command = [sys.executable, str(ROOT / "run.py"), *words(runs)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def losses(run: Path) -> dict[int, float]:
    """Of each step."""
    return {line["step"]: line["fit/loss"] for line in Ledger(run).history() if "fit/loss" in line}


def weights(run: Path) -> bytes:
    return (run / "stages/fit/result/adapter_model.safetensors").read_bytes()


@dataclass
class Seen:
    """A run that was never preempted, and one that was: its state then, its checkpoints, its ends, its progress while it
    trained and behind it."""

    whole: Path
    run: Path
    exits: list[int]
    state: str
    checkpoints: list[str]
    last: int
    progress: dict[str, int]
    behind: dict[str, int] | None


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """The signal comes as soon as the third step is logged."""
    folder = tmp_path_factory.mktemp("preempted")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        run_here(compose("run", [*words(folder / "whole"), "tracking=off"]))
    run = folder / "left" / "run"
    first = start(folder / "left")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(losses(run)) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    progress = Ledger(run).read("progress.json") or {}
    os.kill(first.pid, signal.SIGUSR2)
    exits = [first.wait(PATIENCE_SECONDS)]
    state = state_of(run).name
    kept = sorted(path.name for path in (run / "stages" / "fit").glob("checkpoint-*"))
    last, behind = max(losses(run)), Ledger(run).read("progress.json")
    exits.append(start(folder / "left").wait(PATIENCE_SECONDS))
    return Seen(folder / "whole" / "run", run, exits, state, kept, last, progress, behind)


def test_it_exits_with_the_status_that_asks_to_be_started_again(seen: Seen) -> None:
    assert seen.exits == [COME_AGAIN, 0]
    assert seen.state == "preempted"


def test_it_saves_the_step_it_is_in_and_no_other(seen: Seen) -> None:
    assert 3 <= seen.last < STEPS
    assert seen.checkpoints == [f"checkpoint-{seen.last}"]


def test_started_again_it_ends_with_the_bits_and_the_losses_of_a_run_that_was_never_preempted(seen: Seen) -> None:
    assert state_of(seen.run).name == "done"
    assert weights(seen.run) == weights(seen.whole)
    assert losses(seen.run) == losses(seen.whole)
    assert len(losses(seen.whole)) == STEPS


def test_while_it_trains_and_no_longer_it_writes_down_where_it_is(seen: Seen) -> None:
    assert seen.behind is None
    assert seen.progress["stage"] == "fit"
    assert 0 <= seen.progress["step"] <= seen.last
    assert seen.progress["steps"] == STEPS


def test_to_the_tracker_both_parts_are_one_run_and_the_first_neither_failed_nor_done(seen: Seen) -> None:
    parts = sorted((seen.run / "wandb").glob("offline-run-*"))
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(parts[0])]
    first = subprocess.run(inspect, capture_output=True, text=True, check=True, timeout=60).stdout

    assert len(parts) == 2
    assert len({next(part.glob("run-*.wandb")).name for part in parts}) == 1
    assert '"type":"preempting"' in first
