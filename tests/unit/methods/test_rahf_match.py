"""RAHF's last stage: the distance between where hidden states are and where the shift points."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from alignlab.data.batching import collate, whole
from alignlab.errors import ConfigError
from alignlab.methods.rahf.objectives import DirectionSource, Models, Prefixes
from alignlab.models.backbone import Backbone
from alignlab.models.config import Shape
from alignlab.models.policy import Policy
from tests.bits import assert_same_bits
from tests.conftest import CODEC, backbone
from tests.unit.conftest import attached
from tests.unit.methods.readings import (
    LAYERS,
    LEADS,
    PLAIN,
    all_states,
    batch_of,
    gradients,
    groups_of,
    match,
    mean_norm,
    moved,
    second_of,
)

every_backbone = pytest.mark.parametrize("kind", ["llama", "gpt2"])
both_directions = pytest.mark.parametrize("direction_source", ["prefixes", "models"])


def case(kind: str, direction_source: str, *, spread: float = 0.0) -> tuple[Policy, DirectionSource, tuple[str, ...]]:
    """A policy with a LoRA in every block, what it is shown, and the prefixes of its members."""
    policy = attached("lora", backbone(kind), spread=spread)
    if direction_source == "prefixes":
        return policy, Prefixes(), LEADS
    return policy, Models(second_of(policy, moved(kind))), PLAIN


def shift(kind: str, direction_source: str) -> Tensor:
    """v by plain passes of transformers: between the two prefixes, or between the two models."""
    model = backbone(kind).model
    if direction_source == "prefixes":
        return all_states(model, groups_of(), 1) - all_states(model, groups_of(), 2)
    return all_states(model, groups_of(PLAIN), 0) - all_states(moved(kind), groups_of(PLAIN), 0)


@every_backbone
@both_directions
def test_the_first_loss_is_alpha_times_the_mean_norm_of_the_shift(kind: str, direction_source: str) -> None:
    policy, shown, prefixes = case(kind, direction_source)

    loss = match(shown, alpha=3.0)(policy, batch_of(prefixes))

    assert loss.value.item() == pytest.approx(3 * mean_norm(shift(kind, direction_source)), rel=1e-6)
    assert loss.metrics["distance"].item() == loss.value.item()
    assert loss.metrics["target"].item() == pytest.approx(loss.value.item(), rel=1e-6)


@every_backbone
@both_directions
def test_squared_the_first_loss_is_alpha_squared_times_the_mean_squared_norm(kind: str, direction_source: str) -> None:
    policy, shown, prefixes = case(kind, direction_source)
    v_LKD = shift(kind, direction_source).double()

    loss = match(shown, alpha=3.0, distance="squared")(policy, batch_of(prefixes))

    assert loss.value.item() == pytest.approx(9 * float(v_LKD.square().sum(-1).mean()), rel=1e-6)
    assert loss.metrics["distance"].item() == pytest.approx(3 * mean_norm(v_LKD), rel=1e-6)


@both_directions
def test_doubling_alpha_doubles_the_first_loss(direction_source: str) -> None:
    policy, shown, prefixes = case("llama", direction_source)

    once, twice = (match(shown, alpha=alpha)(policy, batch_of(prefixes)).value.item() for alpha in (5.0, 10.0))

    assert twice == pytest.approx(2 * once, rel=1e-6)


def test_at_alpha_0_a_new_tuner_has_nothing_to_do_between_models() -> None:
    policy, shown, prefixes = case("llama", "models")

    loss = match(shown, alpha=0.0)(policy, batch_of(prefixes)).value

    assert loss.item() == 0
    gradients = own_gradients(policy, loss)
    assert gradients
    assert all(grad is not None and not grad.any() for grad in gradients)


def test_at_alpha_0_a_new_tuner_is_where_it_should_be_between_prefixes() -> None:
    policy, shown, prefixes = case("llama", "prefixes")

    loss = match(shown, alpha=0.0)(policy, batch_of(prefixes)).value

    assert loss.item() == pytest.approx(0, abs=1e-5)  # three prefixes in one row are rounded otherwise than one by itself
    gradients = own_gradients(policy, loss)
    assert gradients
    assert all(grad is not None and grad.isfinite().all() for grad in gradients)


def own_gradients(policy: Policy, loss: Tensor) -> list[Tensor | None]:
    """Gradients of the LoRA in the blocks that the highest layer depends on."""
    return [grad for name, grad in gradients(policy, loss).items() if ".layers.2." not in name]


@every_backbone
@both_directions
def test_a_trained_tuners_loss_is_its_distance_from_base_plus_alpha_shift(kind: str, direction_source: str) -> None:
    policy, shown, prefixes = case(kind, direction_source, spread=0.1)
    plain, groups = backbone(kind).model, groups_of(PLAIN)
    residual = all_states(policy.model, groups, 0) - all_states(plain, groups, 0) - 2 * shift(kind, direction_source)

    loss = match(shown, alpha=2.0)(policy, batch_of(prefixes))

    assert loss.value.item() == pytest.approx(mean_norm(residual), rel=1e-5)


def test_the_share_reached_is_told_for_every_layer(llama: Backbone) -> None:
    policy = attached("lora", llama)
    groups = groups_of(PLAIN)
    target = 2 * shift("llama", "prefixes")
    residual = all_states(policy.model, groups, 0) - all_states(backbone("llama").model, groups, 0) - target

    metrics = match(alpha=2.0)(policy, batch_of()).metrics

    expected = (1 - residual.norm(dim=-1) / target.norm(dim=-1)).mean(1)  # token by token
    reached = torch.stack([metrics[f"reached_{layer}"] for layer in LAYERS])
    torch.testing.assert_close(reached, expected, atol=1e-5, rtol=1e-5)


def test_where_there_is_no_shift_nothing_of_it_is_reached(llama: Backbone) -> None:
    policy = attached("lora", llama)

    metrics = match(Models(second_of(policy, backbone("llama").model)))(policy, batch_of(PLAIN)).metrics

    assert metrics["distance"].item() > 0
    assert [metrics[name].item() for name in ("target", "reached_1", "reached_2")] == [0, 0, 0]


@both_directions
def test_losses_and_metrics_of_the_parts_of_a_step_add_up(direction_source: str) -> None:
    policy, shown, prefixes = case("llama", direction_source, spread=0.1)
    groups = groups_of(prefixes)
    tokens = sum(group.response_tokens for group in groups)
    objective = match(shown, kl=0.5)

    together = objective(policy, whole(groups, CODEC.pad))
    alone = [
        objective(policy, collate([group], pad=CODEC.pad, step_groups=len(groups), step_tokens=tokens)) for group in groups
    ]

    assert sum(part.value.item() for part in alone) == pytest.approx(together.value.item(), rel=1e-5)
    assert together.metrics.keys() == {"distance", "target", "kl", "reached_1", "reached_2"}
    for name in together.metrics:
        assert sum(part.metrics[name].item() for part in alone) == pytest.approx(together.metrics[name].item(), rel=1e-5)


@every_backbone
def test_kl_is_between_the_next_tokens_before_and_after_per_response_token(kind: str) -> None:
    policy = attached("lora", backbone(kind))
    groups = groups_of(PLAIN)
    expected = [
        divergence(backbone(kind).model, policy.model, group.members[0].ids, group.members[0].start) for group in groups
    ]

    with_kl, without = (match(kl=kl)(policy, batch_of()) for kl in (0.5, 0.0))

    mean = float(torch.cat(expected).mean())
    assert mean > 0.01
    assert with_kl.metrics["kl"].item() == pytest.approx(mean, rel=1e-4)
    assert with_kl.value.item() - without.value.item() == pytest.approx(0.5 * mean, rel=1e-4)


def test_kl_does_not_depend_on_how_many_logits_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = attached("lora", backbone("llama"))
    together = match(kl=50.0)(policy, batch_of()).value
    slopes = gradients(policy, together)

    monkeypatch.setattr("alignlab.models.policy.CHUNK_TOKENS", 7)
    apart = match(kl=50.0)(policy, batch_of()).value

    assert apart.item() == pytest.approx(together.item(), rel=1e-5)
    for name, grad in gradients(policy, apart).items():
        torch.testing.assert_close(grad, slopes[name], atol=1e-4, rtol=1e-4)


def divergence(before: torch.nn.Module, after: torch.nn.Module, ids: tuple[int, ...], start: int) -> Tensor:
    """KL by torch's own distributions, where each response token is predicted."""
    with torch.no_grad():
        p, q = (
            torch.distributions.Categorical(logits=model(torch.tensor([ids])).logits[0, start - 1 : -1])
            for model in (before, after)
        )
    return torch.distributions.kl_divergence(p, q)


