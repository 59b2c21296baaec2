"""Whichever call on its files fails, or is the last before a kill: a job ends with one sentence or none, and the same command
then ends with the bits of a job that had no fault. `faults.py` says what is tried."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("faults.c")
CALLS = {"run": 200, "sweep": 300, "table": 20, "results": 20, "report": 20, "export": 25}
"""Commands, and calls that each makes at least: fewer would mean that the library does not see them."""
SAMPLE = ("run:193:5", "table:17:3", "export:25:7")
"""Every so many of the faults of a command, from which on."""
EVERY = int(os.environ.get("FAULTS_EVERY", "1"))
"""Likewise of the slow test, which tries all of them where nothing else is asked for."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes calls fail."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler, cc")
    made = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-ldl"], check=True)
    return made


def tried(library: Path, folder: Path, *subjects: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What came of each fault, and a summary of each subject."""
    command = [sys.executable, "-m", "tests.contracts.faults", str(library), str(folder), *subjects]
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    summaries = [line for line in lines if "outcomes" in line]
    assert len(summaries) == len(subjects), done.stderr
    return [line for line in lines if "outcomes" not in line], summaries


def held(lines: list[dict[str, Any]], summaries: list[dict[str, Any]]) -> None:
    """Asserts that nothing was lost, and prints the counts."""
    wrong = [line for line in lines if line["wrong"]]
    for summary in summaries:
        print(json.dumps(summary))
        assert summary["calls"] >= CALLS[summary["subject"]]
    assert sum(sum(summary["outcomes"].values()) for summary in summaries) == len(lines)
    assert not wrong, json.dumps(wrong, indent=1)


def test_a_sample_of_faults_loses_nothing(library: Path, tmp_path: Path) -> None:
    lines, summaries = tried(library, tmp_path, *SAMPLE)

    held(lines, summaries)
    assert {(line["subject"], line["mode"]) for line in lines} >= {(name, mode) for name in ("run", "export") for mode in "ke"}


@pytest.mark.slow
@pytest.mark.parametrize("subject", CALLS)
def test_no_fault_at_any_call_loses_anything(subject: str, library: Path, tmp_path: Path) -> None:
    every = min(EVERY, CALLS[subject] // 4)  # some of each, however few are asked for

    lines, (summary,) = tried(library, tmp_path, f"{subject}:{every}:1")

    held(lines, [summary])
    assert EVERY > 1 or {line["nth"] for line in lines} == set(range(1, summary["calls"] + 1))
    assert {line["mode"] for line in lines} >= {"k", "e"}
