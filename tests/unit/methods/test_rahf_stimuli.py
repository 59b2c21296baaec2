"""Where RAHF's shift comes from; padding, the layout of a batch and what stands behind the window have no say in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from alignlab.data.batching import collate, whole
from alignlab.data.encode import Truncation
from alignlab.errors import ConfigError
from alignlab.methods.rahf.objectives import Models, Prefixes
from alignlab.models.backbone import Backbone
from alignlab.models.policy import Policy
from alignlab.records import Encoded, EncodedGroup, Record
from alignlab.training.collect import Stored
from alignlab.training.references import SecondModel
from alignlab.training.trainable import THE_BACKBONE, training
from tests.conftest import CODEC, backbone
from tests.unit.conftest import attached, plain
from tests.unit.methods.readings import (
    BETTER,
    LAYERS,
    LEADS,
    PLAIN,
    all_states,
    batch_of,
    groups_of,
    match,
    mean_norm,
    moved,
    second_of,
)

every_backbone = pytest.mark.parametrize("kind", ["llama", "gpt2"])
both_layouts = pytest.mark.parametrize("shared_prefix", [True, False], ids=["packed", "rows"])


def laid(policy: Policy, shared_prefix: bool) -> Policy:
    """The policy with a way to lay a batch into rows."""
    policy.packing = "pairs" if shared_prefix else "off"
    return policy


def padded_left(model: nn.Module, groups: Sequence[EncodedGroup], number: int) -> list[Tensor]:
    """States at the response tokens of one member of each group, by one pass over rows padded on the left; a tensor each."""
    members = [group.members[number] for group in groups]
    width = max(len(member.ids) for member in members)
    ids_RT = torch.tensor([[CODEC.pad] * (width - len(member.ids)) + list(member.ids) for member in members])
    mask_RT = torch.tensor([[0] * (width - len(member.ids)) + [1] * len(member.ids) for member in members])
    positions_RT = (mask_RT.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        found = model(input_ids=ids_RT, attention_mask=mask_RT, position_ids=positions_RT, output_hidden_states=True)
    states_LRTD = torch.stack([found.hidden_states[layer] for layer in LAYERS])
    return [states_LRTD[:, row, member.start - len(member.ids) :] for row, member in enumerate(members)]


@every_backbone
@both_layouts
def test_prefixes_give_the_plain_states_and_the_difference_between_the_leads(kind: str, shared_prefix: bool) -> None:
    policy, model, groups = laid(attached("lora", backbone(kind)), shared_prefix), backbone(kind).model, groups_of()

    base, shift = Prefixes()(policy, batch_of(), LAYERS)

    torch.testing.assert_close(base, all_states(model, groups, 0), atol=1e-5, rtol=1e-5)
    expected = all_states(model, groups, 1) - all_states(model, groups, 2)
    torch.testing.assert_close(shift, expected, atol=1e-5, rtol=1e-5)
    assert mean_norm(shift) > 0.1


@every_backbone
def test_models_give_the_states_of_the_backbone_and_its_difference_to_the_second_model(kind: str) -> None:
    policy, groups = attached("lora", backbone(kind)), groups_of(PLAIN)

    base, shift = Models(second_of(policy, moved(kind)))(policy, batch_of(PLAIN), LAYERS)

    expected = all_states(backbone(kind).model, groups, 0)
    torch.testing.assert_close(base, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shift, expected - all_states(moved(kind), groups, 0), atol=1e-5, rtol=1e-5)
    assert mean_norm(shift) > 0.1


@both_layouts
def test_equal_prefixes_give_no_shift(llama: Backbone, shared_prefix: bool) -> None:
    policy = laid(plain(llama), shared_prefix)

    _, shift = Prefixes()(policy, batch_of(("", BETTER, BETTER)), LAYERS)

    assert shift.abs().max() < 1e-5


def test_two_models_with_the_same_weights_give_no_shift_at_all(llama: Backbone) -> None:
    policy, second = attached("lora", llama), SecondModel()
    with training(policy, THE_BACKBONE, second=second):
        pass

    _, shift = Models(second)(policy, batch_of(PLAIN), LAYERS)

    assert not shift.any()


def test_a_second_model_that_was_never_trained_is_refused(llama: Backbone) -> None:
    policy, untrained = attached("lora", llama), Models(SecondModel())
    batch = batch_of(PLAIN)

    with pytest.raises(ConfigError, match="the second model was not trained in this run; its stage must come before"):
        untrained(policy, batch, LAYERS)


@every_backbone
@both_layouts
def test_the_loss_is_that_of_rows_padded_on_the_left(kind: str, shared_prefix: bool) -> None:
    policy, model, groups = laid(attached("lora", backbone(kind)), shared_prefix), backbone(kind).model, groups_of()
    plain_, better, worse = (padded_left(model, groups, number) for number in range(3))
    tuned = padded_left(policy.model, groups, 0)
    residuals = [t - (p + 5 * (b - w)) for t, p, b, w in zip(tuned, plain_, better, worse, strict=True)]

    loss = match(alpha=5.0)(policy, whole(groups, CODEC.pad)).value.item()

    assert loss == pytest.approx(mean_norm(torch.cat(residuals, dim=1)), rel=1e-5)


@every_backbone
def test_the_loss_depends_neither_on_the_batch_nor_on_the_layout(kind: str) -> None:
    policy, groups = attached("lora", backbone(kind)), groups_of()
    tokens = sum(group.response_tokens for group in groups)

    def losses(shared_prefix: bool, size: int) -> float:
        parts = [groups[begin : begin + size] for begin in range(0, len(groups), size)]
        batches = [collate(part, pad=CODEC.pad, step_groups=len(groups), step_tokens=tokens) for part in parts]
        return sum(match()(laid(policy, shared_prefix), batch).value.item() for batch in batches)

    found = [losses(shared, size) for shared in (True, False) for size in (8, 3, 1)]
    assert found == pytest.approx([found[0]] * 6, rel=1e-5)


def moved_start(group: EncodedGroup, by: int) -> EncodedGroup:
    """The group with its responses beginning so many tokens later."""
    return replace(group, members=tuple(replace(member, start=member.start + by) for member in group.members))


def test_a_response_that_begins_a_token_later_or_earlier_has_another_shift(llama: Backbone) -> None:
    policy, (group, *_) = plain(llama), groups_of()

    def shift(by: int) -> Tensor:
        return Prefixes()(policy, whole([moved_start(group, by)], CODEC.pad), LAYERS)[1]

    there, later, earlier = shift(0), shift(1), shift(-1)
    torch.testing.assert_close(later, there[:, 1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(earlier[:, 1:], there, atol=1e-5, rtol=1e-5)
    assert abs(mean_norm(later) - mean_norm(there)) > 1e-3
    assert abs(mean_norm(earlier) - mean_norm(there)) > 1e-3


@pytest.mark.parametrize("prefixes", [LEADS, PLAIN], ids=["prefixes", "models"])
def test_tokens_behind_the_window_have_no_influence(llama: Backbone, prefixes: tuple[str, ...]) -> None:
    policy = attached("lora", llama)
    direction_source = Prefixes() if prefixes == LEADS else Models(second_of(policy, moved("llama")))
    ends = ("Tom was happy.", "Tom was sad and lost his kite. He went home.")  # T o m _was: four tokens
    short, long = (Record.pair("row", "Tell a story.", end, end) for end in ends)

    def loss(record: Record, tokens: int | None) -> float:
        groups = groups_of(prefixes, records=[record], truncation=Truncation(response_tokens=tokens))
        return match(direction_source)(policy, whole(groups, CODEC.pad)).value.item()

    assert loss(short, 4) == loss(long, 4)
    assert loss(short, 5) != pytest.approx(loss(long, 5), rel=1e-3)
    assert loss(short, None) != pytest.approx(loss(long, None), rel=1e-3)


def test_every_token_of_the_window_has_an_influence(llama: Backbone) -> None:
    policy, (group, *_) = plain(llama), groups_of()
    replaced = [with_token(group, place) for place in range(len(group.members[0].ids) - group.members[0].start)]

    losses = [match()(policy, whole([each], CODEC.pad)).value.item() for each in (group, *replaced)]

    assert len({round(loss, 4) for loss in losses}) == len(losses)


def with_token(group: EncodedGroup, place: int) -> EncodedGroup:
    """The group with another token at a place of its response, in every member."""

    def other(member: Encoded) -> Encoded:
        at = member.start + place
        return replace(member, ids=(*member.ids[:at], 50, *member.ids[at + 1 :]))

    return replace(group, members=tuple(other(member) for member in group.members))


def test_stored_states_are_found_by_row_whatever_the_batch(llama: Backbone, tmp_path: Path) -> None:
    first, second = torch.randn(2, 3, 4), torch.randn(2, 1, 4)
    file = {"base:a": first, "shift:a": -first, "base:b/1": second, "shift:b/1": 2 * second}
    save_file(file, tmp_path / "states.safetensors")
    stored = Stored()
    stored.open(tmp_path / "states.safetensors")

    base, shift = stored(plain(llama), replace(batch_of(PLAIN), rows=("b/1", "a")), LAYERS)

    assert torch.equal(base, torch.cat([second, first], dim=1))
    assert torch.equal(shift, torch.cat([2 * second, -first], dim=1))


def test_a_row_that_was_not_stored_is_refused(llama: Backbone, tmp_path: Path) -> None:
    save_file({"base:a": torch.zeros(2, 1, 4), "shift:a": torch.zeros(2, 1, 4)}, tmp_path / "states.safetensors")
    stored, policy, batch = Stored(), plain(llama), replace(batch_of(PLAIN), rows=("a", "b"))
    stored.open(tmp_path / "states.safetensors")

    with pytest.raises(ConfigError, match="stage fit reads states that stage shift did not keep"):
        stored(policy, batch, LAYERS)
