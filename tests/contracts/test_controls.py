"""What holds for every form of a control: what it leaves alone, what learns, what is kept, and that classes do not mix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignlab.data.batching import collate, whole
from alignlab.models.policy import Policy
from alignlab.records import Batch, EncodedGroup
from alignlab.training.objectives import nll
from tests.bits import assert_same_bits
from tests.conftest import CODEC, backbone
from tests.contracts.controls import (
    CASES,
    FACTORED,
    IDS,
    LEARNED,
    Case,
    attach,
    batch_of,
    items,
    last_logits,
    learned,
    totals,
    totals_under,
    trained,
    unclassed,
)
from tests.unit.conftest import plain

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_learned_case = pytest.mark.parametrize("case", LEARNED, ids=str)
every_lora = pytest.mark.parametrize("case", FACTORED, ids=str)


def of_class(groups: list[EncodedGroup], name: str) -> list[EncodedGroup]:
    return [group for group in groups if group.members[0].control == name]


def gradients(policy: Policy, *batches: Batch) -> dict[str, Tensor]:
    """What the batches leave at every parameter, the backbone's among them."""
    policy.model.requires_grad_(True)
    policy.model.zero_grad()
    for batch in batches:
        nll(policy, batch).value.backward()
    return {name: parameter.grad.clone() for name, parameter in policy.model.named_parameters() if parameter.grad is not None}


@every_lora
def test_a_new_lora_gives_the_logits_of_the_backbone_under_every_class(case: Case) -> None:
    untouched = backbone(case.backbone).model(IDS).logits
    policy = attach(case, backbone(case.backbone))

    under = []
    for number in range(len(case.classes)):
        with policy.tuner.at(float(number)):
            under.append(policy.model(IDS).logits)
    with policy.tuner.at(torch.tensor([0.0, -1.0, 1.0])):
        mixed = policy.model(IDS).logits

    assert all(torch.equal(logits, untouched) for logits in (*under, mixed))


@every_case
def test_it_learns_as_many_numbers_as_derived_by_hand(case: Case) -> None:
    policy = attach(case, backbone(case.backbone))

    assert sum(parameter.numel() for parameter in learned(policy)) == case.parameters


@every_case
def test_off_is_the_untouched_backbone_bit_for_bit(case: Case) -> None:
    untouched = plain(backbone(case.backbone))
    policy = trained(case, backbone(case.backbone))
    batch = batch_of(items(case.classes))

    with policy.off():
        logits, off = policy.model(IDS).logits, totals(policy, batch)

    assert torch.equal(logits, untouched.model(IDS).logits)
    assert torch.equal(off, totals(untouched, unclassed(batch)))
    assert not torch.equal(totals(policy, batch), off)


@every_case
def test_without_a_class_the_model_is_alone_whether_nothing_is_asked_or_none(case: Case) -> None:
    batch = unclassed(batch_of(items(case.classes)))
    alone = totals(plain(backbone(case.backbone)), batch)

    policy = trained(case, backbone(case.backbone))

    assert torch.equal(totals(policy, batch), alone)
    assert torch.equal(totals_under(policy, "none", batch), alone)


