"""The first loss of a preference run: known beforehand, and refused where it is another one."""

from __future__ import annotations

import hashlib
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignlab.data.encode import Limits, chosen, pair
from alignlab.data.source import Source, Split
from alignlab.errors import FirstLossError
from alignlab.models.backbone import Backbone
from alignlab.models.policy import Policy
from alignlab.records import Record
from alignlab.training.objectives import Objective, nll
from alignlab.training.objectives import PreferenceLoss as PreferenceObjective
from alignlab.training.references import CHECKSUM, Base, Reference, Start
from alignlab.training.stages import Session, TrainStage
from tests.conftest import CODEC, backbone
from tests.unit.conftest import PAIRS, attached, fit_config, session_in

ROWS = tuple(Record.pair(f"row {number}", *texts) for number, texts in enumerate(PAIRS * 3))
SOURCE = Source("made", {"train": lambda: Split(ROWS)})
DPO = PreferenceObjective("sigmoid", beta=0.5, smoothing=0.0, length_norm="sum", reference="base", likelihood=0.0)


def run(policy: Policy, session: Session, reference: Reference | None, objective: Objective = DPO) -> list[float]:
    """Two steps of four pairs; the losses."""
    view = chosen if objective is nll else pair
    stage = TrainStage("fit", "train", view, objective, fit_config(steps=2, batch=4), reference)
    stage.run(policy, stage.prepare(SOURCE, CODEC, Limits(128, "error")), session)
    return [entry["fit/loss"] for entry in session.ledger.history() if "fit/loss" in entry]


def in_bfloat16() -> Policy:
    """A new LoRA; in this dtype a stored value is allowed to lie a hundredth off its recomputation."""
    made = backbone("llama")
    made.model.to(torch.bfloat16)
    return attached("lora", made, spread=0.0)


def shift(session: Session, nats: float) -> None:
    """Moves the stored references of chosen responses; the file stays one that its checks pass."""
    (path,) = (session.store / "references").iterdir()
    total_NM = load_file(path)["total_NM"]
    total_NM[:, 0] += nats
    save_file({"total_NM": total_NM}, path, {CHECKSUM: hashlib.sha256(total_NM.numpy().tobytes()).hexdigest()})


@pytest.mark.parametrize("tuner", ["lora", "red", "clm", "ia3"])
@pytest.mark.parametrize("reference", [Base(), Start(), None], ids=["base", "start", "computed"])
@pytest.mark.parametrize("micro_batch", [None, 1])
def test_in_bfloat16_the_first_loss_is_ln_2(
    llama: Backbone, tuner: str, reference: Reference | None, micro_batch: int | None, tmp_path: Path
) -> None:
    llama.model.to(torch.bfloat16)

    losses = run(attached(tuner, llama, spread=0.0), session_in(tmp_path, micro_batch=micro_batch), reference)

    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)


def test_a_wrong_reference_stops_the_run_with_both_numbers(tmp_path: Path) -> None:
    first, second = session_in(tmp_path / "first"), session_in(tmp_path / "second")
    run(in_bfloat16(), first, Base())
    shift(first, 0.1)
    shutil.copytree(first.store, second.store)

    with pytest.raises(FirstLossError) as said:
        run(in_bfloat16(), second, Base())

    # A gap of -0.1 nats at beta 0.5: log(1 + exp(0.05)) = 0.71846.
    assert str(said.value).startswith("stage fit: the first preference loss is 0.71846")
    assert " and has to be 0.693147, since policy and reference are the same model" in str(said.value)


def test_a_tuner_that_was_trained_before_is_no_base(llama: Backbone, tmp_path: Path) -> None:
    policy = attached("lora", llama)

    with pytest.raises(FirstLossError, match=r"policy and reference are the same model before the first update"):
        run(policy, session_in(tmp_path), Base())


def test_what_is_trained_further_from_its_own_start_is_not_refused(llama: Backbone, tmp_path: Path) -> None:
    objective = PreferenceObjective("sigmoid", beta=0.5, smoothing=0.0, length_norm="sum", reference="start", likelihood=0.0)

    losses = run(attached("lora", llama), session_in(tmp_path), Start(), objective)

    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)


def test_an_objective_without_a_reference_has_no_first_loss_to_keep_to(llama: Backbone, tmp_path: Path) -> None:
    assert len(run(attached("lora", llama), session_in(tmp_path), None, nll)) == 2


@pytest.mark.parametrize(
    ("schedule", "behind"),
    [
        ("constant", []),
        ("constant_with_warmup", [1, 1, 1, 1, 1]),
        ("linear", [1, 4 / 5, 3 / 5, 2 / 5, 1 / 5]),
        ("cosine", [(1 + math.cos(math.pi * step / 5)) / 2 for step in range(5)]),
    ],
)
def test_a_warm_up_begins_above_zero(
    schedule: str, behind: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *given: object) -> None:
        rates.append(self.param_groups[0]["lr"])
        step(self, *given)  # type: ignore[call-overload]

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    fit = fit_config(steps=8, learning_rate=1e-3, schedule=schedule, warmup_fraction=0.3)
    stage = TrainStage("fit", "train", chosen, nll, fit)
    stage.run(attached("red", backbone("llama")), stage.prepare(SOURCE, CODEC, Limits(128, "error")), session_in(tmp_path))

    factors = [1 / 3, 2 / 3, 1, *behind] if behind else [1] * 8
    assert rates == pytest.approx([1e-3 * factor for factor in factors], abs=1e-12)
