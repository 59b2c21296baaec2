"""What holds for every architecture: it does what plain transformers does, or says in one sentence that it does not.

Right is always the plain model called row by row, without padding, cache, policy or probe.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignlab.config import parse
from alignlab.data.batching import whole
from alignlab.errors import AlignlabError, ModelError
from alignlab.models.anatomy import block_list, context_of, shape_of
from alignlab.models.backbone import Backbone
from alignlab.models.export import export_plain
from alignlab.models.kinds import KINDS
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from alignlab.models.strength import Strength, WeightedPass
from alignlab.planning import make_plan
from alignlab.records import Encoded, EncodedGroup
from alignlab.tuners.lora import LoraTuner
from alignlab.tuners.peft_tuner import PeftTuner, stores_transposed
from alignlab.tuners.red import RedConfig
from alignlab.tuners.red.tuner import RedTuner
from tests.conftest import CODEC
from tests.contracts.architectures import (
    ARCHITECTURES,
    COMMON,
    HIDDEN_STATES_WITHOUT_EMBEDDINGS,
    REFUSED,
    architecture,
    configured,
)
from tests.contracts.test_methods import composed

CAUSAL = [name for name, row in ARCHITECTURES.items() if row.kind == "causal"]
Attach = Callable[[PreTrainedModel], PeftTuner]
every_causal = pytest.mark.parametrize("name", CAUSAL)


def _group(row: str, prompt: int, answers: tuple[int, int]) -> EncodedGroup:
    generator = torch.Generator().manual_seed(prompt)
    shared, *own = (torch.randint(4, 60, (tokens,), generator=generator).tolist() for tokens in (prompt, *answers))
    return EncodedGroup(row, tuple(Encoded((*shared, *ids), prompt) for ids in own))


# Rows of 9 to 22 tokens: within and beyond the windows (6) and the length at which longrope changes (16).
GROUPS = [_group("a", 5, (4, 17)), _group("b", 9, (13, 2)), _group("c", 3, (6, 8))]
BATCH = whole(GROUPS, 0)


class Untuned0:
    """Nothing is attached."""

    per_row = False
    controls = None

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        return (WeightedPass(1.0, 1.0),)

    def at(self, setting: Strength) -> AbstractContextManager[None]:
        return nullcontext()

    def off(self) -> AbstractContextManager[None]:
        return nullcontext()


def backbone(name: str) -> Backbone:
    codec: Any = SimpleNamespace(template_hash="", pad=0)
    return Backbone(name, architecture(name), codec, name, KINDS["causal"].implementation())


@cache
def untuned(name: str) -> Backbone:
    return backbone(name)


@cache
def tuned(attach: Attach, name: str) -> Policy:
    made = backbone(name)
    _ = made.abilities  # tried when weights are loaded, before a tuner is there
    return Policy(made, moved(attach(made.model)), packing="all")


@torch.no_grad()
def scores(model: nn.Module, group: EncodedGroup) -> Tensor:
    """Nats per response token of each member, from the plain model."""
    found = []
    for member in group.members:
        ids_T = torch.tensor(member.ids)
        nats_TV = model(input_ids=ids_T[None], use_cache=False).logits[0].log_softmax(-1)
        found.append(nats_TV[member.start - 1 : -1].gather(1, ids_T[member.start :, None]).mean())
    return torch.stack(found)


@cache
def plain_scores(name: str) -> Tensor:
    return torch.stack([scores(architecture(name), group) for group in GROUPS])


def lora(model: PreTrainedModel) -> PeftTuner:
    torch.manual_seed(0)
    transposed = stores_transposed(model)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=transposed)
    return LoraTuner(model, config)


def red(model: PreTrainedModel) -> PeftTuner:
    """At every map of a block that writes as wide as the hidden states are."""
    within, width = f"{block_list(model)[0]}.", COMMON["hidden_size"]
    places = [name for name, part in model.named_modules() if name.startswith(within) and _writes(part) == width]
    return RedTuner(model, RedConfig(task_type="CAUSAL_LM", target_modules=places))


def _writes(part: nn.Module) -> int | None:
    linear = part.out_features if isinstance(part, nn.Linear) else None
    return part.nf if isinstance(part, Conv1D) else linear


def moved(tuner: PeftTuner) -> PeftTuner:
    generator = torch.Generator().manual_seed(1)
    for parameter in tuner.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return tuner


def turn_lora(tuner: PeftTuner, strength: float) -> None:
    for layer in tuner.layers:
        layer.scale_layer(strength)


def turn_red(tuner: PeftTuner, strength: float) -> None:
    for layer in tuner.layers:
        for edit in layer.red_edit.values():
            edit.scale.data = 1 + strength * (edit.scale.data - 1)
            edit.shift.data = strength * edit.shift.data


def done_or_refused(what: str, name: str, does: Callable[[], Any]) -> Any:
    """What comes out; None where the table has a sentence, which then is what has to come."""
    sentence = REFUSED.get(what, {}).get(name)
    if sentence is None:
        return does()
    with pytest.raises(AlignlabError, match=sentence):
        does()
    return None


@every_causal
@pytest.mark.parametrize("packing", ["all", "off"])
def test_log_probabilities_are_those_of_the_plain_model(packing: str, name: str) -> None:
    policy = Policy(untuned(name), Untuned0(), packing=packing)

    with torch.no_grad():
        ours_GM = policy.logprobs(BATCH).mean_GM

    torch.testing.assert_close(ours_GM, plain_scores(name), atol=1e-5, rtol=1e-6)


@every_causal
@pytest.mark.parametrize("packing", ["all", "off"])
def test_hidden_states_are_those_of_the_plain_model(packing: str, name: str) -> None:
    policy, model = Policy(untuned(name), Untuned0(), packing=packing), architecture(name)
    place = 0 if name in HIDDEN_STATES_WITHOUT_EMBEDDINGS else 1

    with torch.no_grad():
        ours_KD = policy.hidden_states(BATCH, [1])[0]

    right = []
    for member in (member for group in GROUPS for member in group.members):
        ids_1T = torch.tensor([member.ids])
        with torch.no_grad():
            listed = model(input_ids=ids_1T, use_cache=False, output_hidden_states=True).hidden_states
        right.append(listed[place][0, member.start :])
    torch.testing.assert_close(ours_KD, torch.cat(right), atol=1e-5, rtol=1e-5)


@every_causal
@pytest.mark.parametrize(("attach", "turn"), [(lora, turn_lora), (red, turn_red)], ids=["lora", "red"])
def test_groups_of_different_strengths_are_as_each_alone(
    attach: Attach, turn: Callable[[PeftTuner, float], None], name: str
) -> None:
    made = done_or_refused(attach.__name__, name, lambda: tuned(attach, name))
    if made is not None:
        with torch.no_grad(), made.at(torch.tensor([0.0, 1.0, -0.5])):
            ours_GM = made.logprobs(BATCH).mean_GM

        turned = moved(attach(architecture(name)))
        turn(turned, -0.5)
        off, on, against = plain_scores(name)[0], scores(made.model, GROUPS[1]), scores(turned.module, GROUPS[2])
        torch.testing.assert_close(ours_GM, torch.stack([off, on, against]), atol=1e-5, rtol=1e-6)
        assert not torch.allclose(on, plain_scores(name)[1], atol=1e-3)


@every_causal
@pytest.mark.parametrize("attach", [lora, red], ids=["lora", "red"])
def test_saved_and_read_back_the_logits_have_the_same_bits(attach: Attach, name: str, tmp_path: Path) -> None:
    made = done_or_refused(attach.__name__, name, lambda: tuned(attach, name))
    if made is not None:
        made.tuner.save(tmp_path)
        again = attach(architecture(name))
        again.load(tmp_path)

        for group in GROUPS:
            assert torch.equal(scores(again.module, group), scores(made.model, group))
        assert not torch.allclose(scores(again.module, GROUPS[0]), plain_scores(name)[0], atol=1e-3)


@every_causal
@pytest.mark.parametrize("attach", [lora, red], ids=["lora", "red"])
def test_merged_and_read_back_as_a_plain_model_it_answers_the_same(attach: Attach, name: str, tmp_path: Path) -> None:
    made = done_or_refused(attach.__name__, name, lambda: tuned(attach, name))
    if made is not None:
        folder = tmp_path / "plain"
        merged = f"{attach.__name__} merge"

        done_or_refused(merged, name, lambda: export_plain(made.tuner.module, None, folder))

        if name not in REFUSED[merged]:
            plain = KINDS["causal"].implementation().auto.from_pretrained(folder).eval()
            right = torch.stack([scores(made.tuner.module, group) for group in GROUPS])
            read = torch.stack([scores(plain, group) for group in GROUPS])
            torch.testing.assert_close(read, right, atol=1e-5, rtol=1e-6)


@every_causal
def test_rows_are_laid_into_one_unless_the_table_has_a_reason(name: str) -> None:
    policy = Policy(untuned(name), Untuned0(), packing="all")

    reason = REFUSED["one row"].get(name, "")

    assert reason in policy.backbone.abilities.packed
    assert bool(reason) == bool(policy.backbone.abilities.packed)
    assert reason in policy.layout_reason


@pytest.mark.parametrize("name", REFUSED["generation"])
def test_generation_behind_a_cache_that_is_not_right_is_refused(name: str) -> None:
    policy = Policy(untuned(name), Untuned0())

    with pytest.raises(ModelError, match=REFUSED["generation"][name]):
        policy.respond(["a"], sampling=Sampling(4, 0.0, 1.0), seed=0)


@pytest.mark.parametrize("name", [name for name in CAUSAL if name not in REFUSED["generation"]])
def test_a_step_behind_the_cache_is_the_full_pass(name: str) -> None:
    assert untuned(name).cache_objection == ""


@pytest.mark.parametrize("name", ["opt", "bloom", "mpt", "mamba", "llama4", "gemma3", "falcon_h1"])
def test_a_run_is_planned_or_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    configured(name).save_pretrained(tmp_path)
    CODEC.tokenizer.save_pretrained(tmp_path)
    words = ("tuner=lora", "model=local", f"model.path={tmp_path}", "data.max_tokens=64", "data.too_long=cut_prompt_left")

    planned = done_or_refused("lora plan", name, lambda: make_plan(parse(composed(tmp_path, "dpo", *words))))

    assert planned is None or planned.learned > 0


@every_causal
def test_a_plan_needs_no_weights(name: str) -> None:
    with torch.device("meta"):
        model = KINDS["causal"].implementation().auto.from_config(configured(name))

    assert shape_of(model).width == COMMON["hidden_size"]
    assert shape_of(model).blocks == len(block_list(architecture(name))[1])
    assert context_of(model) >= COMMON["max_position_embeddings"]
