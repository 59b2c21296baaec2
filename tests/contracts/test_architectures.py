"""What holds for every architecture: it does what plain transformers does, or says in one sentence that it does not.

Right is always the plain model called row by row, without padding, cache, policy or probe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignlab.config import parse
from alignlab.data.batching import whole
from alignlab.errors import AlignlabError, ModelError
from alignlab.models.anatomy import block_list, context_of, shape_of
from alignlab.models.backbone import Backbone
from alignlab.models.config import Shape
from alignlab.models.export import export_plain
from alignlab.models.kinds import KINDS
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from alignlab.models.strength import Untuned
from alignlab.planning import make_plan
from alignlab.records import Encoded, EncodedGroup
from alignlab.tuners.config import LoraConfig
from alignlab.tuners.lora import LoraTuner, adapter
from alignlab.tuners.peft_tuner import PeftTuner
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
from tests.fuzzing import part_of

Attach = Callable[[PreTrainedModel], PeftTuner]
every_one = pytest.mark.parametrize("name", ARCHITECTURES)
every_eighth = pytest.mark.parametrize("name", part_of([*ARCHITECTURES]))
"""All of them where they are tried in bulk."""


def _text(member: Encoded) -> Encoded:
    return Encoded(member.ids, len(member.ids), target=0)


def _group(row: str, prompt: int, answers: tuple[int, int]) -> EncodedGroup:
    generator = torch.Generator().manual_seed(prompt)
    shared, *own = (torch.randint(4, 60, (tokens,), generator=generator).tolist() for tokens in (prompt, *answers))
    return EncodedGroup(row, tuple(Encoded((*shared, *ids), prompt) for ids in own))


# Rows of 9 to 22 tokens: within and beyond the windows (6) and the length at which longrope changes (16).
GROUPS = [_group("a", 5, (4, 17)), _group("b", 9, (13, 2)), _group("c", 3, (6, 8))]
TEXTS = [EncodedGroup(group.row, (_text(group.members[1]),)) for group in GROUPS]
"""Of a classifier, which reads single texts, here of 22, 11 and 11 tokens."""


def backbone(name: str) -> Backbone:
    codec: Any = SimpleNamespace(template_hash="", pad=0)
    return Backbone(name, architecture(name), codec, name, KINDS[ARCHITECTURES[name].kind].implementation())


@cache
def untuned(name: str) -> Backbone:
    return backbone(name)


@cache
def tuned(attach: Attach, name: str) -> Policy:
    made = backbone(name)
    _ = made.abilities  # tried when weights are loaded, before a tuner is there
    return Policy(made, moved(attach(made.model)), packing="all")


def _response_nats(model: nn.Module, member: Encoded) -> Tensor:
    ids_T = torch.tensor(member.ids)
    nats_TV = model(input_ids=ids_T[None], use_cache=False).logits[0].log_softmax(-1)
    return nats_TV[member.start - 1 : -1].gather(1, ids_T[member.start :, None]).mean()


def _target_nats(model: nn.Module, member: Encoded) -> Tensor:
    source_S, target_U = torch.tensor(member.ids[: member.start]), torch.tensor(member.ids[member.start :])
    read_U = torch.tensor([model.config.decoder_start_token_id, *member.ids[member.start : -1]])
    logits_UV = model(input_ids=source_S[None], decoder_input_ids=read_U[None], use_cache=False).logits[0]
    return logits_UV.log_softmax(-1).gather(1, target_U[:, None]).mean()


def _class_scores(model: nn.Module, member: Encoded) -> Tensor:
    return model(input_ids=torch.tensor(member.ids)[None]).logits[0]


def _likelihood(policy: Policy) -> Tensor:
    return policy.logprobs(whole(GROUPS, 0)).mean_GM


@dataclass(frozen=True)
class Reading:
    """What is compared of a kind: its rows, what the plain model says of one of them, and what a policy says of all."""

    groups: list[EncodedGroup]
    plain: Callable[[nn.Module, Encoded], Tensor]
    ours: Callable[[Policy], Tensor]


READINGS = {
    "causal": Reading(GROUPS, _response_nats, _likelihood),
    "seq2seq": Reading(GROUPS, _target_nats, _likelihood),
    "classifier": Reading(TEXTS, _class_scores, lambda policy: policy.class_scores(whole(TEXTS, 0))),
}


def reading(name: str) -> Reading:
    return READINGS[ARCHITECTURES[name].kind]


@torch.no_grad()
def scores(name: str, model: nn.Module, row: int) -> Tensor:
    """Nats per response token of each member, or its class scores, from the plain model."""
    read = reading(name)
    return torch.stack([read.plain(model, member) for member in read.groups[row].members])


@cache
def plain_scores(name: str) -> Tensor:
    return torch.stack([scores(name, architecture(name), row) for row in range(3)])


def lora(model: PreTrainedModel) -> PeftTuner:
    torch.manual_seed(0)
    config = LoraConfig("lora", likelihood_rate=1.0, preference_rate=1.0, rank=4, alpha=8.0, dropout=0.0, targets=[])
    return LoraTuner(model, adapter(config, model))


def red(model: PreTrainedModel) -> PeftTuner:
    """At every map of a block that writes as wide as the hidden states are."""
    within = tuple(f"{name}." for name in _stacks(model))
    places = [
        name for name, part in model.named_modules() if name.startswith(within) and _writes(part) == COMMON["hidden_size"]
    ]
    return RedTuner(model, RedConfig(target_modules=places))


def _stacks(model: PreTrainedModel) -> list[str]:
    """Names of the lists of blocks: of the encoder's too, where the decoder has one beside it."""
    own = block_list(model)[0]
    return [own, own.replace("decoder", "encoder")]


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


