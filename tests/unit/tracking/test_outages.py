"""An outage of W&B never reaches the training: a server that does not answer, a disk that is full."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.offline_runs import offline_runs

RUN = """
import sys
from pathlib import Path
from alignlab.tracking import WandbConfig
from alignlab.tracking import Identity
from alignlab.tracking.weights_and_biases import open_run

folder, mode = Path(sys.argv[1]), sys.argv[2]
identity = Identity("abc-0", "red-0", "red", "red", ("red",), folder, {"seed": 0, "data": {"path": "/home/me/data"}})
tracker = open_run(WandbConfig("wandb", "alignlab", None, mode, None, timeout_seconds=1.0), identity)
for step in range(2000):
    tracker.log(step, {"fit/" + "a long name " * 5: 0.5})
tracker.results([{"strength": 1.0, "suite": "toy", "metric": "reward " * 999, "value": 0.5}] * 20, [])
tracker.close(failed=False)
print("trained to the end")
"""


def in_a_process(folder: Path, mode: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run of its own, for wandb keeps one service per process."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    command = [sys.executable, "-c", RUN, str(folder), mode]
    return subprocess.run(command, env={**ours, **environment}, capture_output=True, text=True, check=True, timeout=90)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that takes every call and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a disk needs rights that this user does not have")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_a_server_that_never_answers_costs_half_a_minute_and_the_run_is_kept_offline(
    tmp_path: Path, silent_server: str
) -> None:
    done = in_a_process(tmp_path, "auto", WANDB_BASE_URL=silent_server, WANDB_API_KEY="0" * 40, HOME=str(tmp_path))

    (kept,) = offline_runs(tmp_path)
    assert done.stdout == "trained to the end\n"
    assert "W&B cannot be reached" in done.stderr
    assert len(kept.of("history")) == 2001
    assert kept.exit_codes == [0]


def test_a_full_disk_costs_the_tracker_and_not_the_run(full_disk: Path) -> None:
    done = in_a_process(full_disk, "offline")

    assert done.stdout == "trained to the end\n"
    assert "No space left on device" in done.stderr


def test_of_an_absolute_path_in_the_config_only_its_last_part_is_kept(tmp_path: Path) -> None:
    in_a_process(tmp_path, "offline")

    (kept,) = offline_runs(tmp_path)
    assert kept.identity["config"]["update"]["data"] == {"path": "data"}
