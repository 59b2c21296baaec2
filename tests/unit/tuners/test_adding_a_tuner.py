"""A tuner from outside the package: a module with its config, a line in TUNERS and a YAML file are all that a run needs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from alignlab.registry import Entry
from alignlab.tuners import TUNERS
from run import run

CONF = Path(__file__).parents[3] / "conf"
MODULE = """
from dataclasses import dataclass

from alignlab.errors import ConfigError
from alignlab.tuners.config import TunerConfig
from alignlab.tuners.weights import WeightsTuner


@dataclass
class NormsConfig(TunerConfig):
    last_only: bool


def build(config, model, _control=None):
    names = [name for name, _ in model.named_parameters() if "norm" in name]
    return WeightsTuner(model, names[-1:] if config.last_only else names)
"""
YAML = "name: norms\nlikelihood_rate: 1.0e-2\npreference_rate: 1.0e-3\nlast_only: true\n"
SMALL = ("evaluation=off", "tracking=off", "data.pairs=40", "data.test_pairs=16", "trainer.threads=1")


def test_a_tuner_from_a_folder_is_chosen_trained_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "norms_tuner.py").write_text(MODULE)
    (tmp_path / "conf" / "tuner").mkdir(parents=True)
    (tmp_path / "conf" / "tuner" / "norms.yaml").write_text(YAML)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("norms_tuner")
    monkeypatch.setitem(TUNERS._entries, "norms", Entry(module.NormsConfig, module.build))
    steps = ("method.fit.epochs=null", "method.fit.steps=2", "method.fit.batch=8")
    places = (f"paths.runs={tmp_path}", f"folder={tmp_path}/run", f"hydra.searchpath=[file://{tmp_path}/conf]")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("run", ["method=sft", "tuner=norms", "data=toy", *SMALL, *steps, *places])

    run(config)

    saved = load_file(tmp_path / "run" / "stages" / "fit" / "result" / "weights.safetensors")
    assert list(saved) == ["model.norm.weight"]
    assert not torch.equal(saved["model.norm.weight"], torch.ones_like(saved["model.norm.weight"]))
    sys.modules.pop("norms_tuner")
