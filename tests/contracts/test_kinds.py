"""What holds for every kind of backbone and every tuner that goes with all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from alignlab.errors import ConfigError, ControlError, DataError, ModelError
from alignlab.models.export import export_plain
from alignlab.models.kinds import KINDS, kind_of
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from alignlab.records import Example, LabelSet
from alignlab.training.objectives import nll
from tests.contracts.kinds import (
    CASES,
    MORE,
    STORIES,
    TEXTS,
    TUNER_SETTINGS,
    Made,
    attached,
    backbone,
    batch,
    groups,
    outputs,
    trained,
)

CLASSIFIER, SEQ2SEQ = CASES[0], CASES[2]
NOT_DEFINED = {
    ("seq2seq", "bitfit"): "a T5 has no biases",
    ("seq2seq", "red-export"): "nor a place for RED's shift",
    **dict.fromkeys([("classifier", "loreft-export"), ("seq2seq", "loreft-export")], "the residual stream has no weight"),
    **dict.fromkeys([("classifier", "prefix-export"), ("seq2seq", "prefix-export")], "keys beside a text are no weights"),
    **dict.fromkeys([("classifier", "prefix-start"), ("seq2seq", "prefix-start")], "they are seen from the start"),
    **dict.fromkeys([("classifier", "prompt-export"), ("seq2seq", "prompt-export")], "vectors in a text are no weights"),
    **dict.fromkeys([("classifier", "prompt-start"), ("seq2seq", "prompt-start")], "vectors stand there from the start"),
}
PAIRS = [(made, tuner) for made in CASES for tuner in TUNER_SETTINGS if (made.kind, tuner) not in NOT_DEFINED]
every_pair = pytest.mark.parametrize(("made", "tuner"), PAIRS, ids=lambda value: str(value))
STARTING = [(made, tuner) for made, tuner in PAIRS if (made.kind, f"{tuner}-start") not in NOT_DEFINED]
EXPORTED = [(made, tuner) for made, tuner in PAIRS if (made.kind, f"{tuner}-export") not in NOT_DEFINED]
every_export = pytest.mark.parametrize(("made", "tuner"), EXPORTED, ids=lambda value: str(value))


def one_by_one(policy: Policy, made: Made) -> Tensor:
    """transformers' own answer, row by row and so without padding."""
    rows = []
    with torch.no_grad():
        for group in groups(policy, made):
            member = group.members[0]
            source = torch.tensor([member.ids[: member.start]])
            if made.kind == "classifier":
                rows.append(policy.backbone.model(source).logits)
                continue
            target = torch.tensor([member.ids[member.start :]])
            first = policy.backbone.model.config.decoder_start_token_id
            read = torch.cat([torch.tensor([[first]]), target[:, :-1]], dim=1)
            logprobs = policy.backbone.model(source, decoder_input_ids=read).logits.log_softmax(-1)
            rows.append(logprobs.gather(2, target[..., None]).mean().reshape(1))
    return torch.stack(rows)


@pytest.mark.parametrize("made", [*CASES, *MORE], ids=str)
def test_a_padded_batch_says_what_transformers_says_of_each_row(made: Made) -> None:
    policy = attached(made, "lora")

    found = outputs(policy, made)

    assert torch.allclose(found, one_by_one(policy, made), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("made", "tuner"), STARTING, ids=lambda value: str(value))
def test_a_new_tuner_changes_nothing(made: Made, tuner: str) -> None:
    before = outputs(attached(made, "full"), made)

    after = outputs(attached(made, tuner), made)

    assert torch.equal(after, before)


@every_pair
def test_a_trained_tuner_is_off_to_the_bit(made: Made, tuner: str) -> None:
    before = outputs(attached(made, "full"), made)
    policy = trained(made, tuner)

    with policy.off():
        after = outputs(policy, made)

    assert torch.equal(after, before)
    assert not torch.allclose(outputs(policy, made), before)


@every_pair
def test_a_saved_tuner_is_read_back_to_the_bit(made: Made, tuner: str, tmp_path: Path) -> None:
    policy = trained(made, tuner)
    policy.tuner.save(tmp_path)  # type: ignore[attr-defined]

    again = attached(made, tuner)
    again.tuner.load(tmp_path)  # type: ignore[attr-defined]

    assert torch.equal(outputs(again, made), outputs(policy, made))


