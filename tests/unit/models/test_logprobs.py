"""Log-probabilities: the same numbers by every route, and those of a plain softmax over the vocabulary."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from alignlab.models.backbone import Backbone
from alignlab.models.policy import Logprobs, Pass, Policy, sum_by_member, token_logprobs
from alignlab.records import Batch
from tests.conftest import backbone
from tests.unit.conftest import attached, batch_of, learned, plain

every_backbone = pytest.mark.parametrize("kind", ["llama", "gpt2"])


def slow(policy: Policy, batch: Batch) -> Tensor:
    """Each member by itself, softmax over the whole vocabulary at every position."""
    groups, members, _ = batch.ids_GMT.shape
    total_GM = torch.zeros(groups, members)
    for group in range(groups):
        for member in range(members):
            length, start = int(batch.length_GM[group, member]), int(batch.start_GM[group, member])
            ids = batch.ids_GMT[group, member, :length]
            probabilities_TV = policy.model(ids[None]).logits[0].softmax(-1)
            total_GM[group, member] = sum(probabilities_TV[place - 1, ids[place]].log() for place in range(start, length))
    return total_GM


def as_it_is(hidden_KD: Tensor) -> Tensor:
    return hidden_KD


def gradients(policy: Policy, batch: Batch, weight_GM: Tensor) -> list[Tensor]:
    with policy.only(learned(policy)):
        (policy.logprobs(batch).total_GM * weight_GM).sum().backward()
    found = [parameter.grad for parameter in learned(policy)]
    for parameter in learned(policy):
        parameter.grad = None
    return [gradient for gradient in found if gradient is not None]


@every_backbone
def test_log_probabilities_are_those_of_a_softmax_over_the_vocabulary(kind: str) -> None:
    policy = plain(backbone(kind))
    batch = batch_of(policy.backbone)

    scores = policy.logprobs(batch)

    torch.testing.assert_close(scores.total_GM, slow(policy, batch), atol=1e-4, rtol=1e-5)


@every_backbone
def test_a_shared_prefix_changes_no_log_probability_and_no_count(kind: str) -> None:
    policy = attached("lora", backbone(kind))
    batch = batch_of(policy.backbone)
    shared = policy.logprobs(batch)

    policy.packing = "off"
    separate = policy.logprobs(batch)

    torch.testing.assert_close(shared.total_GM, separate.total_GM, atol=1e-5, rtol=1e-5)
    assert torch.equal(shared.tokens_GM, separate.tokens_GM)


@every_backbone
def test_a_shared_prefix_gives_the_same_gradients(kind: str) -> None:
    policy = attached("lora", backbone(kind))
    batch = batch_of(policy.backbone)
    weight_GM = torch.tensor([[1.0, -1.0], [0.5, -2.0], [-1.0, 1.0], [3.0, 0.25]])
    shared = gradients(policy, batch, weight_GM)

    policy.packing = "off"
    separate = gradients(policy, batch, weight_GM)

    assert len(shared) == len(learned(policy))
    torch.testing.assert_close(shared, separate, atol=1e-4, rtol=1e-4)


@every_backbone
@pytest.mark.parametrize("member", [0, 1])
def test_single_responses_of_unlike_length_in_one_row_give_the_same_numbers_and_gradients(member: int, kind: str) -> None:
    policy = attached("lora", backbone(kind))
    batch = batch_of(policy.backbone).member(member)
    weight_GM = torch.tensor([[1.0], [-0.5], [3.0], [2.0]])
    padded, padded_gradients = policy.logprobs(batch), gradients(policy, batch, weight_GM)

    policy.packing = "all"
    packed, packed_gradients = policy.logprobs(batch), gradients(policy, batch, weight_GM)

    torch.testing.assert_close(packed.total_GM, padded.total_GM, atol=1e-5, rtol=1e-5)
    assert torch.equal(packed.tokens_GM, padded.tokens_GM)
    torch.testing.assert_close(packed_gradients, padded_gradients, atol=1e-4, rtol=1e-4)


def test_single_responses_keep_their_own_rows_unless_all_are_packed(llama: Backbone) -> None:
    policy = plain(llama)
    batch = batch_of(llama).member(0)
    by_default = policy.logprobs(batch).total_GM

    policy.packing = "off"

    assert torch.equal(policy.logprobs(batch).total_GM, by_default)


@every_backbone
def test_rows_that_are_scored_from_their_start_may_be_packed(kind: str) -> None:
    policy = plain(backbone(kind))
    batch = batch_of(policy.backbone)
    batch.start_GM.zero_()
    batch.prefix_G.zero_()
    separate = policy.logprobs(batch)

    policy.packing = "all"
    packed = policy.logprobs(batch)

    torch.testing.assert_close(packed.total_GM, separate.total_GM, atol=1e-5, rtol=1e-5)
    assert torch.equal(packed.tokens_GM, separate.tokens_GM)


def test_pairs_without_a_common_token_are_computed_separately(llama: Backbone) -> None:
    policy = plain(llama)
    batch = batch_of(llama)
    batch.ids_GMT[:, 1, 0] = 7
    batch.prefix_G.zero_()

    shared = policy.logprobs(batch).total_GM
    policy.packing = "off"

    assert torch.equal(shared, policy.logprobs(batch).total_GM)


@every_backbone
def test_a_long_answer_in_chunks_gives_the_same_numbers_and_gradients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = attached("lora", backbone(kind))
    batch = batch_of(policy.backbone)
    weight_GM = torch.tensor([[1.0, -1.0]] * 4)
    at_once, at_once_gradients = policy.logprobs(batch).total_GM, gradients(policy, batch, weight_GM)

    monkeypatch.setattr("alignlab.models.policy.CHUNK_TOKENS", 5)
    in_chunks, in_chunks_gradients = policy.logprobs(batch).total_GM, gradients(policy, batch, weight_GM)

    torch.testing.assert_close(in_chunks, at_once, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(in_chunks_gradients, at_once_gradients, atol=1e-4, rtol=1e-4)


def test_a_head_that_learns_gets_the_same_gradient_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head, hidden_KD, target_K = nn.Linear(4, 6), torch.randn(7, 4), torch.tensor([0, 5, 2, 3, 1, 1, 4])
    token_logprobs([Pass(1.0, head, hidden_KD)], target_K).sum().backward()
    at_once = head.weight.grad
    head.weight.grad = None

    monkeypatch.setattr("alignlab.models.policy.CHUNK_TOKENS", 3)
    token_logprobs([Pass(1.0, head, hidden_KD)], target_K).sum().backward()

    torch.testing.assert_close(head.weight.grad, at_once)


def test_tokens_are_counted_with_eos(llama: Backbone) -> None:
    batch = batch_of(llama, [("Tell a story.", "Tom was happy.", "Tom.")])
    words, word = llama.codec._ids(["Tom was happy.", "Tom."])

    scores = plain(llama).logprobs(batch)

    assert scores.tokens_GM.tolist() == [[len(words) + 1, len(word) + 1]]


def test_padding_is_masked_by_length_where_pad_is_eos(llama: Backbone) -> None:
    batch = batch_of(llama)
    expected = plain(llama).logprobs(batch)
    clock_T = torch.arange(batch.ids_GMT.shape[-1])

    batch.ids_GMT[clock_T >= batch.length_GM[..., None]] = llama.codec.eos
    padded_with_eos = plain(llama).logprobs(batch)

    assert torch.equal(padded_with_eos.total_GM, expected.total_GM)
    assert torch.equal(padded_with_eos.tokens_GM, expected.tokens_GM)


def test_a_row_that_is_scored_from_its_start_leaves_its_first_token_out(llama: Backbone) -> None:
    batch = batch_of(llama)
    batch.start_GM.zero_()
    batch.prefix_G.zero_()

    scores = plain(llama).logprobs(batch)

    assert torch.equal(scores.tokens_GM.long(), batch.length_GM - 1)


def test_the_mean_is_per_token() -> None:
    scores = Logprobs(total_GM=torch.tensor([[-6.0, -2.0]]), tokens_GM=torch.tensor([[3.0, 4.0]]))

    assert scores.mean_GM.tolist() == [[-2.0, -0.5]]


def test_passes_are_mixed_at_the_logits() -> None:
    first_KD = torch.tensor([[math.log(2.0), 0.0]])
    second_KD = torch.tensor([[0.0, math.log(4.0)]])

    # 2 (ln 2, 0) - (0, ln 4) = (ln 4, -ln 4): odds 16 to 1
    (score,) = token_logprobs([Pass(2.0, as_it_is, first_KD), Pass(-1.0, as_it_is, second_KD)], torch.tensor([0]))

    assert score.item() == pytest.approx(math.log(16 / 17))


@pytest.mark.parametrize("chunk", [2048, 1])
def test_a_weight_per_token_reaches_its_token(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignlab.models.policy.CHUNK_TOKENS", chunk)
    hidden_KD = torch.tensor([[math.log(2.0), 0.0]] * 3)
    weight_K = torch.tensor([3.0, 1.0, 3.0])

    scores = token_logprobs([Pass(weight_K, as_it_is, hidden_KD)], torch.tensor([0, 0, 1]))

    # odds 2 to 1 at weight 1, 8 to 1 at weight 3
    assert scores.tolist() == pytest.approx([math.log(8 / 9), math.log(2 / 3), math.log(1 / 9)])


def test_tokens_are_added_up_per_member_and_a_member_without_tokens_has_zero() -> None:
    total_GM = sum_by_member(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3, 0, 3]), groups=2, members=2)

    assert total_GM.tolist() == [[2.0, 0.0], [0.0, 5.0]]
