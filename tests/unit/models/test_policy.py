"""The verbs of a policy: hidden states, answers at a strength, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignlab.errors import ConfigError, ControlError
from alignlab.models.anatomy import block_list
from alignlab.models.backbone import Backbone
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from alignlab.models.strength import NOTHING, ONE_PASS, HasStrength, Strength, WeightedPass
from alignlab.records import Batch
from tests.conftest import backbone
from tests.unit.conftest import PAIRS, attached, batch_of, learned, plain

every_backbone = pytest.mark.parametrize("kind", ["llama", "gpt2"])
both_ways = pytest.mark.parametrize("sampling", [Sampling(8, 0.0, 1.0), Sampling(8, 1.0, 0.9)], ids=["greedy", "sampled"])
GREEDY = Sampling(8, 0.0, 1.0)
PROMPTS = [prompt for prompt, _, _ in PAIRS]
STRENGTHS = [-1.0, 0.0, 0.5, 2.0]


class Mixing:
    """s * tuned + (1 - s) * plain at the logits, by two passes."""

    per_row = True
    controls = None
    inserted = NOTHING
    default_passes = ONE_PASS
    edits_head = False

    def __init__(self, inner: HasStrength) -> None:
        self._inner = inner

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        return (WeightedPass(strength, 1.0), WeightedPass(1 - strength, 0.0))

    def at(self, setting: Strength) -> AbstractContextManager[None]:
        return self._inner.at(setting)

    def off(self) -> AbstractContextManager[None]:
        return self._inner.off()


def expected_hidden(policy: Policy, batch: Batch, layer: int) -> Tensor:
    """transformers' own hidden states at the response tokens, member by member."""
    members = zip(batch.ids_GMT.flatten(0, 1), batch.start_GM.flatten(), batch.length_GM.flatten(), strict=True)
    outputs = [
        policy.model(ids_T[None, :length], output_hidden_states=True).hidden_states[layer][0, start:]
        for ids_T, start, length in members
    ]
    return torch.cat(outputs)


def greedy_mixture(policy: Policy, prompt: str, strength: float, steps: int) -> str:
    """Two passes over the whole text at every step, mixed by hand; no cache, no padding."""
    codec = policy.backbone.codec
    (start,) = codec.prompts([prompt])
    ids = list(start)
    for _ in range(steps):
        with policy.tuner.at(1.0):
            tuned_V = policy.model(torch.tensor([ids])).logits[0, -1]
        with policy.tuner.at(0.0):
            plain_V = policy.model(torch.tensor([ids])).logits[0, -1]
        ids.append(int((strength * tuned_V + (1 - strength) * plain_V).argmax()))
    new = ids[len(start) :]
    return codec.decode(new[: (*new, codec.eos).index(codec.eos)])


def counter(calls: list[int], number: int) -> Callable[..., None]:
    return lambda *_: calls.append(number)


@every_backbone
@pytest.mark.parametrize("shared_prefix", [True, False])
def test_hidden_states_are_those_of_transformers_at_the_response_tokens(kind: str, shared_prefix: bool) -> None:
    policy = plain(backbone(kind))
    policy.packing = "pairs" if shared_prefix else "off"
    batch = batch_of(policy.backbone)

    states = policy.hidden_states(batch, [1, 2])

    for found, layer in zip(states, [1, 2], strict=True):
        torch.testing.assert_close(found, expected_hidden(policy, batch, layer), atol=1e-5, rtol=1e-5)


def test_hidden_states_follow_the_strength(llama: Backbone) -> None:
    policy = attached("lora", llama)
    batch = batch_of(llama)

    with policy.at(0.0):
        at_zero = policy.hidden_states(batch, [2])
    with policy.off():
        off = policy.hidden_states(batch, [2])

    assert torch.equal(at_zero, off)
    assert not torch.equal(policy.hidden_states(batch, [2]), off)


@every_backbone
def test_no_block_above_the_highest_layer_is_run(kind: str) -> None:
    policy = plain(backbone(kind))
    _, blocks = block_list(policy.backbone.trunk)
    calls: list[int] = []
    for number, block in enumerate(blocks, start=1):
        block.register_forward_hook(counter(calls, number))

    policy.hidden_states(batch_of(policy.backbone), [2, 1])

    assert calls == [1, 2]


def test_after_hidden_states_the_model_is_whole_again_and_holds_no_hook(llama: Backbone) -> None:
    policy = plain(llama)
    batch = batch_of(llama)
    before = policy.logprobs(batch).total_GM

    policy.hidden_states(batch, [1])

    assert torch.equal(policy.logprobs(batch).total_GM, before)
    assert not any(module._forward_hooks for module in policy.model.modules())


@pytest.mark.parametrize("layers", [[0], [4], [1, -1], []])
def test_a_layer_that_does_not_exist_is_refused(llama: Backbone, layers: list[int]) -> None:
    policy = plain(llama)
    batch = batch_of(llama)

    with pytest.raises(ConfigError, match="do not fit 3 blocks; choose numbers from 1 to 3"):
        policy.hidden_states(batch, layers)


