"""Whole runs of RAHF on the embedded model, of a few steps, through the same door as `python run.py`."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor

from alignlab.config import parse
from alignlab.planning import Plan, make_plan
from run import run
from tests.contracts.test_methods import composed

WORLD = ("data.pairs=12", "data.test_pairs=4", "data.corpus=4")
TRAINED = ("instruct", "dispreferred", "preferred", "fit")
BY_LORA = "method.update={rank: 2, alpha: 4.0, dropout: 0.0}"
HIR = ("method.variant=hir", "tuner=control", "control=prefixes")


def configs(*words: str, folder: Path = Path("nowhere"), data: tuple[str, ...] = WORLD) -> DictConfig:
    """The config of a run of two steps in every stage that learns, the second at the full rate; `words` come last."""
    given = ("epochs=null", "steps=2", "batch=4", "warmup_fraction=0")
    short = [f"method.{name}.{word}" for name in TRAINED for word in given]
    return composed(folder, "rahf", "evaluation=off", *short, *words, data=data)


def planned(*words: str, data: tuple[str, ...] = WORLD) -> Plan:
    """Everything that is known before weights are loaded."""
    return make_plan(parse(configs(*words, data=data)))


def ran(folder: Path, *words: str) -> Path:
    """The folder of a run that was done, or resumed, inside a folder; what it shares with others is there too."""
    run(configs(*words, folder=folder))
    return folder / "run"


def lines(run_folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(run_folder: Path, stage: str = "fit") -> list[float]:
    """The loss of each step of a stage."""
    return [line[f"{stage}/loss"] for line in lines(run_folder) if f"{stage}/loss" in line]


def results(run_folder: Path, *stages: str) -> dict[str, Tensor]:
    """Every tensor that stages have left as their result; of all stages where none is named."""
    files = sorted(run_folder.glob("stages/*/result/*.safetensors"))
    named = {file: file.parent.parent.name for file in files}
    kept = {file: stage for file, stage in named.items() if not stages or stage in stages}
    return {f"{stage}/{name}": tensor for file, stage in kept.items() for name, tensor in load_file(file).items()}
