"""What holds for every tuner on every backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alignlab.data.batching import whole
from alignlab.errors import ControlError, ModelError
from alignlab.models.strength import insert_prefixes
from alignlab.training.objectives import nll
from tests.conftest import backbone
from tests.contracts.table import CASES, PAIRS, Case, attach, batch, front_of, groups, logits, trained

every_case = pytest.mark.parametrize("case", CASES, ids=str)
per_row_cases = pytest.mark.parametrize("case", [case for case in CASES if case.per_row], ids=str)
one_strength_cases = pytest.mark.parametrize("case", [case for case in CASES if not case.per_row], ids=str)


@pytest.mark.parametrize("case", [case for case in CASES if case.starts_as_base], ids=str)
def test_a_new_tuner_changes_nothing(case: Case) -> None:
    untouched = backbone(case.backbone).model(torch.arange(3, 19).reshape(2, 8)).logits

    policy = attach(case, backbone(case.backbone))

    assert torch.equal(logits(policy), untouched)


@every_case
def test_off_is_the_untouched_backbone_bit_for_bit(case: Case) -> None:
    untouched = backbone(case.backbone).model(torch.arange(3, 19).reshape(2, 8)).logits
    policy = trained(case, backbone(case.backbone))

    with policy.off():
        off = logits(policy)

    assert torch.equal(off, untouched)
    assert not torch.equal(logits(policy), untouched)


@every_case
def test_strength_one_equals_no_context(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    pairs = batch(policy)

    plain = policy.logprobs(pairs).total_GM
    with policy.at(1.0):
        at_one = policy.logprobs(pairs).total_GM

    assert torch.equal(at_one, plain)


@every_case
def test_strength_zero_equals_off(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    pairs = batch(policy)

    with policy.off():
        off = policy.logprobs(pairs).total_GM
    with policy.at(0.0):
        at_zero = policy.logprobs(pairs).total_GM

    assert torch.equal(at_zero, off)


@every_case
def test_leaving_a_strength_restores_the_trained_model(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    pairs = batch(policy)
    before = policy.logprobs(pairs).total_GM

    with policy.at(0.5):
        half = policy.logprobs(pairs).total_GM

    assert not torch.equal(half, before)
    assert torch.equal(policy.logprobs(pairs).total_GM, before)


@every_case
def test_leaving_a_strength_by_an_error_restores_too(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    before = logits(policy)

    with pytest.raises(ZeroDivisionError), policy.at(0.5), policy.off():
        _ = 1 / 0

    assert torch.equal(logits(policy), before)


@every_case
def test_off_inside_off_stays_off(case: Case) -> None:
    untouched = backbone(case.backbone).model(torch.arange(3, 19).reshape(2, 8)).logits
    policy = trained(case, backbone(case.backbone))

    with policy.off():
        with policy.off():
            pass
        off = logits(policy)

    assert torch.equal(off, untouched)


@every_case
def test_only_the_tuner_takes_gradients_and_moves(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    learned = policy.tuner.parameters()  # type: ignore[attr-defined]
    ids = {id(parameter) for parameter in learned}
    before = {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}

    with policy.only(learned):
        optimiser = torch.optim.SGD([p for p in policy.model.parameters() if p.requires_grad], lr=0.1)
        nll(policy, batch(policy)).value.backward()
        optimiser.step()

    moved = {n for n, p in policy.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {name for name, parameter in policy.model.named_parameters() if id(parameter) in ids}


@every_case
def test_saved_and_loaded_the_logits_are_the_same_bits(case: Case, tmp_path: Path) -> None:
    policy = trained(case, backbone(case.backbone))
    other = attach(case, backbone(case.backbone), seed=7)

    policy.tuner.save(tmp_path)  # type: ignore[attr-defined]
    other.tuner.load(tmp_path)  # type: ignore[attr-defined]

    assert torch.equal(logits(other), logits(policy))
    assert {file.suffix for file in tmp_path.iterdir()} <= {".safetensors", ".json", ".md"}


@every_case
def test_a_batch_of_one_equals_a_batch_of_many(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))

    together = policy.logprobs(batch(policy)).total_GM
    alone = torch.cat([policy.logprobs(batch(policy, [pair])).total_GM for pair in PAIRS])

    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@every_case
def test_left_and_right_padding_give_the_same_log_probabilities(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    pairs = insert_prefixes(batch(policy), [front_of(policy)] * 2 * len(PAIRS))
    groups_, members, time = pairs.ids_GMT.shape
    length_R = pairs.length_GM.reshape(-1)
    pad_R = time - length_R
    left_RT = torch.stack([row.roll(int(pad)) for row, pad in zip(pairs.ids_GMT.reshape(-1, time), pad_R, strict=True)])
    mask_RT = (torch.arange(time) >= pad_R[:, None]).long()

    with torch.no_grad():
        output = policy.model(left_RT, attention_mask=mask_RT, position_ids=(mask_RT.cumsum(1) - 1).clamp(min=0))
    scores_RT = output.logits[:, :-1].log_softmax(-1).gather(-1, left_RT[:, 1:, None].clamp(min=0))[..., 0]
    answer_RT = torch.arange(1, time) >= (pad_R + pairs.start_GM.reshape(-1))[:, None]
    left = (scores_RT * answer_RT).sum(1).reshape(groups_, members)

    torch.testing.assert_close(policy.logprobs(batch(policy)).total_GM, left, atol=1e-5, rtol=1e-5)


@per_row_cases
def test_one_strength_per_group_equals_separate_passes(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    strengths = [-0.5, 0.0, 0.5, 1.0]

    with policy.at(torch.tensor(strengths)):
        mixed = policy.logprobs(batch(policy)).total_GM

    for row, strength in enumerate(strengths):
        with policy.at(strength):
            alone = policy.logprobs(batch(policy)).total_GM[row]
        torch.testing.assert_close(mixed[row], alone, atol=1e-5, rtol=1e-5)


@one_strength_cases
def test_one_strength_per_group_is_refused_where_weights_are_shared(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))

    with pytest.raises(ControlError, match="one strength per batch"), policy.at(torch.tensor([0.0, 0.5, 1.0, 1.5])):
        policy.logprobs(batch(policy))


@every_case
def test_a_shared_prefix_gives_the_log_probabilities_of_separate_rows(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    pairs = batch(policy)
    shared = policy.logprobs(pairs).total_GM

    policy.packing = "off"
    separate = policy.logprobs(pairs).total_GM

    torch.testing.assert_close(shared, separate, atol=1e-5, rtol=1e-5)


@every_case
def test_shares_of_a_step_add_up_to_the_step(case: Case) -> None:
    policy = trained(case, backbone(case.backbone))
    everything = groups(policy)
    step = whole(everything, policy.backbone.codec.pad)

    at_once = nll(policy, step).value
    parts = [whole([group], policy.backbone.codec.pad) for group in everything]
    shares = [nll(policy, part).value * part.step_tokens / step.step_tokens for part in parts]

    torch.testing.assert_close(sum(shares), at_once, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("saved", "loaded"), [(1, 2), (2, 1)])
def test_a_file_of_another_adapter_is_refused(saved: int, loaded: int, tmp_path: Path) -> None:
    configs = {blocks: Case("clm", "llama", {"blocks": blocks, "start": "identity", "merge": "logits"}) for blocks in (1, 2)}
    attach(configs[saved], backbone("llama")).tuner.save(tmp_path)  # type: ignore[attr-defined]

    with pytest.raises(ModelError, match="holds other tensors than this adapter has"):
        attach(configs[loaded], backbone("llama")).tuner.load(tmp_path)  # type: ignore[attr-defined]
