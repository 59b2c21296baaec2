"""Where jobs run: what a sheet may say, and what is answered where there is no SLURM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from alignlab.config import parse
from alignlab.errors import ConfigError, SweepError
from alignlab.launching import SlurmLaunch
from alignlab.sweeps.local import NoSlurm
from alignlab.sweeps.queue import Queue
from alignlab.sweeps.slurm import SlurmLauncher
from tests.unit.conftest import CONF

Composed = Callable[..., DictConfig]


def commands(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Only these commands are found."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_sheet_is_a_launch(composed: Composed) -> None:
    launch = parse(composed("method=dpo", "launch=slurm", "launch.gpus=1", "+launch.extra.qos=low")).launch

    assert isinstance(launch, SlurmLaunch)
    assert (launch.gpus, launch.memory_gb, launch.retries, launch.signal_seconds) == (1, None, 5, 180)
    assert launch.extra == {"qos": "low"}


def test_where_a_run_is_launched_changes_nothing_of_it(composed: Composed) -> None:
    here, there = parse(composed("method=dpo")), parse(composed("method=dpo", "launch=slurm"))

    assert here.fingerprint == there.fingerprint


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("launch.gpus=0", "launch.gpus=0 must be 1 or more, or null"),
        ("launch.minutes=0", "launch.minutes=0 must be 1 or more"),
        ("launch.retries=-1", "launch.retries=-1 must not be negative"),
        ("launch.minutes=3", "launch.signal_seconds=180 must be below launch.minutes=3"),
        ("launch.gpu=1", "launch.gpu; did you mean gpus or cpus?"),
    ],
)
def test_amounts_that_make_no_job_are_refused(composed: Composed, word: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence.replace("?", r"\?")):
        parse(composed("method=dpo", "launch=slurm", f"+{word}" if "gpu=" in word else word))


def launcher_sheet(*words: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made = compose("run", list(words), return_hydra_config=True)
    whole = OmegaConf.create({"launch": made.launch, "hydra": {"sweep": {"dir": ""}}, "it": made.hydra.launcher})
    return OmegaConf.to_container(whole, resolve=True)["it"]  # type: ignore[index, call-overload]


def test_what_the_sheet_says_reaches_the_launcher_and_its_own_options_stay_open() -> None:
    words = ["launch.partition=big", "launch.memory_gb=40", "launch.setup=[module load cuda]", "hydra.launcher.qos=low"]

    sheet = launcher_sheet("launch=slurm", *words)

    assert (sheet["partition"], sheet["mem_gb"], sheet["setup"], sheet["qos"]) == ("big", 40, ["module load cuda"], "low")
    assert (sheet["timeout_min"], sheet["signal_delay_s"], sheet["max_num_timeout"]) == (1440, 180, 5)


def test_with_slurm_a_single_run_is_submitted_too() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        here, there = (compose("run", [f"launch={name}"], return_hydra_config=True).hydra.mode for name in ("local", "slurm"))

    assert here is None
    assert there.name == "MULTIRUN"


def test_without_sbatch_nothing_is_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands(tmp_path, monkeypatch)
    launcher = SlurmLauncher(**launcher_sheet("launch=slurm"))
    launcher.config = OmegaConf.create({"paths": {"runs": str(tmp_path)}})

    with pytest.raises(SweepError, match="launch=slurm needs SLURM's command sbatch, which is not here"):
        launcher.launch([["method=red"]], 0)


def test_without_the_plug_in_the_extra_is_named() -> None:
    with pytest.raises(SweepError, match=r"pip install 'alignlab\[slurm\]'"):
        NoSlurm(partition=None).launch([["method=red"]], 0)


def test_the_queue_tells_waiting_jobs_from_ended_and_forgotten_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands(tmp_path, monkeypatch, squeue="echo '7 0 RUNNING'; echo '7 1 OUT_OF_MEMORY'; echo '8 N/A PENDING'")

    queue = Queue()

    assert [queue.holds(job) for job in ("7_0", "7_1", "8", "9")] == [True, False, True, False]
    assert [queue.over(job) for job in ("7_0", "7_1", "8", "9")] == [False, True, False, True]


def test_a_queue_that_does_not_answer_ends_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands(tmp_path, monkeypatch, squeue="exit 1")

    assert not Queue().over("7_0")
    assert not Queue().holds("7_0")
