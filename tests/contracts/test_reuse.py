"""A stage that several runs have in common is computed once, and the others end as if they had computed it."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from alignlab import planning, running
from alignlab.config import parse
from alignlab.sweeps.jobs import planned_stages
from alignlab.tracking.ledger import state_of
from alignlab.training.stages import TrainStage
from run import run
from tests.bits import assert_same_bits
from tests.contracts.test_methods import composed, history, stages, tensors

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

    assert computed == [stage, stages(method)[-1], stages(method)[-1]]


@every_case
def test_a_run_that_reuses_a_stage_ends_with_the_same_bits(method: str, tmp_path: Path) -> None:
    _, word = SHARED[method]
    swept(tmp_path / "shared", "first", method)

    reused = swept(tmp_path / "shared", "second", method, word)
    alone = swept(tmp_path / "apart", "second", method, word)

    first, second = (tensors(folder / "stages" / stages(method)[-1] / "result") for folder in (reused, alone))
    assert_same_bits(first, second)


def test_a_stage_of_the_backbone_is_computed_once_for_all_tuners_with_the_same_bits(
    computed: list[str], tmp_path: Path
) -> None:
    words = ("method.sft_first=true", "method.sft.epochs=null", "method.sft.steps=4")
    swept(tmp_path / "shared", "first", "dpo", *words, "tuner=full")

    reused = swept(tmp_path / "shared", "second", "dpo", *words, "tuner=red")
    before = list(computed)
    alone = swept(tmp_path / "apart", "second", "dpo", *words, "tuner=red")

    assert before == ["sft", "prefer", "prefer"]
    for stage in ("sft", "prefer"):
        first, second = (tensors(folder / "stages" / stage / "result") for folder in (reused, alone))
        assert_same_bits(first, second)


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


def test_a_done_run_that_is_killed_while_it_is_cleared_to_begin_again_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = swept(tmp_path, "first", "sft")
    assert state_of(folder).name == "done"
    kill = Mock(side_effect=SystemExit)
    monkeypatch.setattr(running.shutil, "rmtree", kill)

    with pytest.raises(SystemExit):
        swept(tmp_path, "first", "sft", "force=true")

    assert kill.call_args.args == (folder / "stages",)
    assert state_of(folder).name == "missing"


CHANGES = {
    "meet": (
        "method.joint.learning_rate=1e-3",
        "method.control_rate=0.5",
        "method.joint.weight_decay=0.1",
        "method.joint.steps=5",
        "method.controls.learning_rate=0.3",
        "method.stages=[controls]",
        "data.limit=8",
        "seed=1",
        "evaluation=off",
    ),
    "rahf": (
        "method.alpha=3.0",
        "method.fit.steps=5",
        "method.window=16",
        "method.layers.numbers=[1]",
        "method.responses=both",
        "method.instruct.learning_rate=0.3",
        "method.contrast=sum",
        "method.smoothing=0.1",
        "data.prefixes.better=Good",
        "data.limit=8",
        "tuner=red",
        "tuner=prompt",
        "seed=1",
        "evaluation=off",
    ),
    "dpo": (
        "method.beta=0.3",
        "method.loss=ipo",
        "method.reference=start",
        "method.likelihood=0.5",
        "method.prefer.steps=5",
        "method.sft.steps=5",
        "data.limit=8",
        "tuner=red",
        "tuner=full",
        "tuner=prompt",
        "control=grid",
        "seed=1",
        "evaluation=off",
    ),
}
"""Settings of a method: some change its first stage, some do not, and the plan of a sweep has to know which."""


@pytest.mark.parametrize("method", CHANGES)
def test_the_plan_of_a_sweep_shares_just_the_first_stages_that_runs_share(method: str, tmp_path: Path) -> None:
    words = ("method.sft_first=true",) if method == "dpo" else ()
    first = _content_and_key(tmp_path, method, *words)

    others = {change: _content_and_key(tmp_path, method, *words, change) for change in CHANGES[method]}

    assert {change: other[0] == first[0] for change, other in others.items()} == {
        change: other[1] == first[1] for change, other in others.items()
    }
    assert len({other[1] == first[1] for other in others.values()}) == 2


def _content_and_key(folder: Path, method: str, *words: str) -> tuple[str, str]:
    """Of the first stage: what a sweep's plan goes by, and the key by which runs find it."""
    config = parse(composed(folder, method, *words))
    planned = planned_stages(config)
    assert planned is not None
    return planned[0].content, running.stage_keys(planning.make_plan(config))[0]


def test_the_plan_says_which_stages_another_run_has_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swept(tmp_path, "first", "rahf")
    capsys.readouterr()

    swept(tmp_path, "second", "rahf", "method.alpha=3.0")

    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stage ")]
    assert ["another run has done it" in line for line in said] == [True, True, False]