def test_hidden_states_of_a_mixture_are_refused(llama: Backbone) -> None:
    policy = Policy(llama, Mixing(attached("lora", llama).tuner))
    batch = batch_of(llama)

    with policy.at(0.5), pytest.raises(ControlError, match="mixture of passes"):
        policy.hidden_states(batch, [1])


@every_backbone
def test_greedy_answers_are_those_of_transformers(kind: str) -> None:
    policy = plain(backbone(kind))
    codec = policy.backbone.codec
    expected = [
        codec.decode(policy.model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist())
        for ids in codec.prompts(PROMPTS)
    ]

    answers = policy.respond(PROMPTS, sampling=GREEDY, seed=0)

    assert answers == expected
    assert len(set(answers)) > 1


@every_backbone
@both_ways
def test_answers_do_not_depend_on_the_batch_they_ran_in(kind: str, sampling: Sampling) -> None:
    policy = plain(backbone(kind))
    together = policy.respond(PROMPTS, sampling=sampling, seed=0)

    policy.budget = replace(policy.budget, gib=1e-9)  # one text takes more
    alone = policy.respond(PROMPTS, sampling=sampling, seed=0)

    assert alone == together


@pytest.mark.parametrize("tuner", ["lora", "red", "full"])
@both_ways
def test_one_strength_per_prompt_equals_a_run_at_each_strength(llama: Backbone, tuner: str, sampling: Sampling) -> None:
    policy = attached(tuner, llama)
    prompts = ["Tell a story."] * 4

    mixed = policy.respond(prompts, strength=STRENGTHS, sampling=sampling, seed=0)

    runs = [policy.respond(prompts, strength=strength, sampling=sampling, seed=0) for strength in STRENGTHS]
    assert mixed == [run[place] for place, run in enumerate(runs)]
    assert len(set(mixed)) > 1


def test_strength_one_is_the_default(llama: Backbone) -> None:
    policy = attached("lora", llama)

    answers = policy.respond(PROMPTS, sampling=GREEDY, seed=0)

    assert answers == policy.respond(PROMPTS, strength=1, sampling=GREEDY, seed=0)


def test_the_same_seed_gives_the_same_texts_and_another_seed_others(llama: Backbone) -> None:
    policy = plain(llama)
    sampling = Sampling(8, 1.0, 1.0)

    first, again, other = (policy.respond(PROMPTS, sampling=sampling, seed=seed) for seed in (5, 5, 6))

    assert again == first
    assert other != first


def test_sampling_leaves_the_global_random_state_alone(llama: Backbone) -> None:
    policy = plain(llama)
    before = torch.get_rng_state()

    policy.respond(PROMPTS, sampling=Sampling(4, 1.0, 1.0), seed=5)

    assert torch.equal(torch.get_rng_state(), before)


def test_a_tiny_top_p_is_greedy(llama: Backbone) -> None:
    policy = plain(llama)

    sampled = policy.respond(PROMPTS, sampling=Sampling(8, 1.0, 1e-9), seed=0)

    assert sampled == policy.respond(PROMPTS, sampling=GREEDY, seed=0)


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0, -1.0])
def test_two_passes_are_mixed_at_the_logits_of_every_token(llama: Backbone, strength: float) -> None:
    policy = Policy(llama, Mixing(attached("lora", llama).tuner))
    expected = [greedy_mixture(policy, prompt, strength, steps=8) for prompt in PROMPTS]

    answers = policy.respond(PROMPTS, strength=strength, sampling=GREEDY, seed=0)

    assert answers == expected


def test_a_mixture_takes_one_strength_per_prompt(llama: Backbone) -> None:
    policy = Policy(llama, Mixing(attached("lora", llama).tuner))
    expected = [greedy_mixture(policy, prompt, s, steps=8) for prompt, s in zip(PROMPTS, STRENGTHS, strict=True)]

    answers = policy.respond(PROMPTS, strength=STRENGTHS, sampling=GREEDY, seed=0)

    assert answers == expected


def test_log_probabilities_of_a_mixture_are_those_of_the_mixed_logits(llama: Backbone) -> None:
    policy = Policy(llama, Mixing(attached("lora", llama).tuner))
    batch = batch_of(llama, [("Tell a story.", "Tom.", "Tom fell.")])
    ids_T, start, length = batch.ids_GMT[0, 0], int(batch.start_GM[0, 0]), int(batch.length_GM[0, 0])
    with policy.tuner.at(1.0):
        tuned_TV = policy.model(ids_T[None, :length]).logits[0]
    with policy.tuner.at(0.0):
        plain_TV = policy.model(ids_T[None, :length]).logits[0]

    with policy.at(1.5):
        found = policy.logprobs(batch).total_GM[0, 0]

    mixed_TV = (1.5 * tuned_TV - 0.5 * plain_TV).log_softmax(-1)
    expected = sum(mixed_TV[place - 1, ids_T[place]] for place in range(start, length))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_an_answer_ends_before_eos(llama: Backbone) -> None:
    policy = plain(llama)
    llama.model.lm_head.weight.data.zero_()
    llama.model.lm_head.bias = nn.Parameter(torch.zeros(llama.model.config.vocab_size))
    llama.model.lm_head.bias.data[llama.codec.eos] = 1.0

    answers = policy.respond(PROMPTS, sampling=GREEDY, seed=0)

    assert answers == [""] * 4


