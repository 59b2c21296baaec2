"""The distilled mixture: what its loss is by hand, which tokens count, who gets gradients, and which models are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignlab.data.batching import collate, whole
from alignlab.errors import ConfigError
from alignlab.models.backbone import Backbone
from alignlab.models.policy import Pass, Policy
from alignlab.records import Batch, EncodedGroup
from alignlab.training.objectives import Distillation
from alignlab.training.references import OtherModel
from tests.conftest import CODEC, backbone
from tests.unit.conftest import attached, encoded, learned
from tests.unit.methods.readings import gradients, moved, second_of
from tests.unit.training.test_reference_models import saved

every_strength = pytest.mark.parametrize("strength", [-0.5, 0.0, 0.5, 1.0, 1.5, 10.0])


def items(made: Backbone) -> list[EncodedGroup]:
    """One response a group, of unequal lengths."""
    return [replace(group, members=group.members[:1]) for group in encoded(made)]


def logits(model: nn.Module, group: EncodedGroup) -> Tensor:
    """transformers' own, where each response token of a text is predicted; double."""
    member = group.members[0]
    with torch.no_grad():
        found: Tensor = model(torch.tensor([member.ids])).logits[0, member.start - 1 : -1].double()
    return found


def by_hand(student: nn.Module, aligned: nn.Module, base: nn.Module, groups: Sequence[EncodedGroup], strength: float) -> float:
    """The sum over the vocabulary of p (log p - log q), over each response token of each item, divided by their number."""
    total, tokens = 0.0, 0
    for group in groups:
        mixed_KV = strength * logits(aligned, group) + (1 - strength) * logits(base, group)
        p_KV, q_KV = (each.exp() / each.exp().sum(1, keepdim=True) for each in (logits(student, group), mixed_KV))
        total += float((p_KV * (p_KV.log() - q_KV.log())).sum())
        tokens += len(p_KV)
    return total / tokens


@every_strength
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_loss_is_the_divergence_of_the_student_from_the_mixture_by_hand(kind: str, strength: float) -> None:
    policy, groups = attached("lora", backbone(kind)), items(backbone(kind))
    second = second_of(policy, moved(kind))

    loss = Distillation(second, strength)(policy, whole(groups, CODEC.pad))

    expected = by_hand(policy.model, moved(kind), backbone(kind).model, groups, strength)
    assert expected > 0.01
    assert loss.value.item() == pytest.approx(expected, rel=1e-4)
    assert loss.metrics == {}


