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
SAMPLE = {"run": (53, 5), "table": (12, 3), "export": (24, 7)}
"""Of all faults of a command every so many, from which on."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes calls fail."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler, cc")
    made = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-ldl"], check=True)
    return made


def tried(library: Path, folder: Path, subject: str, *options: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What came of each fault, and the summary."""
    command = [sys.executable, "-m", "tests.contracts.faults", str(library), str(folder), subject, *options]
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    assert lines, done.stderr
    assert "outcomes" in lines[-1], done.stderr
    return lines[:-1], lines[-1]


def held(subject: str, lines: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Asserts that nothing was lost, and prints the counts."""
    print(subject, json.dumps(summary))
    wrong = [line for line in lines if line["wrong"]]
    assert summary["calls"] >= CALLS[subject]
    assert sum(summary["outcomes"].values()) == len(lines)
    assert not wrong, json.dumps(wrong, indent=1)


@pytest.mark.parametrize("subject", SAMPLE)
def test_a_sample_of_faults_loses_nothing(subject: str, library: Path, tmp_path: Path) -> None:
    every, first = SAMPLE[subject]

    lines, summary = tried(library, tmp_path, subject, "--every", str(every), "--first", str(first))

    held(subject, lines, summary)
    assert {line["mode"] for line in lines} >= {"k", "e"}


@pytest.mark.slow
@pytest.mark.parametrize("subject", CALLS)
def test_no_fault_at_any_call_loses_anything(subject: str, library: Path, tmp_path: Path) -> None:
    lines, summary = tried(library, tmp_path, subject)

    held(subject, lines, summary)
    assert {line["nth"] for line in lines} == set(range(1, summary["calls"] + 1))
    assert {line["mode"] for line in lines} == {"k", "e", "E", "s", "t"}
