"""A stage that learns: what it prepares, how it is resumed after a stop, and when it gives up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignlab.data.encode import Limits, chosen, pair
from alignlab.data.source import Source, Split
from alignlab.errors import DivergedError
from alignlab.models.policy import Policy
from alignlab.records import Batch, Loss, Record
from alignlab.training.objectives import Objective, nll
from alignlab.training.objectives import PreferenceLoss as PreferenceObjective
from alignlab.training.references import Base, Reference, Start
from alignlab.training.stages import Session, TrainStage
from alignlab.training.trainer import latest
from tests.bits import assert_same_bits
from tests.conftest import CODEC, backbone
from tests.unit.conftest import PAIRS, attached, fit_config, learned, session_in

RECORDS = tuple(Record.pair(f"row {number}", *texts) for number, texts in enumerate(PAIRS))
SOURCE = Source("made", {"train": lambda: Split(RECORDS)})
LIMITS = Limits(128, "error")
DPO = PreferenceObjective("sigmoid", beta=0.1, smoothing=0.0, length_norm="sum", reference="base", likelihood=0.0)


class StoppedError(Exception):
    """Somebody pulled the plug."""


def counted(policy: Policy, batch: Batch) -> Loss:
    """nll, with a metric whose shares add up to 1 in every step."""
    return Loss(nll(policy, batch).value, {"share": torch.tensor(len(batch.rows) / batch.step_groups)})


@dataclass
class FromCall:
    """Counted nll up to a call; from there on something else."""

    call: int
    otherwise: Callable[[Loss], Loss]
    made: int = 0

    def __call__(self, policy: Policy, batch: Batch) -> Loss:
        self.made += 1
        loss = counted(policy, batch)
        return loss if self.made < self.call else self.otherwise(loss)


def stop(_loss: Loss) -> Loss:
    raise StoppedError


def no_number(loss: Loss) -> Loss:
    return Loss(loss.value * math.nan, {})


def endless_slope(loss: Loss) -> Loss:
    """Finite, but its gradient is not: the slope of a root at 0."""
    return Loss((loss.value * 0).sqrt() + 1.0, {})


def stage(objective: Objective = nll, view: Any = chosen, cached: Reference | None = None, **changes: Any) -> TrainStage:
    return TrainStage("fit", "train", view, objective, fit_config(**changes), cached)


def run(made: TrainStage, session: Session, policy: Policy | None = None) -> Policy:
    policy = policy or attached("lora", backbone("llama"), spread=0.0)
    made.run(policy, made.prepare(SOURCE, CODEC, LIMITS), session)
    return policy


def result(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(folder / "stages" / "fit" / "result" / "adapter_model.safetensors")
    return tensors


def same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return bool(first) and first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def logged(session: Session, quantity: str) -> list[tuple[int, float]]:
    entries = [entry for entry in session.ledger.history() if f"fit/{quantity}" in entry]
    return [(entry["step"], entry[f"fit/{quantity}"]) for entry in entries]


def test_preparing_encodes_the_split_and_counts_the_steps() -> None:
    work = stage(steps=None, epochs=3.0, batch=2).prepare(SOURCE, CODEC, LIMITS)

    assert [group.row for group in work.groups] == ["row 0", "row 1", "row 2", "row 3"]
    assert work.account.sentence() == "4 rows read, 4 kept, none dropped"
    assert work.steps == 6


def test_a_loss_on_all_tokens_begins_behind_bos() -> None:
    on_response = stage().prepare(SOURCE, CODEC, LIMITS)
    on_all = stage(loss_on="all").prepare(SOURCE, CODEC, LIMITS)

    assert [group.members[0].start for group in on_all.groups] == [1] * 4
    assert [group.members[0].ids for group in on_all.groups] == [group.members[0].ids for group in on_response.groups]


def test_training_moves_the_tuner_and_lowers_the_loss(tmp_path: Path) -> None:
    session = session_in(tmp_path)

    run(stage(batch=4), session)  # every step holds the same four rows

    steps, values = zip(*logged(session, "loss"), strict=True)
    assert steps == (1, 2, 3, 4, 5, 6)
    assert values[-1] < values[0]


def test_nothing_but_the_tuner_moves(tmp_path: Path) -> None:
    policy = attached("lora", backbone("llama"), spread=0.0)
    own = {id(parameter) for parameter in learned(policy)}
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters() if id(p) not in own}

    run(stage(), session_in(tmp_path), policy)

    after = dict(policy.model.named_parameters())
    assert_same_bits({name: after[name] for name in before}, before)


def test_a_finished_stage_is_put_back(tmp_path: Path) -> None:
    trained = run(stage(), session_in(tmp_path))
    other = attached("lora", backbone("llama"), spread=0.0)

    stage().restore(other, tmp_path / "stages" / "fit")

    assert_same_bits(learned(other), learned(trained))


def test_the_first_dpo_loss_of_a_run_is_ln_2(tmp_path: Path) -> None:
    session = session_in(tmp_path)

    run(stage(DPO, pair, cached=Base()), session)

    assert logged(session, "loss")[0][1] == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize("cached", [Base(), Start()], ids=["base", "start"])
def test_a_cached_reference_trains_to_the_weights_of_a_computed_one(tmp_path: Path, cached: Reference) -> None:
    run(stage(DPO, pair), session_in(tmp_path / "computed"))

    run(stage(DPO, pair, cached=cached), session_in(tmp_path / "cached"))

    torch.testing.assert_close(result(tmp_path / "cached"), result(tmp_path / "computed"), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("objective", "view"), [(nll, chosen), (DPO, pair)], ids=["nll", "dpo"])
def test_micro_batches_add_up_to_the_step(tmp_path: Path, objective: Objective, view: Any) -> None:
    at_once, in_parts = session_in(tmp_path / "whole"), session_in(tmp_path / "parts", micro_batch=1)
    run(stage(objective, view, steps=3, batch=4, adam_epsilon=1e-3), at_once)

    run(stage(objective, view, steps=3, batch=4, adam_epsilon=1e-3), in_parts)

    torch.testing.assert_close(result(tmp_path / "parts"), result(tmp_path / "whole"), atol=1e-5, rtol=1e-4)
    assert [value for _, value in logged(in_parts, "loss")] == pytest.approx(
        [value for _, value in logged(at_once, "loss")], abs=1e-5
    )


def test_the_same_seed_gives_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    run(stage(), session_in(tmp_path / "first"))

    run(stage(), session_in(tmp_path / "second"))

    assert same_bits(result(tmp_path / "second"), result(tmp_path / "first"))


@pytest.mark.parametrize("stopped_at", [1, 4, 6])
@pytest.mark.parametrize("micro_batch", [None, 1])
def test_a_stopped_stage_goes_on_as_if_it_had_never_stopped(tmp_path: Path, stopped_at: int, micro_batch: int | None) -> None:
    run(stage(counted), session_in(tmp_path / "straight", micro_batch=micro_batch))
    session = session_in(tmp_path / "stopped", micro_batch=micro_batch)
    call = stopped_at * (1 if micro_batch is None else 2)
    with pytest.raises(StoppedError):
        run(stage(FromCall(call, stop)), session)

    run(stage(counted), session)

    assert same_bits(result(tmp_path / "stopped"), result(tmp_path / "straight"))
    assert logged(session, "loss") == logged(session_in(tmp_path / "straight"), "loss")
    assert logged(session, "share") == [(step, 1.0) for step in range(1, 7)]


def test_a_checkpoint_that_a_kill_left_unfinished_is_not_taken(tmp_path: Path) -> None:
    session = session_in(tmp_path)
    run(stage(), session)
    expected = result(tmp_path)
    folder = session.stage_folder("fit")
    (folder / "checkpoint-6" / "complete").unlink()
    (folder / "checkpoint-6" / "adapter_model.safetensors").write_bytes(b"")

    run(stage(), session)

    assert same_bits(result(tmp_path), expected)


def test_the_last_checkpoints_are_kept_and_the_others_removed(tmp_path: Path) -> None:
    run(stage(), session_in(tmp_path, keep_checkpoints=2))

    assert sorted(path.name for path in (tmp_path / "stages" / "fit").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


def test_a_checkpoint_holds_no_frozen_weight(tmp_path: Path) -> None:
    policy = run(stage(), session_in(tmp_path))

    held = load_file(tmp_path / "stages" / "fit" / "checkpoint-6" / "adapter_model.safetensors")

    assert sum(tensor.numel() for tensor in held.values()) == sum(parameter.numel() for parameter in learned(policy))


def test_a_loss_that_is_no_number_stops_with_stage_step_rows_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    session = session_in(tmp_path)

    with pytest.raises(
        DivergedError, match=r"stage fit: the loss is nan at step 4; the last good checkpoint is checkpoint-2"
    ) as info:
        run(stage(FromCall(4, no_number)), session)

    kept = latest(session.stage_folder("fit"))
    assert "row " in str(info.value)
    assert kept is not None
    assert kept.name == "checkpoint-2"
    assert not (session.stage_folder("fit") / "result").exists()


def test_a_loss_that_is_no_number_at_the_first_step_leaves_the_tuner_as_it_was(tmp_path: Path) -> None:
    policy = attached("lora", backbone("llama"), spread=0.0)
    before = [parameter.detach().clone() for parameter in learned(policy)]

    with pytest.raises(DivergedError, match="at step 1; the last good checkpoint is the start"):
        run(stage(FromCall(1, no_number)), session_in(tmp_path), policy)

    assert_same_bits(learned(policy), before)


@pytest.mark.parametrize(("call", "last"), [(2, None), (6, "checkpoint-4")])
def test_weights_that_are_no_numbers_are_never_kept_as_a_good_checkpoint(tmp_path: Path, call: int, last: str | None) -> None:
    session = session_in(tmp_path)

    with pytest.raises(DivergedError, match=f"stage fit: .* at step {call}"):
        run(stage(FromCall(call, endless_slope)), session)

    kept = latest(session.stage_folder("fit"))
    tensors = load_file(kept / "adapter_model.safetensors") if kept else {}
    assert (kept.name if kept else None) == last
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert not (session.stage_folder("fit") / "result").exists()


def test_after_a_stage_the_policy_is_as_trainable_as_before(tmp_path: Path) -> None:
    policy = attached("lora", backbone("llama"), spread=0.0)
    before = [parameter.requires_grad for parameter in policy.model.parameters()]

    run(stage(), session_in(tmp_path), policy)

    assert [parameter.requires_grad for parameter in policy.model.parameters()] == before
    assert not policy.model.training
