"""A stage that several runs have in common is computed once, and the others end as if they had computed it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alignlab.training.stages import TrainStage
from run import run
from tests.contracts.test_methods import STAGE, composed, history, tensors

SHARED = {"meet": ("controls", "method.joint.learning_rate=1e-3"), "rahf": ("instruct", "method.alpha=3.0")}
"""Method -> a stage, and a setting that changes only what comes behind it."""
every_case = pytest.mark.parametrize("method", SHARED)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that were trained, in order."""
    names: list[str] = []
    real = TrainStage.run

    def watched(self: TrainStage, *given: object) -> None:
        names.append(self.name)
        real(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainStage, "run", watched)
    return names


def swept(folder: Path, name: str, method: str, *words: str) -> Path:
    """A run of its own in a store that it shares with the others of `folder`."""
    run(composed(folder, method, "evaluation=off", f"folder={folder}/{name}", *words))
    return folder / name


@every_case
def test_a_stage_in_common_is_computed_once(method: str, computed: list[str], tmp_path: Path) -> None:
    stage, word = SHARED[method]

    swept(tmp_path, "first", method)
    swept(tmp_path, "second", method, word)

    assert computed == [stage, STAGE[method], STAGE[method]]


@every_case
def test_a_run_that_reuses_a_stage_ends_with_the_same_bits(method: str, tmp_path: Path) -> None:
    _, word = SHARED[method]
    swept(tmp_path / "shared", "first", method)

    reused = swept(tmp_path / "shared", "second", method, word)
    alone = swept(tmp_path / "apart", "second", method, word)

    first, second = (tensors(folder / "stages" / STAGE[method] / "result") for folder in (reused, alone))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_that_reuses_a_stage_has_its_curves_and_is_complete(tmp_path: Path) -> None:
    swept(tmp_path, "first", "rahf")

    run(composed(tmp_path, "rahf", "evaluation=off", "method.alpha=3.0"))

    logged = {key for line in history(tmp_path) for key in line}
    assert {"instruct/loss", "fit/loss"} <= logged
    assert (tmp_path / "run" / "shift.png").is_file()


def test_force_computes_what_another_run_has_done(computed: list[str], tmp_path: Path) -> None:
    swept(tmp_path, "first", "sft")

    swept(tmp_path, "second", "sft")
    swept(tmp_path, "third", "sft", "force=true")

    assert computed == ["fit", "fit"]


def test_the_plan_says_which_stages_another_run_has_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swept(tmp_path, "first", "rahf")
    capsys.readouterr()

    swept(tmp_path, "second", "rahf", "method.alpha=3.0")

    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stage ")]
    assert ["another run has done it" in line for line in said] == [True, True, False]