@every_case
def test_each_class_answers_in_its_own_way(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    batch = batch_of(items(case.classes))

    under = torch.stack([totals_under(policy, name, batch) for name in (*case.classes, "none")])

    apart = (under[:, None] - under[None]).abs().amin((2, 3))
    assert bool((apart[~torch.eye(len(under), dtype=torch.bool)] > 1e-3).all())


@every_case
def test_members_under_their_own_classes_equal_batches_of_one_class(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    groups = items(case.classes)

    mixed_G1 = totals(policy, batch_of(groups))

    for name in case.classes:
        rows = [row for row, group in enumerate(groups) if group.members[0].control == name]
        pure_G1 = totals_under(policy, name, unclassed(batch_of(of_class(groups, name))))
        torch.testing.assert_close(mixed_G1[rows], pure_G1, atol=1e-5, rtol=1e-5)


@every_case
def test_two_members_of_a_group_may_have_different_classes(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    singles = items(case.classes)
    pairs = [EncodedGroup("pair", (*singles[at].members, *singles[at + 1].members)) for at in range(0, 8, 2)]

    together_GM = totals(policy, whole(pairs, CODEC.pad))

    torch.testing.assert_close(together_GM.reshape(-1, 1), totals(policy, batch_of(singles)), atol=1e-5, rtol=1e-5)


@every_case
def test_pairs_under_one_class_share_their_prompt_and_its_control(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    singles = items(case.classes)
    pairs = [EncodedGroup("pair", (*singles[at].members, *singles[at + 1].members)) for at in range(0, 8, 2)]
    batch = unclassed(whole(pairs, CODEC.pad))
    shared_GM = totals_under(policy, case.classes[-1], batch)

    policy.packing = "off"
    apart_GM = totals_under(policy, case.classes[-1], batch)

    torch.testing.assert_close(shared_GM, apart_GM, atol=1e-5, rtol=1e-5)


@every_case
def test_loss_and_gradients_of_a_mixed_batch_are_the_sums_over_its_classes(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    groups = items(case.classes)
    mixed = batch_of(groups)
    sizes = {"step_groups": mixed.step_groups, "step_tokens": mixed.step_tokens}
    pure = [collate(of_class(groups, name), pad=CODEC.pad, **sizes) for name in case.classes]

    together, apart = gradients(policy, mixed), gradients(policy, *pure)

    torch.testing.assert_close(nll(policy, mixed).value, sum(nll(policy, batch).value for batch in pure), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    assert set(together) == {name for name, _ in policy.model.named_parameters()}


@every_learned_case
def test_a_batch_of_one_class_leaves_every_other_class_without_gradient(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    chosen = len(case.classes) - 1
    others = [number for number in range(len(case.classes)) if number != chosen]

    nll(policy, batch_of(of_class(items(case.classes), case.classes[chosen]))).value.backward()

    assert all(bool(parameter.grad[chosen].any()) for parameter in learned(policy))
    assert not any(bool(parameter.grad[others].any()) for parameter in learned(policy))


@every_case
def test_saved_and_loaded_the_logits_under_each_class_are_the_same_bits(case: Case, tmp_path: Path) -> None:
    policy = trained(case, backbone(case.backbone))
    other = attach(case, backbone(case.backbone), seed=7)

    policy.tuner.save(tmp_path)  # type: ignore[attr-defined]
    other.tuner.load(tmp_path)  # type: ignore[attr-defined]

    assert all(torch.equal(last_logits(other, name), last_logits(policy, name)) for name in case.classes)


@every_case
def test_the_folder_holds_the_small_tensors_alone(case: Case, tmp_path: Path) -> None:
    policy = trained(case, backbone(case.backbone))

    policy.tuner.save(tmp_path)  # type: ignore[attr-defined]

    held = load_file(tmp_path / "adapter_model.safetensors")
    assert {file.suffix for file in tmp_path.iterdir()} <= {".safetensors", ".json", ".md"}
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["adapter_model.safetensors"]
    assert sum(tensor.numel() for tensor in held.values()) == case.parameters


@every_learned_case
def test_a_control_is_float32_over_a_bfloat16_backbone(case: Case) -> None:
    made = backbone(case.backbone)
    made.model.to(torch.bfloat16)

    policy = trained(case, made)

    assert {parameter.dtype for parameter in learned(policy)} == {torch.float32}
    assert {last_logits(policy, name).isfinite().all().item() for name in case.classes} == {True}


@every_case
def test_gradient_checkpointing_changes_no_gradient(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    policy.model.train()
    batch = batch_of(items(case.classes))
    kept = gradients(policy, batch)

    with policy.without_activations(True):
        again = gradients(policy, batch)

    assert_same_bits(again, kept)