@both_directions
@pytest.mark.parametrize("highest", [1, 2])
@every_backbone
def test_only_a_lora_below_the_highest_layer_gets_a_gradient(kind: str, highest: int, direction_source: str) -> None:
    policy, shown, prefixes = case(kind, direction_source, spread=0.1)
    name_of_blocks = {"llama": ".layers.", "gpt2": ".h."}[kind]
    lower = tuple(f"{name_of_blocks}{index}." for index in range(highest))

    found = gradients(policy, match(shown, layers=[highest])(policy, batch_of(prefixes)).value)

    reached = {name for name, grad in found.items() if grad is not None and grad.any()}
    assert reached == {name for name in found if any(block in name for block in lower)}
    assert 0 < len(reached) < len(found)


@both_directions
def test_a_new_lora_gets_its_first_gradient_at_b_in_every_block_below(direction_source: str) -> None:
    policy, shown, prefixes = case("llama", direction_source)

    found = gradients(policy, match(shown)(policy, batch_of(prefixes)).value)

    below = {name: grad for name, grad in found.items() if ".layers.2." not in name}
    reached = {name for name, grad in below.items() if grad is not None and grad.any()}
    assert reached == {name for name in below if ".lora_B." in name}


def test_neither_the_backbone_nor_the_tuner_is_left_changed_by_a_loss() -> None:
    policy, shown, prefixes = case("llama", "models", spread=0.1)
    before = copy.deepcopy(policy.model.state_dict())

    match(shown, kl=0.1)(policy, batch_of(prefixes)).value.backward()  # type: ignore[no-untyped-call]

    assert_same_bits(policy.model.state_dict(), before)


@pytest.mark.parametrize("number", [3, 4])
def test_the_last_layer_and_one_outside_are_refused_before_any_pass(number: int) -> None:
    with pytest.raises(ConfigError, match=rf"layer {number} of layers \[1, {number}\] does not fit 3 blocks; choose 1 to 2"):
        match(layers=[1, number]).check(Shape(3, 32))
