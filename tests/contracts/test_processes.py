"""Several processes, as torchrun starts them, train one run as one process would, and end together."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import TrainingArguments

from alignlab.config import parse
from alignlab.errors import ConfigError
from alignlab.training import processes
from alignlab.training.arguments import check_extra
from run import run
from tests.contracts.test_methods import CONF, history, tensors
from tests.contracts.two_processes import KINDS, RATE

ROOT = Path(__file__).parents[2]
WORDS = (
    "method=clm",
    "method.sft_first=true",
    *(f"method.{stage}.{value}" for stage in ("sft", "prefer") for value in ("epochs=null", "steps=2", "batch=8")),
    "data.pairs=24",
    "data.test_pairs=8",
    "data.corpus=24",
    "evaluation.prompts=4",
    "evaluation.pairs=8",
    "evaluation.max_new_tokens=8",
    "control.strengths=[0.0,1.0]",
    "tracking=off",
    "trainer.device=cpu",
)
"""Two stages, the first of the whole backbone, references from the store for the second, and an evaluation."""
ROUNDING = 1e-5
"""Of float32 sums in another order, through two steps of Adam."""
PATIENCE_SECONDS = 300


def started(*words: str) -> subprocess.CompletedProcess[str]:
    """torchrun with two processes, on a free port."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(launch, cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, at four pairs per pass."""
    folder = tmp_path_factory.mktemp("one")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run(compose("run", [*WORDS, "trainer.micro_batch=4", f"paths.runs={folder}", f"folder={folder}/run"]))
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run of two processes, at two pairs each, and what it printed."""
    folder = tmp_path_factory.mktemp("two")
    done = started("run.py", *WORDS, "trainer.micro_batch=2", f"paths.runs={folder}", f"folder={folder}/run")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """What each of two processes saw in the scenes of `two_processes`."""
    folder = tmp_path_factory.mktemp("scenes")
    done = started(str(Path(__file__).with_name("two_processes.py")), str(folder))
    seen = [folder / f"{rank}.json" for rank in range(2)]
    assert all(file.is_file() for file in seen), done.stderr
    return folder, [json.loads(file.read_text(encoding="utf-8")) for file in seen]


def test_two_processes_end_with_the_weights_of_one_at_twice_the_micro_batch(one: Path, two: tuple[Path, str]) -> None:
    for stage in ("sft", "prefer"):
        expected, found = (tensors(folder / "run" / "stages" / stage / "result") for folder in (one, two[0]))
        assert expected.keys() == found.keys()
        assert all(torch.allclose(found[name], expected[name], rtol=0, atol=ROUNDING) for name in expected)


def test_two_processes_log_each_step_once_and_as_one_process_does(one: Path, two: tuple[Path, str]) -> None:
    for expected, found in zip(history(one), history(two[0]), strict=True):
        assert expected.keys() == found.keys()
        # Padding depends on the passes; whether a gap of rounding is above 0, on rounding.
        alike = [name for name in expected if not name.endswith(("padding_share", "accuracy"))]
        assert all(math.isclose(found[name], expected[name], rel_tol=1e-4, abs_tol=1e-5) for name in alike)


def test_only_one_of_two_processes_speaks_and_reports(two: tuple[Path, str]) -> None:
    folder, printed = two

    assert printed.count("report: ") == 1
    assert printed.count("over 2 processes") == 2  # the plan, once: a line for each of two stages
    assert json.loads((folder / "run" / "env.json").read_text())["processes"] == 2
    assert json.loads((folder / "run" / "report.json").read_text())["headline"]["metric"] == "toy/reward"


def test_two_processes_go_on_from_a_checkpoint_with_the_same_bits(scenes: tuple[Path, list[Any]]) -> None:
    for seen in scenes[1]:
        assert seen["resumed"]["stopped"] in ("StoppedError", "ProcessError")
        assert seen["resumed"]["calls"] == 3
        assert seen["resumed"]["same_bits"]


def test_a_loss_that_is_no_number_in_one_process_stops_both_with_the_same_sentence(scenes: tuple[Path, list[Any]]) -> None:
    first, second = (seen["diverged"] for seen in scenes[1])

    assert first == second
    assert "the loss is nan at step 1" in first


def test_the_error_of_a_process_that_does_not_lead_is_in_the_ledger(scenes: tuple[Path, list[Any]]) -> None:
    status = json.loads((scenes[0] / "alone" / "run" / "status.json").read_text())

    assert (status["state"], status["error"]) == ("failed", "MemoryError: no room on this GPU")


@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_step_is_the_unsharded_one_with_half_of_the_weights_each(kind: str, scenes: tuple[Path, list[Any]]) -> None:
    halves = [seen["sharded"][kind] for seen in scenes[1]]

    assert sum(half["share"] for half in halves) == pytest.approx(1)
    for half in halves:
        assert half["share"] == pytest.approx(0.5, abs=0.01)
        assert half["loss"] == pytest.approx(half["expected"], rel=1e-6)
        assert half["gap"] < RATE * 1e-5
        assert half["after"] < half["loss"]
        assert half["again"] == pytest.approx(half["after"], rel=1e-6)


def composed_config(*words: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse(compose("run", list(words)))


def test_the_fsdp_config_is_one_that_transformers_takes(tmp_path: Path) -> None:
    extra = composed_config("trainer=fsdp").trainer.extra

    made = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **extra)

    assert made.fsdp_plugin_args["fsdp_version"] == 2
    assert made.fsdp_plugin_args["state_dict_type"] == "FULL_STATE_DICT"


def test_deepspeed_without_its_package_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignlab.training.arguments.find_spec", lambda _name: None)

    with pytest.raises(ConfigError, match="needs the package deepspeed; pip install deepspeed, or take trainer=fsdp"):
        check_extra(composed_config("trainer=deepspeed").trainer)


def test_sharding_on_a_cpu_is_refused_since_transformers_would_quietly_not_shard() -> None:
    with pytest.raises(ConfigError, match="shards over GPUs, and this run has none"):
        check_extra(composed_config("trainer=fsdp", "trainer.device=cpu").trainer)


def test_a_launch_that_started_fewer_processes_than_it_was_asked_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="accelerate launch was asked for several processes and has started one"):
        processes.check_launch({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"})
    with pytest.raises(ConfigError, match="WORLD_SIZE=2 asks for several processes, but RANK is not set"):
        processes.check_launch({"WORLD_SIZE": "2"})


def test_a_batch_that_cannot_be_dealt_out_is_refused() -> None:
    trainer = composed_config("trainer.micro_batch=3").trainer

    with pytest.raises(ConfigError, match="the stage's batch of 7 cannot be dealt out to 2 processes"):
        trainer.micro(7, 2)
    with pytest.raises(ConfigError, match=r"trainer\.micro_batch=3 does not divide the 4 of each of 2 processes"):
        trainer.micro(8, 2)
    assert trainer.micro(12, 2) == 3


def test_a_sweep_in_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(ConfigError, match="torchrun starts the processes of one run, and this is a sweep"):
        processes.refuse_sweep()
