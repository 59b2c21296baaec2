"""A stage that trains the backbone beside the tuner that sits in it: what moves, what `off` is then, and what is kept."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from alignlab.data.encode import Limits, chosen, pair
from alignlab.data.source import Source, Split
from alignlab.models.policy import Policy
from alignlab.records import Record
from alignlab.training.objectives import PreferenceLoss as PreferenceObjective
from alignlab.training.objectives import nll
from alignlab.training.references import Base, with_references
from alignlab.training.stages import TrainStage
from alignlab.training.trainable import THE_BACKBONE
from tests.bits import assert_same_bits
from tests.conftest import CODEC, backbone
from tests.unit.conftest import PAIRS, attached, batch_of, fit_config, learned, session_in

RECORDS = tuple(Record.pair(f"row {number}", *texts) for number, texts in enumerate(PAIRS))
SOURCE = Source("made", {"train": lambda: Split(RECORDS)})
LIMITS = Limits(128, "error")
DPO = PreferenceObjective("sigmoid", beta=0.1, smoothing=0.0, length_norm="sum", reference="base", likelihood=0.0)
SFT = TrainStage("sft", "train", chosen, nll, fit_config(steps=3), trains=THE_BACKBONE)
PREFER = TrainStage("prefer", "train", pair, DPO, fit_config(steps=2), Base())

WRITES = {"llama": ["self_attn.o_proj", "mlp.down_proj"], "gpt2": ["attn.c_proj", "mlp.c_proj"]}
every_tuner = pytest.mark.parametrize("tuner", ["clm", "lora", "full", "dera"])
beside = pytest.mark.parametrize("tuner", ["clm", "lora"])
every_backbone = pytest.mark.parametrize("kind", ["llama", "gpt2"])


def run(stage: TrainStage, policy: Policy, folder: Path) -> Policy:
    """The policy after a stage in a folder."""
    stage.run(policy, stage.prepare(SOURCE, CODEC, LIMITS), session_in(folder))
    return policy


def fine_tuned(tuner: str, folder: Path, kind: str = "llama", *, spread: float = 0.0) -> Policy:
    """A policy whose backbone was moved on the chosen responses."""
    return run(SFT, attached(tuner, backbone(kind), spread=spread), folder)


def weights(policy: Policy) -> dict[str, Tensor]:
    """Every parameter by name, as it is now."""
    return {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}


def off(policy: Policy) -> Tensor:
    """Log-probabilities of the pairs with the tuner off."""
    with torch.no_grad(), policy.off():
        return policy.logprobs(batch_of(policy.backbone)).total_GM


def kept(folder: Path) -> Path:
    """The file that the stage left."""
    return folder / "stages" / "sft" / "result" / "model.safetensors"


@every_backbone
def test_every_weight_of_the_backbone_moves_and_none_of_the_adapter(kind: str, tmp_path: Path) -> None:
    policy = attached("lora", backbone(kind))
    adapter = {id(parameter) for parameter in learned(policy)}
    before = weights(policy)

    run(SFT, policy, tmp_path)

    moved = {name for name, tensor in weights(policy).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name, parameter in policy.model.named_parameters() if id(parameter) not in adapter}


@every_backbone
def test_a_clm_block_becomes_a_copy_of_the_first_block_that_was_trained(kind: str, tmp_path: Path) -> None:
    policy = fine_tuned("clm", tmp_path, kind)

    (layer,) = policy.tuner.layers  # type: ignore[attr-defined]
    (block,) = layer.clm_blocks["default"].blocks
    theirs = dict(layer.base_layer.named_parameters())
    writes = [f"{name}.{tensor}" for name in WRITES[kind] for tensor in ("weight", "bias")]
    mine = dict(block.named_parameters())
    copied, at_zero = mine.keys() - set(writes), mine.keys() & set(writes)
    assert_same_bits({name: mine[name] for name in copied}, {name: theirs[name] for name in copied})
    assert at_zero
    assert not any(bool(mine[name].any()) for name in at_zero)


def test_a_new_process_finds_the_block_as_the_old_one_left_it(tmp_path: Path) -> None:
    trained = fine_tuned("clm", tmp_path)
    fresh = attached("clm", backbone("llama"), spread=0.0)

    SFT.restore(fresh, tmp_path / "stages" / "sft")

    assert_same_bits(learned(fresh), learned(trained))


def test_what_is_left_is_a_checkpoint_that_loads_by_itself(tmp_path: Path) -> None:
    policy = fine_tuned("clm", tmp_path)

    plain = AutoModelForCausalLM.from_pretrained(kept(tmp_path).parent)

    ids = torch.arange(3, 19).reshape(2, 8)
    with policy.off():
        assert torch.equal(plain(ids).logits, policy.model(ids).logits)


@every_tuner
def test_off_is_the_backbone_that_was_trained(tuner: str, tmp_path: Path) -> None:
    expected = off(fine_tuned("full", tmp_path / "full"))

    policy = fine_tuned(tuner, tmp_path / tuner)

    assert torch.equal(off(policy), expected)
    assert not torch.equal(expected, off(attached(tuner, backbone("llama"))))


@every_tuner
def test_the_tuner_starts_from_the_backbone_that_was_trained(tuner: str, tmp_path: Path) -> None:
    policy = fine_tuned(tuner, tmp_path)

    start = policy.logprobs(batch_of(policy.backbone)).total_GM

    torch.testing.assert_close(start, off(policy), atol=0, rtol=0)


@beside
def test_the_adapter_takes_no_part_while_the_backbone_is_trained(tuner: str, tmp_path: Path) -> None:
    new = fine_tuned(tuner, tmp_path / "new", spread=0.0)

    trained = fine_tuned(tuner, tmp_path / "trained", spread=0.1)

    assert torch.equal(off(trained), off(new))


@every_tuner
def test_put_back_into_a_fresh_policy_it_is_the_same_bits(tuner: str, tmp_path: Path) -> None:
    trained = fine_tuned(tuner, tmp_path)
    fresh = attached(tuner, backbone("llama"), spread=0.0)

    SFT.restore(fresh, tmp_path / "stages" / "sft")

    assert_same_bits(weights(fresh), weights(trained))
    assert torch.equal(off(fresh), off(trained))
    assert fresh.backbone.fingerprint == trained.backbone.fingerprint


@beside
def test_the_result_does_not_depend_on_the_tuner_that_was_there(tuner: str, tmp_path: Path) -> None:
    fine_tuned("full", tmp_path / "full")

    fine_tuned(tuner, tmp_path / tuner)

    assert kept(tmp_path / tuner).read_bytes() == kept(tmp_path / "full").read_bytes()


@beside
@every_backbone
def test_the_result_names_weights_as_the_plain_model_does(tuner: str, kind: str, tmp_path: Path) -> None:
    fine_tuned(tuner, tmp_path, kind)

    held = load_file(kept(tmp_path))

    assert held.keys() == {name for name, _ in backbone(kind).model.named_parameters()}


def test_other_weights_have_another_fingerprint_and_the_same_weights_the_same(tmp_path: Path) -> None:
    once, again = (fine_tuned("clm", tmp_path / name).backbone.fingerprint for name in ("once", "again"))
    longer = TrainStage("sft", "train", chosen, nll, fit_config(steps=4), trains=THE_BACKBONE)

    other = run(longer, attached("clm", backbone("llama"), spread=0.0), tmp_path / "other").backbone.fingerprint

    assert once == again
    assert len({once, other, "llama"}) == 3


def test_references_of_the_old_backbone_are_not_used_for_the_new_one(tmp_path: Path) -> None:
    policy = attached("clm", backbone("llama"), spread=0.0)
    groups = PREFER.prepare(SOURCE, CODEC, LIMITS).groups

    def reference() -> list[tuple[float, ...] | None]:
        named = policy.backbone.fingerprint
        return [g.reference for g in with_references(groups, policy, tmp_path, weights=named, inside=policy.off())]

    old = reference()
    run(SFT, policy, tmp_path)
    new = reference()

    torch.testing.assert_close(torch.tensor(new), off(policy), atol=1e-5, rtol=1e-5)
    assert old != new


@every_tuner
def test_after_it_the_first_preference_loss_is_ln_2(tuner: str, tmp_path: Path) -> None:
    policy = fine_tuned(tuner, tmp_path)
    session = session_in(tmp_path)

    PREFER.run(policy, PREFER.prepare(SOURCE, CODEC, LIMITS), session)

    losses = [entry["prefer/loss"] for entry in session.ledger.history() if "prefer/loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)


@every_tuner
def test_a_stage_of_the_tuner_after_it_leaves_off_where_it_was(tuner: str, tmp_path: Path) -> None:
    policy = fine_tuned(tuner, tmp_path)
    before = off(policy)

    run(PREFER, policy, tmp_path)

    assert torch.equal(off(policy), before)
    assert not torch.equal(policy.logprobs(batch_of(policy.backbone)).total_GM, before)


@pytest.mark.parametrize("tuner", ["clm", "full"])
def test_from_its_last_complete_checkpoint_it_ends_with_the_same_bits(tuner: str, tmp_path: Path) -> None:
    fine_tuned(tuner, tmp_path / "straight")
    fine_tuned(tuner, tmp_path / "stopped")
    folder = tmp_path / "stopped" / "stages" / "sft"
    kept(tmp_path / "stopped").unlink()
    (folder / "checkpoint-3" / "complete").unlink()

    fine_tuned(tuner, tmp_path / "stopped")

    assert kept(tmp_path / "stopped").read_bytes() == kept(tmp_path / "straight").read_bytes()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-4)])
@every_backbone
def test_the_first_preference_loss_of_a_new_block_is_ln_2(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    made = backbone(kind)
    made.model.to(dtype)
    policy = attached("clm", made, spread=0.0)

    loss = DPO(policy, batch_of(made)).value

    assert loss.item() == pytest.approx(math.log(2), abs=tolerance)
