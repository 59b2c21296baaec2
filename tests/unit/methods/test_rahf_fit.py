"""RAHF's last stage at work: what moves, and what has no say in its gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from alignlab.methods.rahf.objectives import DirectionSource, Models, Prefixes
from alignlab.methods.rahf.stages import PromptVariants
from alignlab.models.anatomy import block_list
from alignlab.models.backbone import Backbone
from alignlab.models.policy import Policy
from alignlab.training.references import SecondModel
from alignlab.training.stages import TrainStage
from alignlab.tuners.config import LowerLoraConfig
from alignlab.tuners.lora import build
from tests.bits import assert_same_bits
from tests.conftest import CODEC, backbone
from tests.unit.conftest import attached, fit_config, session_in
from tests.unit.methods.readings import (
    LAYERS,
    LEADS,
    LIMITS,
    PLAIN,
    SOURCE,
    batch_of,
    gradients,
    layers_of,
    match,
    moved,
    of_the_tuner,
    second_of,
    weights,
)

every_backbone = pytest.mark.parametrize("kind", ["llama", "gpt2"])


def lower(kind: str, *, beyond: int = 0, highest: int = 2) -> Policy:
    """A backbone with a LoRA on queries and values of the blocks below a layer, and of some more."""
    config = LowerLoraConfig("lora_lower", 1e-2, 1e-2, 4, 8.0, 0.0, None, below=layers_of(highest), beyond=beyond)
    torch.manual_seed(0)
    made = backbone(kind)
    return Policy(made, build(config, made.model))


def fitted(policy: Policy, folder: Path, direction_source: DirectionSource | None = None, *, steps: int = 3) -> list[float]:
    """The losses of a stage that fits the policy to what it is shown, under prefixes unless given otherwise."""
    prefixes = PLAIN if isinstance(direction_source, Models) else LEADS
    stage = TrainStage(
        "fit", "train", PromptVariants(prefixes, None), match(direction_source or Prefixes()), fit_config(steps=steps, batch=4)
    )
    session = session_in(folder)
    stage.run(policy, stage.prepare(SOURCE, CODEC, LIMITS), session)
    return [entry["fit/loss"] for entry in session.ledger.history() if "fit/loss" in entry]


def inside(second: SecondModel, policy: Policy) -> dict[str, Tensor]:
    """Every weight of the second model."""
    with second.inside():
        return weights(policy)


@every_backbone
def test_under_prefixes_only_the_lora_moves(kind: str, tmp_path: Path) -> None:
    policy = lower(kind)
    before = weights(policy)

    fitted(policy, tmp_path)

    changed = {name for name, tensor in weights(policy).items() if not torch.equal(tensor, before[name])}
    assert changed == of_the_tuner(policy)
    assert len(changed) < len(before)


@every_backbone
def test_between_two_models_only_the_lora_moves_and_the_second_model_is_what_it_was(kind: str, tmp_path: Path) -> None:
    policy = lower(kind)
    second = second_of(policy, moved(kind))
    before, theirs = weights(policy), inside(second, policy)

    fitted(policy, tmp_path, Models(second))

    own = of_the_tuner(policy)
    changed = {name for name, tensor in weights(policy).items() if not torch.equal(tensor, before[name])}
    assert changed == own
    assert_same_bits(*({name: each[name] for name in each.keys() - own} for each in (inside(second, policy), theirs)))


def test_states_come_closer_to_where_the_shift_points(tmp_path: Path) -> None:
    policy = lower("llama")
    before = match()(policy, batch_of())

    losses = fitted(policy, tmp_path, steps=12)

    after = match()(policy, batch_of())
    assert len(losses) == 12
    assert after.value.item() < 0.99 * before.value.item()
    assert all(after.metrics[f"reached_{layer}"].item() > 0.01 for layer in LAYERS)


def shared(policy: Policy) -> dict[str, nn.Parameter]:
    """The LoRA's parameters below the second layer, by name."""
    own = of_the_tuner(policy)
    return {name: parameter for name, parameter in policy.model.named_parameters() if name in own and ".layers.2." not in name}


def test_a_block_with_a_lora_above_the_highest_layer_changes_neither_loss_nor_gradient() -> None:
    without, beyond = lower("llama"), lower("llama", beyond=1)
    with torch.no_grad():
        for name, parameter in shared(without).items():
            parameter.add_(0.1)
            shared(beyond)[name].copy_(parameter)

    first, second = (match()(policy, batch_of()).value for policy in (without, beyond))

    found, more = gradients(without, first), gradients(beyond, second)
    assert first.item() == second.item()
    assert found
    assert all(grad is not None and torch.equal(grad, more[name]) for name, grad in found.items())  # type: ignore[arg-type]
    assert [more[name] for name in more.keys() - found.keys()] == [None] * 4  # A and B of queries and values


def test_trained_with_a_block_more_the_lora_below_ends_with_the_same_bits(tmp_path: Path) -> None:
    without, beyond = lower("llama"), lower("llama", beyond=1)
    unused = {name: tensor for name, tensor in weights(beyond).items() if name in of_the_tuner(beyond) - set(shared(beyond))}

    losses = [fitted(policy, tmp_path / str(number)) for number, policy in enumerate((without, beyond))]

    assert losses[0] == losses[1]
    assert_same_bits(shared(beyond), shared(without))
    assert len(unused) == 4
    assert all(torch.equal(weights(beyond)[name], tensor) for name, tensor in unused.items())


@pytest.mark.parametrize(("strength", "kl"), [(1.0, 0.0), (1.0, 0.1), (0.5, 0.0)])
@pytest.mark.parametrize("direction_source", ["prefixes", "models"])
@every_backbone
def test_activations_that_are_computed_again_give_the_same_gradients(
    kind: str, direction_source: str, strength: float, kl: float
) -> None:
    policy = attached("lora", backbone(kind))
    shown, prefixes = (Prefixes(), LEADS) if direction_source == "prefixes" else (Models(second_of(policy, moved(kind))), PLAIN)
    batch = batch_of(prefixes)
    calls: list[nn.Module] = []
    first_part = next(block_list(policy.backbone.trunk)[1][0].children())  # a block's own hooks stand outside
    first_part.register_forward_pre_hook(noting(calls))

    def slopes(again: bool) -> dict[str, Tensor | None]:
        policy.model.train()
        calls.clear()
        with policy.at(strength), policy.without_activations(again):
            loss = match(shown, kl=kl)(policy, batch).value
        return gradients(policy, loss)

    kept = slopes(again=False)
    passes = len(calls)
    computed_again = slopes(again=True)

    assert len(calls) > passes  # a backward pass has run the block as well
    for name, grad in kept.items():
        torch.testing.assert_close(computed_again[name], grad, atol=1e-6, rtol=1e-5)


def noting(calls: list[nn.Module]) -> Callable[..., None]:
    return lambda module, *_: calls.append(module)


def test_strength_scales_the_tuner_and_not_what_it_is_compared_with(llama: Backbone) -> None:
    policy = attached("lora", llama)
    off = match(alpha=2.0)(attached("lora", backbone("llama"), spread=0.0), batch_of()).value.item()

    with policy.at(0.0):
        at_zero = match(alpha=2.0)(policy, batch_of()).value.item()

    assert at_zero == pytest.approx(off, rel=1e-6)