@every_export
def test_an_exported_model_answers_like_the_tuned_one_without_alignlab(made: Made, tuner: str, tmp_path: Path) -> None:
    policy = trained(made, tuner)
    expected = outputs(policy, made)

    export_plain(policy.tuner.module, policy.backbone.codec.tokenizer, tmp_path / "plain")  # type: ignore[attr-defined]

    auto = AutoModelForSequenceClassification if made.kind == "classifier" else AutoModelForSeq2SeqLM
    plain = attached(made, "full")
    plain.backbone.model.load_state_dict(auto.from_pretrained(tmp_path / "plain").state_dict(), strict=False)
    assert torch.allclose(outputs(plain, made), expected, atol=1e-5, rtol=0)


@every_pair
def test_gradients_reach_every_learned_parameter(made: Made, tuner: str) -> None:
    policy = trained(made, tuner)
    learned = policy.tuner.parameters()  # type: ignore[attr-defined]

    with policy.only(learned):
        nll(policy, batch(policy, made)).value.backward()

    assert all(parameter.grad is not None for parameter in learned)
    assert any(bool(parameter.grad.abs().sum() > 0) for parameter in learned)


def test_a_classifiers_loss_is_the_cross_entropy_of_its_labels() -> None:
    policy = attached(CLASSIFIER, "lora")
    logits = one_by_one(policy, CLASSIFIER)[:, 0]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2]))

    with torch.no_grad():
        loss = nll(policy, batch(policy, CLASSIFIER))

    assert loss.value == pytest.approx(float(expected), abs=1e-6)
    assert loss.metrics["accuracy"] == pytest.approx(float((logits.argmax(-1) == torch.tensor([0, 1, 2])).float().mean()))


def test_a_seq2seq_loss_is_transformers_own() -> None:
    policy = attached(SEQ2SEQ, "lora")
    tokenizer = policy.backbone.codec.tokenizer
    source = tokenizer([prompt for prompt, _ in STORIES], padding=True, return_tensors="pt")
    target = tokenizer(text_target=[response for _, response in STORIES], padding=True, return_tensors="pt")
    labels = target["input_ids"].masked_fill(target["attention_mask"] == 0, -100)

    with torch.no_grad():
        expected = policy.model(input_ids=source["input_ids"], attention_mask=source["attention_mask"], labels=labels).loss
        found = nll(policy, batch(policy, SEQ2SEQ)).value

    assert float(found) == pytest.approx(float(expected), abs=1e-6)


def test_a_pair_of_texts_is_encoded_as_the_tokenizer_does_it() -> None:
    codec = backbone(CLASSIFIER).codec

    (encoded,) = codec.examples([Example("Tom was happy.", "gloomy", second="Tom was sad.")], ["row"])

    assert list(encoded.ids) == codec.tokenizer("Tom was happy.", "Tom was sad.")["input_ids"]
    assert encoded.target == 1


@pytest.mark.parametrize(
    ("example", "says"),
    [
        (Example("  ", "cheerful"), "the text is empty"),
        (Example("Tom.", "joyful"), "label 'joyful' is none of the classes cheerful, gloomy, neither"),
        (Example("Tom.", "cheerful", second=" "), "the text is empty"),
    ],
)
def test_a_row_that_no_classifier_can_read_is_named(example: Example, says: str) -> None:
    codec = backbone(CLASSIFIER).codec

    with pytest.raises(DataError, match=f"row 7: {says}"):
        codec.examples([example], ["row 7"])


def test_verbs_that_a_kind_does_not_have_are_refused_in_a_sentence() -> None:
    classifier, seq2seq = attached(CLASSIFIER, "lora"), attached(SEQ2SEQ, "lora")

    with pytest.raises(ModelError, match="gives texts no likelihood"):
        classifier.logprobs(batch(classifier, CLASSIFIER))
    with pytest.raises(ModelError, match="writes no text"):
        classifier.respond(["Tom."], sampling=Sampling(4, 0.0, 1.0), seed=0)
    with pytest.raises(ModelError, match="has no class scores"):
        seq2seq.class_scores(batch(seq2seq, SEQ2SEQ))
    with pytest.raises(ModelError, match="two stacks"):
        seq2seq.hidden_states(batch(seq2seq, SEQ2SEQ), [1])