@every_one
@pytest.mark.parametrize("packing", ["all", "off"])
def test_log_probabilities_are_those_of_the_plain_model(packing: str, name: str) -> None:
    policy = Policy(untuned(name), Untuned(), packing=packing)

    with torch.no_grad():
        ours_GM = reading(name).ours(policy)

    torch.testing.assert_close(ours_GM, plain_scores(name), atol=1e-5, rtol=1e-6)


@every_one
@pytest.mark.parametrize("packing", ["all", "off"])
def test_hidden_states_are_those_of_the_plain_model(packing: str, name: str) -> None:
    policy, model = Policy(untuned(name), Untuned(), packing=packing), architecture(name)
    place, groups = 0 if name in HIDDEN_STATES_WITHOUT_EMBEDDINGS else 1, reading(name).groups

    with torch.no_grad():
        ours_LKD = done_or_refused("hidden states", name, lambda: policy.hidden_states(whole(groups, 0), [1]))

    if ours_LKD is not None:
        right = []
        for member in (member for group in groups for member in group.members):
            ids_1T = torch.tensor([member.ids])
            with torch.no_grad():
                listed = model(input_ids=ids_1T, use_cache=False, output_hidden_states=True).hidden_states
            right.append(listed[place][0, member.start :])
        torch.testing.assert_close(ours_LKD[0], torch.cat(right), atol=1e-5, rtol=1e-5)


@pytest.mark.fuzz
@every_eighth
@pytest.mark.parametrize(("attach", "turn"), [(lora, turn_lora), (red, turn_red)], ids=["lora", "red"])
def test_groups_of_different_strengths_are_as_each_alone(
    attach: Attach, turn: Callable[[PeftTuner, float], None], name: str
) -> None:
    made = done_or_refused(attach.__name__, name, lambda: tuned(attach, name))
    if made is not None:
        with torch.no_grad(), made.at(torch.tensor([0.0, 1.0, -0.5])):
            ours_GM = reading(name).ours(made)

        against, level = moved(attach(architecture(name))), moved(attach(architecture(name)))
        turn(against, -0.5)
        turn(level, 0.0)
        expected = [scores(name, level.module, 0), scores(name, made.model, 1), scores(name, against.module, 2)]
        torch.testing.assert_close(ours_GM, torch.stack(expected), atol=1e-5, rtol=1e-6)
        assert not torch.allclose(expected[1], scores(name, level.module, 1), atol=1e-3)