@every_strength
def test_a_student_that_is_the_mixture_has_no_loss(strength: float) -> None:
    # Two models that differ in the output embedding alone: their mixed logits are those of the mixed embeddings.
    policy, aligned = attached("full", backbone("llama"), spread=0), backbone("llama").model
    noise = 0.1 * torch.randn(aligned.lm_head.weight.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        aligned.lm_head.weight += noise
        second = second_of(policy, aligned)
        policy.model.lm_head.weight += strength * noise  # type: ignore[union-attr, operator]
    batch = whole(items(policy.backbone), CODEC.pad)

    loss = Distillation(second, strength)(policy, batch).value
    with torch.no_grad():
        policy.model.lm_head.weight += noise  # type: ignore[union-attr, operator]
    elsewhere = Distillation(second, strength)(policy, batch).value

    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert elsewhere.item() > 1e-3


def test_a_model_in_a_folder_teaches_as_the_same_weights_beside_the_backbone_do(tmp_path: Path) -> None:
    policy, groups = attached("lora", backbone("gpt2")), items(backbone("gpt2"))
    aligned = Backbone("moved", moved("gpt2"), CODEC, fingerprint="moved", kind=backbone("gpt2").kind)
    taught = Distillation(OtherModel(saved(aligned, tmp_path / "aligned"), "method.aligned="), 1.5)
    taught.check_rows(CODEC, groups)

    with taught.ready(policy):
        loss = taught(policy, whole(groups, CODEC.pad)).value

    second = Distillation(second_of(policy, moved("gpt2")), 1.5)(policy, whole(groups, CODEC.pad)).value
    assert loss.item() == pytest.approx(second.item(), rel=1e-5)


def test_a_model_of_another_vocabulary_is_refused_under_the_name_of_its_key(tmp_path: Path) -> None:
    folder = saved(backbone("gpt2"), tmp_path / "aligned")
    written = json.loads((folder / "tokenizer.json").read_text())
    written["added_tokens"].append({**written["added_tokens"][0], "id": len(CODEC.tokenizer), "content": "<more>"})
    (folder / "tokenizer.json").write_text(json.dumps(written))

    with pytest.raises(ConfigError, match=rf"^method\.aligned={folder} has another vocabulary"):
        Distillation(OtherModel(folder, "method.aligned="), 1.5).check_rows(CODEC, items(backbone("gpt2")))


def test_only_the_tuner_gets_gradients_whatever_chunks_the_logits_are_made_in(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = attached("full", backbone("llama"))
    second, batch = second_of(policy, moved("llama")), whole(items(policy.backbone), CODEC.pad)
    with policy.only(learned(policy)):
        together = Distillation(second, 1.5)(policy, batch).value
        slopes = gradients(policy, together)
        monkeypatch.setattr("alignlab.models.policy.CHUNK_TOKENS", 7)
        apart = Distillation(second, 1.5)(policy, batch).value
        again = gradients(policy, apart)

    assert apart.item() == pytest.approx(together.item(), rel=1e-5)
    for name, slope in slopes.items():
        assert slope is not None
        torch.testing.assert_close(again[name], slope, atol=1e-4, rtol=1e-4)


def test_the_gradient_is_that_of_the_loss_by_autograd_over_whole_logits() -> None:
    policy, groups = attached("full", backbone("llama"), spread=0), items(backbone("llama"))
    second = second_of(policy, moved("llama"))  # as in a run: before the tuner, whose start the backbone then is, has moved
    generator, total = torch.Generator().manual_seed(3), torch.zeros(())
    with torch.no_grad():
        for parameter in learned(policy):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    with policy.only(learned(policy)):
        slopes = gradients(policy, Distillation(second, 1.5)(policy, whole(groups, CODEC.pad)).value)
        for group in groups:
            member = group.members[0]
            own_KV = policy.model(torch.tensor([member.ids])).logits[0, member.start - 1 : -1].log_softmax(-1)
            mixed_KV = 1.5 * logits(moved("llama"), group) - 0.5 * logits(backbone("llama").model, group)
            total = total + nn.functional.kl_div(mixed_KV.float().log_softmax(-1), own_KV, log_target=True, reduction="sum")
        expected = gradients(policy, total / sum(group.response_tokens for group in groups))

    for name, slope in expected.items():
        torch.testing.assert_close(slopes[name], slope, atol=1e-4, rtol=1e-4)


def test_prompts_have_no_weight_and_the_parts_of_a_step_add_up(llama: Backbone) -> None:
    policy, groups = attached("lora", llama), items(llama)
    distillation = Distillation(second_of(policy, moved("llama")), 1.5)
    tokens = sum(group.response_tokens for group in groups)
    whole_texts = [replace(group, members=tuple(replace(m, start=1) for m in group.members)) for group in groups]

    parts = [distillation(policy, collate([group], pad=CODEC.pad, step_groups=4, step_tokens=tokens)) for group in groups]

    together = distillation(policy, whole(groups, CODEC.pad)).value.item()
    assert sum(part.value.item() for part in parts) == pytest.approx(together, rel=1e-5)
    assert distillation(policy, whole(whole_texts, CODEC.pad)).value.item() != pytest.approx(together, rel=1e-2)


class InHalves:
    """An aligned model that makes each of its passes as two that count half, and counts how often it is read."""

    def __init__(self, model: Any) -> None:
        self._model, self.readings = model, 0

    def read(self, policy: Policy, batch: Batch) -> list[Pass]:
        self.readings += 1
        return [replace(each, weight=0.5 * each.weight) for each in self._model.read(policy, batch) for _ in range(2)]


def test_passes_of_the_aligned_model_keep_their_weights_and_none_is_made_that_would_count_nothing(llama: Backbone) -> None:
    policy, batch = attached("lora", llama), whole(items(llama), CODEC.pad)
    aligned = second_of(policy, moved("llama"))
    halves: Any = InHalves(aligned)

    losses = [Distillation(each, 1.5)(policy, batch).value.item() for each in (aligned, halves)]
    Distillation(halves, 0.0)(policy, batch)

    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert halves.readings == 1
