"""A search by Optuna runs the same jobs: each trial is a run, and the best is the one with the highest headline."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.contracts.test_methods import SMALL, WORLD

ROOT = Path(__file__).parents[2]
pytest.importorskip("optuna", reason="needs alignlab[optuna]")


def test_two_trials_are_two_runs_and_the_better_one_is_named(tmp_path: Path) -> None:
    words = ["experiment=clm/toy", "hydra/sweeper=search", "hydra.sweeper.n_trials=2", f"paths.runs={tmp_path}"]
    words += [*WORLD, *SMALL, "evaluation.suites=[toy]", "method.prefer.steps=2", "method.prefer.batch=4"]
    command = [sys.executable, "run.py", "-m", *words]

    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=180)

    configs = [json.loads(file.read_text()) for file in tmp_path.glob("*/seed-0/config.json")]
    reports = [json.loads(file.read_text()) for file in tmp_path.glob("*/seed-0/report.json")]
    (best,) = (yaml.safe_load(file.read_text()) for file in tmp_path.glob("sweeps/**/optimization_results.yaml"))
    tried = [(config["tuner"]["preference_rate"], config["method"]["likelihood"]) for config in configs]
    assert len(set(tried)) == 2
    assert all(2e-5 <= rate <= 1e-3 and 0 <= likelihood <= 20 for rate, likelihood in tried)
    assert best["best_value"] == max(report["headline"]["value"] for report in reports)
    assert tuple(best["best_params"].values()) in tried


def test_a_plan_of_a_search_is_refused_in_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    words = ["experiment=clm/toy", "hydra/sweeper=search", "hydra.sweeper.n_trials=2", f"paths.runs={tmp_path}", "plan=true"]

    done = subprocess.run([sys.executable, "run.py", "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=180)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: plan=true is for one run, or for a sweep by hydra/sweeper=planned")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