@every_one
@pytest.mark.parametrize("attach", [lora, red], ids=["lora", "red"])
def test_switched_off_it_is_the_plain_model(attach: Attach, name: str) -> None:
    made = done_or_refused(attach.__name__, name, lambda: tuned(attach, name))
    if made is not None:
        with torch.no_grad(), made.off():
            ours_GM = reading(name).ours(made)

        torch.testing.assert_close(ours_GM, plain_scores(name), atol=1e-5, rtol=1e-6)


@pytest.mark.fuzz
@every_eighth
@pytest.mark.parametrize("attach", [lora, red], ids=["lora", "red"])
def test_saved_and_read_back_the_logits_have_the_same_bits(attach: Attach, name: str, tmp_path: Path) -> None:
    made = done_or_refused(attach.__name__, name, lambda: tuned(attach, name))
    if made is not None:
        made.tuner.save(tmp_path)
        again = attach(architecture(name))
        again.load(tmp_path)

        for row in range(3):
            assert torch.equal(scores(name, again.module, row), scores(name, made.model, row))
        assert not torch.allclose(scores(name, again.module, 0), plain_scores(name)[0], atol=1e-3)


@pytest.mark.fuzz
@every_eighth
@pytest.mark.parametrize("attach", [lora, red], ids=["lora", "red"])
def test_merged_and_read_back_as_a_plain_model_it_answers_the_same(attach: Attach, name: str, tmp_path: Path) -> None:
    made = done_or_refused(attach.__name__, name, lambda: tuned(attach, name))
    if made is not None:
        folder = tmp_path / "plain"
        merged = f"{attach.__name__} merge"

        done_or_refused(merged, name, lambda: export_plain(made.tuner.module, None, folder))

        if name not in REFUSED[merged]:
            plain = made.backbone.kind.auto.from_pretrained(folder).eval()
            right = torch.stack([scores(name, made.tuner.module, row) for row in range(3)])
            read = torch.stack([scores(name, plain, row) for row in range(3)])
            torch.testing.assert_close(read, right, atol=1e-5, rtol=1e-6)


@every_one
def test_rows_are_laid_into_one_unless_the_table_has_a_reason(name: str) -> None:
    policy = Policy(untuned(name), Untuned(), packing="all")

    reason = REFUSED["one row"].get(name, "")

    assert reason in policy.backbone.abilities.packed
    assert bool(reason) == bool(policy.backbone.abilities.packed)
    assert reason in policy.layout_reason


@pytest.mark.parametrize("name", REFUSED["generation"])
def test_generation_behind_a_cache_that_is_not_right_is_refused(name: str) -> None:
    policy = Policy(untuned(name), Untuned())

    with pytest.raises(ModelError, match=REFUSED["generation"][name]):
        policy.respond(["a"], sampling=Sampling(4, 0.0, 1.0), seed=0)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in REFUSED["generation"]])
def test_a_step_behind_the_cache_is_the_full_pass(name: str) -> None:
    assert untuned(name).cache_objection == ""


@pytest.mark.parametrize("name", ["opt", "bloom", "mpt", "mamba", "llama4", "gemma3", "falcon_h1"])
def test_a_run_is_planned_or_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    config = configured(name)
    config.get_text_config().vocab_size = len(CODEC.tokenizer)
    config.save_pretrained(tmp_path)
    CODEC.tokenizer.save_pretrained(tmp_path)
    save_file({}, tmp_path / "model.safetensors")  # a plan reads no weights, but refuses a folder that has none
    attention = "model.attention=eager"  # some of them have no other
    words = (
        "tuner=lora",
        "model=local",
        f"model.path={tmp_path}",
        attention,
        "data.max_tokens=64",
        "data.too_long=cut_prompt_left",
    )

    planned = done_or_refused("lora plan", name, lambda: make_plan(parse(composed(tmp_path, "dpo", *words))))

    assert planned is None or planned.learned > 0


@every_one
def test_a_plan_needs_no_weights(name: str) -> None:
    with torch.device("meta"):
        model = KINDS[ARCHITECTURES[name].kind].implementation().auto.from_config(configured(name))

    shape = done_or_refused("plan", name, lambda: shape_of(model))

    assert shape is None or shape == Shape(len(block_list(architecture(name))[1]), COMMON["hidden_size"])
    assert context_of(model) >= COMMON["max_position_embeddings"]
