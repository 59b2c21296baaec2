"""The token bank: which vectors a text gets, what they change, what learns, and how it is saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from alignlab.data.batching import whole
from alignlab.errors import ConfigError, ControlError, ModelError
from alignlab.models.backbone import Backbone
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from alignlab.models.strength import Untuned
from alignlab.records import EncodedGroup, Example
from alignlab.training.trainable import THE_TUNER, PartSettings, training
from alignlab.tuners.config import RETRIEVALS, TokenBankTunerConfig
from alignlab.tuners.token_bank import TokenBank, TokenBankConfig
from alignlab.tuners.token_bank.tuner import TokenBankTuner, build
from tests.conftest import backbone as causal
from tests.contracts.kinds import Made, backbone

T5 = Made("seq2seq", "t5")
CONFIG = TokenBankTunerConfig(
    name="token_bank",
    likelihood_rate=0.3,
    preference_rate=0.3,
    tokens=12,
    retrieved=4,
    length=3,
    retrieval="max",
    masked=True,
    padded_to=None,
    draw_seed=0,
    bank_ids=[10, 300],
    prompt_ids=[10, 300],
    placeholders=None,
    bank_from=None,
    prompt_from=None,
)
STORIES = (("Tell a story about Tom and a kite.", "Tom was happy."), ("Tell.", "A dog slept by the barn."))
ONLY_TASK = {"tuner.task": PartSettings()}
ONLY_BANK = {"tuner.bank": PartSettings()}
FROZEN_BANK = {"tuner": PartSettings(learning_rate=0.0), "tuner.task": PartSettings()}


def policy(made: Backbone | None = None, **changes: Any) -> Policy:
    """A random T5 with a bank whose vectors are as large as its embeddings."""
    own = made or backbone(T5)
    torch.manual_seed(0)
    return Policy(own, build(replace(CONFIG, **changes), own.model))


def tuner_in(of: Policy) -> TokenBankTuner:
    assert isinstance(of.tuner, TokenBankTuner)
    return of.tuner


def groups(of: Policy, stories: tuple[tuple[str, str], ...] = STORIES) -> list[EncodedGroup]:
    encoded = of.backbone.codec.examples([Example(*story) for story in stories], ["row"] * len(stories))
    return [EncodedGroup(f"row {place}", (each,)) for place, each in enumerate(encoded)]


def scores(of: Policy, of_groups: list[EncodedGroup]) -> Tensor:
    with torch.no_grad():
        return of.logprobs(whole(of_groups, of.backbone.codec.pad)).total_GM


def sources(of: Policy, width: int = 0) -> Tensor:
    rows = [list(group.members[0].ids[: group.members[0].start]) for group in groups(of)]
    longest = max(*map(len, rows), width)
    return torch.tensor([row + [of.backbone.codec.pad] * (longest - len(row)) for row in rows])


def by_hand(retrieval: str) -> tuple[Tensor, Tensor]:
    """What X = ((1, 0), (0, 2)) gets of the bank (1, 0), (0, 1), (1, 1), (-1, 0); id 9 is padding, of embedding (9, 9)."""
    embedding = nn.Embedding(10, 2)
    made = TokenBank(
        embedding, TokenBankConfig(tokens=4, retrieved=2, length=1, retrieval=retrieval, placeholders=[7, 8], pad=9)
    )
    with torch.no_grad():
        made.get_parameter("bank").copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 0]]))
    text_1T, embedded_1TD = torch.tensor([[1, 2, 9]]), torch.tensor([[[1.0, 0], [0, 2], [9, 9]]])
    return made.chosen(text_1T, embedded_1TD, torch.ones(1, 3, dtype=torch.bool))


def test_the_best_two_of_four_vectors_stand_in_the_order_of_their_numbers() -> None:
    index, vectors = by_hand("max")

    assert index.tolist() == [[1, 2]]  # q = (1, 2), so the scores are 1, 2, 3, -1
    assert vectors.tolist() == [[[0, 1], [1, 1]]]


def test_the_mean_of_the_positions_asks_likewise() -> None:
    assert by_hand("average")[0].tolist() == [[1, 2]]  # q = (0.5, 1), so the scores are 0.5, 1, 1.5, -0.5


def test_positions_with_the_best_scores_get_mixtures() -> None:
    index, vectors = by_hand("soft")

    e, f = torch.tensor([1.0, 0, 1, -1]).softmax(0), torch.tensor([0.0, 2, 2, 0]).softmax(0)
    assert torch.allclose(vectors[0, 0], torch.stack([e[0] + e[2] - e[3], e[1] + e[2]]))
    assert torch.allclose(vectors[0, 1], torch.stack([f[0] + f[2] - f[3], f[1] + f[2]]))
    assert index.tolist() == [[0, 1]]


def test_placeholders_are_the_same_as_embeddings_in_front_of_the_text() -> None:
    tuned = policy()
    tuner, model = tuner_in(tuned), tuned.backbone.model
    ids_RS = sources(tuned)
    real_RS = (ids_RS != tuned.backbone.codec.pad).long()
    embed = tuner.layer.base_layer
    chosen_RKD = tuner.parts()["bank"][0][tuner.selected(ids_RS)]
    embedded = torch.cat([chosen_RKD, tuner.parts()["task"][0].expand(2, -1, -1), embed(ids_RS)], 1)
    mask = torch.cat([torch.ones(2, 7, dtype=torch.long), real_RS], 1)
    decoder = torch.tensor([[0, 5, 6], [0, 7, 8]])

    placed = torch.cat([torch.tensor([tuner.passes(1.0)[0].prefix.ids] * 2), ids_RS], 1)
    with torch.no_grad():
        ours = model(input_ids=placed, attention_mask=mask, decoder_input_ids=decoder).logits
        plain = model(inputs_embeds=embedded, attention_mask=mask, decoder_input_ids=decoder).logits
        said = model.generate(inputs_embeds=embedded, attention_mask=mask, max_new_tokens=6, do_sample=False)

    assert torch.equal(ours, plain)
    prompts = [prompt for prompt, _ in STORIES]
    answers = tuned.respond(prompts, sampling=Sampling(6, 0.0, 1.0), seed=0)
    assert answers == [tuned.backbone.codec.decode(row) for row in said[:, 1:].tolist()]


def test_a_batch_of_mixed_texts_is_its_texts_one_by_one() -> None:
    tuned = policy()
    every = groups(tuned)

    together = scores(tuned, every)

    alone = torch.cat([scores(tuned, [group]) for group in every])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(("masked", "same"), [(True, True), (False, False)])
def test_more_padding_changes_nothing_unless_it_is_read(masked: bool, same: bool) -> None:
    short, padded = policy(masked=masked), policy(masked=masked, padded_to=None if masked else 60)

    kept = torch.equal(tuner_in(short).selected(sources(short)), tuner_in(short).selected(sources(short, 60)))

    longer = ("Tell a long, long, long story about Tom and a kite and a drum and a bell.", "Tom was happy.")
    beside = scores(short, groups(short, (longer, STORIES[1])))[1] if masked else scores(padded, groups(padded))[1]
    assert torch.allclose(scores(short, groups(short))[1], beside, atol=1e-6) is same
    assert kept or not same


@pytest.mark.parametrize(
    ("trains", "learning"),
    [(THE_TUNER, {"bank", "task"}), (ONLY_BANK, {"bank"}), (ONLY_TASK, {"task"}), (FROZEN_BANK, {"task"})],
)
def test_gradients_reach_the_chosen_vectors_alone(trains: Any, learning: set[str]) -> None:
    tuned = policy()
    tuner = tuner_in(tuned)
    with training(tuned, trains) as parts, tuned.only(parts.parameters()):
        tuned.nll(whole(groups(tuned), tuned.backbone.codec.pad)).value.backward()

    chosen = set(tuner.selected(sources(tuned)).flatten().tolist()) if "bank" in tuner.table.present else set()
    gradients = {name: parameter.grad for name, (parameter, *_) in tuner.parts().items()}
    moved = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    assert set(moved) == learning
    assert not [name for name, each in tuned.model.named_parameters() if each.grad is not None and "tpt_" not in name]
    if "bank" in learning:
        assert set(moved["bank"].abs().sum(1).nonzero().flatten().tolist()) == chosen


@pytest.mark.parametrize("retrieval", [each for each in RETRIEVALS if each != "none"])
def test_every_retrieval_is_the_same_for_a_text_in_any_batch(retrieval: str) -> None:
    tuned = policy(retrieval=retrieval)
    ids_RS = sources(tuned)

    both = tuner_in(tuned).selected(ids_RS)

    length = int((ids_RS[1] != tuned.backbone.codec.pad).sum())
    assert tuner_in(tuned).selected(ids_RS[1:, :length]).tolist() == both[1:].tolist()
    assert both.shape == (2, 4)


def test_random_draws_depend_on_the_seed() -> None:
    drawn = [tuner_in(policy(retrieval="random", draw_seed=seed)).selected(sources(policy())).tolist() for seed in range(3)]

    assert drawn[0] != drawn[1] != drawn[2]
    assert drawn[0] == tuner_in(policy(retrieval="random")).selected(sources(policy())).tolist()


def test_without_a_bank_it_is_pefts_prompt_tuning() -> None:
    tuned = policy(retrieval="none")
    own = tuner_in(tuned).parts()["task"][0]
    plain = peft.get_peft_model(
        backbone(T5).model,
        peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, num_transformer_submodules=1),
    )
    theirs = plain.prompt_encoder["default"].embedding.weight
    theirs.data = own.data.clone()
    ids, labels = sources(tuned)[:1], torch.tensor([[5, 6, 1]])
    placed = torch.cat([torch.tensor([tuner_in(tuned).passes(1.0)[0].prefix.ids]), ids], 1)

    ours = tuned.backbone.model(input_ids=placed, attention_mask=torch.ones_like(placed), labels=labels)
    other = plain(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
    ours.loss.backward()
    other.loss.backward()

    assert torch.equal(ours.logits, other.logits)
    assert torch.equal(own.grad, theirs.grad)


def test_what_is_saved_chooses_and_answers_alike(tmp_path: Path) -> None:
    tuned = policy()
    tuner_in(tuned).save(tmp_path)

    again = peft.PeftModel.from_pretrained(backbone(T5).model, str(tmp_path))

    loaded = Policy(replace(tuned.backbone, model=again.get_base_model()), TokenBankTuner.around(again))
    assert torch.equal(scores(loaded, groups(loaded)), scores(tuned, groups(tuned)))
    assert tuner_in(loaded).selected(sources(tuned)).tolist() == tuner_in(tuned).selected(sources(tuned)).tolist()
    assert names_in(tmp_path) == {"bank", "task"}


@pytest.mark.parametrize(("trains", "held"), [(ONLY_BANK, {"bank"}), (ONLY_TASK, {"task"}), (FROZEN_BANK, {"bank", "task"})])
def test_a_stage_saves_the_parts_that_take_part(trains: Any, held: set[str], tmp_path: Path) -> None:
    tuned = policy()
    with training(tuned, trains) as parts:
        parts.save(tmp_path)

    assert names_in(tmp_path) == held
    assert json.loads((tmp_path / "adapter_config.json").read_text())["parts"] == sorted(held)


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return {name.rpartition(".")[2] for name in file.keys()}  # noqa: SIM118 - a file is no mapping


@pytest.mark.parametrize(("retrieval", "tensors"), [("max", 1), ("router", 3)])  # the router's weights and biases come along
def test_a_bank_starts_as_a_saved_one(retrieval: str, tensors: int, tmp_path: Path) -> None:
    tuned = policy(retrieval=retrieval)
    tuner_in(tuned).save(tmp_path)
    torch.manual_seed(9)

    later = build(replace(CONFIG, retrieval=retrieval, bank_from=str(tmp_path)), backbone(T5).model)

    own, saved = later.parts()["bank"], tuner_in(tuned).parts()["bank"]
    assert [torch.equal(one, other) for one, other in zip(own, saved, strict=True)] == [True] * tensors
    assert not torch.equal(later.parts()["task"][0], tuner_in(tuned).parts()["task"][0])


def test_a_bank_of_another_width_size_or_backbone_is_refused(tmp_path: Path) -> None:
    tuner_in(policy()).save(tmp_path)
    made = replace(CONFIG, bank_from=str(tmp_path))
    wide = T5Config(vocab_size=439, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=4, pad_token_id=0)
    with torch.device("meta"):
        wider = T5ForConditionalGeneration(wide)

    with pytest.raises(ModelError, match="a bank of 12 vectors of width 32, and this one has 12 of width 16"):
        build(made, wider)
    with pytest.raises(ModelError, match="a bank of 12 vectors of width 32, and this one has 10 of width 32"):
        build(replace(made, tokens=10), backbone(T5).model)
    with pytest.raises(ModelError, match="holds bank, task and no router_weight; give the adapter of another stage"):
        build(replace(made, retrieval="router"), backbone(T5).model)
    other = backbone(T5).model
    other.shared.weight.data += 1
    with pytest.raises(ModelError, match="this bank was tuned together with other weights"):
        build(made, other)


def test_strength_one_is_the_only_one_and_without_it_the_backbone_is_itself() -> None:
    tuned = policy()

    with pytest.raises(ControlError, match=r"strength 0\.5 is not defined for a token bank"), tuned.at(0.5):
        pass

    with tuned.off():
        assert torch.equal(scores(tuned, groups(tuned)), scores(Policy(backbone(T5), Untuned()), groups(tuned)))
    assert not torch.equal(scores(tuned, groups(tuned)), scores(Policy(backbone(T5), Untuned()), groups(tuned)))


def test_it_is_not_merged_nor_put_on_a_causal_model() -> None:
    with pytest.raises(ModelError, match="cannot be folded into weights"):
        tuner_in(policy()).module.merge_and_unload()
    with pytest.raises(ModelError, match="has no encoder beside its decoder; take an encoder-decoder model"):
        build(CONFIG, causal("llama").model)


def test_a_text_with_a_placeholder_is_refused() -> None:
    tuned = policy()

    with pytest.raises(ControlError, match="holds a token that stands for a vector of the tuner"):
        tuned.respond(["Tell <extra_id_19>."], sampling=Sampling(4, 0.0, 1.0), seed=0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"retrieved": 13}, r"retrieved=13 vectors cannot be chosen from a bank of tuner\.tokens=12"),
        ({"retrieval": "whole", "tokens": 14}, r"tokens=14 are not whole prompts of tuner\.retrieved=4"),
        ({"padded_to": 256}, "padded_to=256 has no meaning where padding is masked"),
        ({"bank_ids": [1]}, r"bank_ids=\[1\] must be two ids"),
        ({"bank_from": "nowhere"}, r"bank_from=nowhere holds no adapter_model\.safetensors"),
    ],
)
def test_a_config_without_a_meaning_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(CONFIG, **changes).check("tuner")


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, {"bank": 460_800, "task": 76_800}),
        ({"tokens": 500}, {"bank": 384_000, "task": 76_800}),
        ({"retrieval": "none"}, {"task": 76_800}),
        ({"retrieval": "router"}, {"bank": 460_800 + 461_400, "task": 76_800}),
    ],
)
def test_on_t5_base_it_has_the_released_sizes(changes: dict[str, Any], counts: dict[str, int]) -> None:
    shape = {"vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(**shape, pad_token_id=0, decoder_start_token_id=0))
    paper = {"tokens": 600, "retrieved": 100, "length": 100, "bank_ids": [100, 1000], "prompt_ids": [100, 600]}

    made = build(replace(CONFIG, **{**paper, **changes}), model)

    whole_model = sum(parameter.numel() for name, parameter in model.named_parameters() if "tpt_" not in name)
    found = {name: sum(each.numel() for each in parameters) for name, parameters in made.parts().items()}
    assert whole_model == 222_903_552
    assert found == counts
    assert round(100 * 76_800 / whole_model, 4) == 0.0345


def test_over_a_bfloat16_backbone_bank_and_prompt_are_float32_and_move_by_the_rate(tmp_path: Path) -> None:
    own = backbone(T5)
    own.model.bfloat16()
    tuned = policy(own)
    tuner = tuner_in(tuned)
    parameters = {name: parameter for name, (parameter, *_) in tuner.parts().items()}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with training(tuned, THE_TUNER) as parts, tuned.only(parts.parameters()):
        tuned.nll(whole(groups(tuned), own.codec.pad)).value.backward()
        torch.optim.AdamW(parameters.values(), lr=0.3, weight_decay=0.0, eps=1e-12).step()

    # AdamW's first step is the rate times the sign of the gradient; of numbers near 1, bfloat16 holds steps of 0.0078 only.
    for name, parameter in parameters.items():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        moved = parameter.detach() - before[name]
        assert torch.allclose(moved, -0.3 * parameter.grad.sign(), atol=1e-4)
    assert {parameter.dtype for name, parameter in own.model.named_parameters() if "tpt_" not in name} == {torch.bfloat16}
    tuner.save(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F32"}  # noqa: SIM118 - a file is no mapping