@pytest.mark.parametrize("tuner", ["lora", "red", "full"])
@pytest.mark.parametrize("made", CASES[:2], ids=str)
def test_texts_are_classified_each_at_its_strength_as_the_plain_model_tells_them(made: Made, tuner: str) -> None:
    policy = trained(made, tuner)
    texts, strengths = [text for text, _ in TEXTS], [1.0, 0.0, 1.5]

    found = policy.classify(texts, strength=strengths)

    for text, strength, classes in zip(texts, strengths, found, strict=True):
        ids = policy.backbone.codec.tokenizer([text], return_tensors="pt")
        with torch.no_grad(), policy.tuner.at(strength):
            logits_C = policy.model(**ids).logits[0]
        assert list(classes) == ["cheerful", "gloomy", "neither"]
        assert list(classes.values()) == pytest.approx(logits_C.softmax(-1).tolist(), abs=1e-6)


def test_pairs_of_texts_are_classified_as_the_tokenizer_joins_them() -> None:
    policy = trained(CASES[1], "lora")
    ids = policy.backbone.codec.tokenizer("Tom was happy.", "Tom was sad.", return_tensors="pt")
    with torch.no_grad():
        expected_C = policy.model(**ids).logits[0].softmax(-1)

    (classes,) = policy.classify([("Tom was happy.", "Tom was sad.")])

    assert list(classes.values()) == pytest.approx(expected_C.tolist(), abs=1e-6)
    assert policy.classify([]) == []


def test_texts_that_cannot_be_classified_are_refused_in_a_sentence() -> None:
    classifier, seq2seq = attached(CLASSIFIER, "lora"), attached(SEQ2SEQ, "lora")

    with pytest.raises(ModelError, match="predicts tokens and no classes"):
        seq2seq.classify(["Tom."])
    with pytest.raises(DataError, match="text 1: the text is empty"):
        classifier.classify(["Tom.", " "])
    with pytest.raises(DataError, match="text 0: has one text where others have two"):
        classifier.classify(["Tom.", ("Tom.", "Anna.")])
    with pytest.raises(DataError, match=r"'Tom\.' is a single text; give a list"):
        classifier.classify("Tom.", strength=[1.0] * 4)
    with pytest.raises(DataError, match=r"text 0: .* is neither a text nor a pair"):
        classifier.classify([("Tom.", "Anna.", "Ben.")])  # type: ignore[list-item]
    with pytest.raises(ControlError, match="2 strengths were given for 1"):
        classifier.classify(["Tom."], strength=[0.0, 1.0])
    with pytest.raises(ConfigError, match=r"text 0 has \d+ tokens, but the model has room for"):
        classifier.classify(["Tom was sad. " * 200])


def test_a_head_of_one_number_is_not_asked_for_classes() -> None:
    policy = attached(CLASSIFIER, "lora")
    policy.backbone.codec.labels = LabelSet(())

    with pytest.raises(ModelError, match="predicts a number, not classes"):
        policy.classify(["Tom."])


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "causal"),
        ({"architectures": ["GPT2LMHeadModel"]}, "causal"),
        ({"architectures": ["RobertaForMaskedLM"]}, "classifier"),
        ({"architectures": ["BertModel"]}, "classifier"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "classifier"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "seq2seq"),
        ({"architectures": ["T5ForConditionalGeneration"]}, "seq2seq"),
        ({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {"vocab_size": 64}}, "causal"),
        ({}, "causal"),
    ],
)
def test_a_kind_is_found_from_the_checkpoints_own_config(config: dict[str, object], kind: str) -> None:
    assert kind_of(config) == kind


def test_every_kind_can_be_built() -> None:
    assert [entry.implementation() for entry in KINDS.values()]


def test_the_texts_of_the_table_are_of_different_lengths() -> None:
    lengths = {len(group.members[0].ids) for group in groups(attached(CLASSIFIER, "lora"), CLASSIFIER)}

    assert len(lengths) == len(TEXTS)


@pytest.mark.parametrize("made", MORE, ids=str)
def test_an_adapter_in_further_families_is_read_back_to_the_bit_and_merges(made: Made, tmp_path: Path) -> None:
    policy = trained(made, "lora")
    policy.tuner.save(tmp_path / "adapter")  # type: ignore[attr-defined]

    again = attached(made, "lora")
    again.tuner.load(tmp_path / "adapter")  # type: ignore[attr-defined]

    assert torch.equal(outputs(again, made), outputs(policy, made))
    assert export_plain(policy.tuner.module, None, tmp_path / "plain") <= 1e-4  # type: ignore[attr-defined]