def test_no_prompts_are_no_answers(llama: Backbone) -> None:
    assert plain(llama).respond([], sampling=GREEDY, seed=0) == []


@pytest.mark.parametrize(
    ("strength", "sentence"),
    [
        ([1.0, 2.0], "2 strengths were given for 4 prompts"),
        (math.nan, "not finite"),
        ([1.0, 1.0, math.inf, 1.0], "not finite"),
        ("1111", "not a number or a list of numbers"),
        ({1.0, 2.0, 3.0, 4.0}, "not a number or a list of numbers"),
        (None, "not a number or a list of numbers"),
        ([[1.0]] * 4, "not a number or a list of numbers"),
    ],
)
def test_strengths_that_cannot_be_honoured_are_refused(
    llama: Backbone, strength: float | Sequence[float], sentence: str
) -> None:
    policy = attached("lora", llama)

    with pytest.raises(ControlError, match=sentence):
        policy.respond(PROMPTS, strength=strength, sampling=GREEDY, seed=0)


@pytest.mark.parametrize("strength", [torch.tensor(1.0), torch.ones(4), (1, 1, 1, 1)], ids=["0-d", "tensor", "tuple"])
def test_strengths_may_come_as_tensors_and_whole_numbers(llama: Backbone, strength: Any) -> None:
    policy = attached("lora", llama)

    assert policy.respond(PROMPTS, strength=strength, sampling=GREEDY, seed=0) == policy.respond(
        PROMPTS, strength=1.0, sampling=GREEDY, seed=0
    )


@pytest.mark.parametrize("tuner", ["lora", "red", "clm", "dera"])
@pytest.mark.parametrize("strength", [math.nan, torch.tensor([0.0, math.inf, 1.0, 1.0])], ids=["nan", "inf in one row"])
def test_a_context_at_a_strength_that_is_not_finite_is_refused(llama: Backbone, tuner: str, strength: Any) -> None:
    policy = attached(tuner, llama)

    with pytest.raises(ControlError, match="not finite"), policy.at(strength):
        pass


@pytest.mark.parametrize("tuner", ["lora", "red", "clm", "dera"])
@pytest.mark.parametrize("count", [2, 9])
def test_strengths_of_another_number_than_the_groups_are_refused(llama: Backbone, tuner: str, count: int) -> None:
    policy = attached(tuner, llama)
    batch = batch_of(llama)

    with (
        pytest.raises(ControlError, match=f"{count} strengths were given for a batch of {len(batch.ids_GMT)} groups"),
        policy.at(torch.linspace(0, 1, count)),
    ):
        policy.logprobs(batch)


def test_a_prompt_that_leaves_no_room_is_refused_and_one_token_fewer_is_answered(llama: Backbone) -> None:
    policy = plain(llama)
    (ids,) = llama.codec.prompts(["Tell a story."])
    room = llama.context - len(ids)

    answers = policy.respond(["Tell a story."], sampling=Sampling(room, 0.0, 1.0), seed=0)

    assert len(answers) == 1
    with pytest.raises(ConfigError, match=rf"'Tell a story.' has {len(ids)} tokens and {room + 1} are to follow"):
        policy.respond(["Tell a story."], sampling=Sampling(room + 1, 0.0, 1.0), seed=0)


def test_only_gives_gradients_to_the_chosen_parameters_and_puts_the_rest_back(llama: Backbone) -> None:
    policy = attached("lora", llama)
    before = [parameter.requires_grad for parameter in policy.model.parameters()]
    chosen = learned(policy)[:1]

    with policy.only(chosen):
        inside = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]

    assert [id(parameter) for parameter in inside] == [id(parameter) for parameter in chosen]
    assert [parameter.requires_grad for parameter in policy.model.parameters()] == before


def test_contexts_are_left_by_errors_too(llama: Backbone) -> None:
    policy = attached("lora", llama)
    batch = batch_of(llama)
    before = policy.logprobs(batch).total_GM

    with pytest.raises(ZeroDivisionError), policy.only([]), policy.at(0.3), policy.off():
        _ = 1 / 0

    assert torch.equal(policy.logprobs(batch).total_GM, before)
    assert all(parameter.requires_grad for parameter in learned(policy))
