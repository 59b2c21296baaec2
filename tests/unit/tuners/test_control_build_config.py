"""From a control's config to its configuration: phrases as ids, placeholders that no text holds, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignlab.data.classes import Classes
from alignlab.data.config import ClassesConfig
from alignlab.errors import ConfigError, ControlError, ModelError
from alignlab.models.text import Codec
from alignlab.tuners.config import EmbeddedFormConfig, FormConfig, LoraFormConfig
from alignlab.tuners.control import ControlConfig
from alignlab.tuners.control.config import build_config, free_ids
from tests.conftest import CODEC, TEMPLATE, backbone
from tests.contracts.controls import Case, attach

ROWS = len(CODEC.tokenizer)
NEVER_IN_UTF8 = ["À", "Á", *"õö÷øùúûüýþÿ"]  # how a byte-level vocabulary writes bytes C0, C1 and F5 to FF
EVERY_BYTE_OF_TEXT = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000, 0x1000)]))
PAIR = Classes(("good", "bad"), str)


def model_config(kind: type[FormConfig], name: str, **changes: Any) -> Any:
    """A control's config."""
    values: dict[str, Any] = {
        "name": name,
        "classes": ClassesConfig("pairs", ["good", "bad"], 2, []),
        "phrase": "A {class} story.",
        "phrases": {},
        "place": "after_bos",
        "rate": 1e-3,
        "joint_rate": 1e-4,
        "strengths": [],
        "figure": False,
    }
    return kind(**{**values, **changes})


def soft_prompt(**changes: Any) -> Any:
    return model_config(EmbeddedFormConfig, "soft_prompt", **{"length": 5, "init": "text", "placeholders": None, **changes})


def tokenizer_of(pieces: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer without merges whose tokens are these, behind four special ones."""
    every = {piece: index for index, piece in enumerate(dict.fromkeys(["<pad>", "<s>", "</s>", "<unk>", *pieces]))}
    made = Tokenizer(models.BPE(vocab=every, merges=[], unk_token="<unk>"))
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def test_free_in_a_byte_level_vocabulary_are_the_bytes_that_utf8_never_has() -> None:
    assert CODEC.tokenizer.convert_ids_to_tokens(free_ids(CODEC.tokenizer, ROWS)) == NEVER_IN_UTF8


def test_free_ids_are_just_the_bytes_that_no_text_is_encoded_to() -> None:
    every_byte = set(CODEC.tokenizer.convert_tokens_to_ids(sorted(pre_tokenizers.ByteLevel.alphabet())))

    used = set(CODEC.prefix(EVERY_BYTE_OF_TEXT))

    assert set(free_ids(CODEC.tokenizer, ROWS)) == every_byte - used


def test_no_text_is_encoded_to_a_free_id_where_letters_look_like_bytes() -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # a vocabulary of characters, not of bytes, that holds them all
    tokenizer = tokenizer_of(letters)

    used = tokenizer("ÀÁõö÷øùúûüýþÿ", add_special_tokens=False)["input_ids"]

    assert set(used).isdisjoint(free_ids(tokenizer, len(tokenizer)))


def test_free_are_byte_tokens_written_as_numbers() -> None:
    tokenizer = tokenizer_of(["a", "<0x41>", "<0xC0>", "<0xC2>", "<0xF4>", "<0xF5>", "<0xFF>"])

    assert tokenizer.convert_ids_to_tokens(free_ids(tokenizer, len(tokenizer))) == ["<0xC0>", "<0xF5>", "<0xFF>"]


def test_free_are_tokens_called_reserved_or_unused() -> None:
    named = ["<|reserved_special_token_0|>", "<unused7>", "[unused12]", "<reserved_3>"]
    tokenizer = tokenizer_of(["a", *named, "unused", "<used>", "reserved"])

    assert tokenizer.convert_ids_to_tokens(free_ids(tokenizer, len(tokenizer))) == named


def test_free_are_rows_behind_the_last_token_and_they_come_first() -> None:
    assert free_ids(CODEC.tokenizer, ROWS + 2)[:3] == [ROWS, ROWS + 1, free_ids(CODEC.tokenizer, ROWS)[0]]


def test_ids_behind_the_embedding_are_not_free() -> None:
    tokenizer = tokenizer_of(["a", "<unused0>", "<unused1>"])

    assert free_ids(tokenizer, len(tokenizer) - 1) == [len(tokenizer) - 2]


def test_a_vocabulary_of_letters_alone_has_no_free_id() -> None:
    assert free_ids(tokenizer_of(list("abcÀÿ")), 9) == []


def test_a_soft_prompt_settles_on_free_ids_and_on_its_phrases() -> None:
    made = build_config(soft_prompt(phrases={"bad": "A sad story."}), PAIR, CODEC, ROWS)

    assert made.placeholders == free_ids(CODEC.tokenizer, ROWS)[:2]
    assert made.phrases == [list(CODEC.prefix("A good story.")), list(CODEC.prefix("A sad story."))]
    assert (made.form, made.classes, made.length, made.init, made.behind) == ("soft_prompt", ["good", "bad"], 5, "text", 1)
    assert made.template == CODEC.template_hash


def test_before_bos_stands_behind_nothing_and_edges_are_kept() -> None:
    made = build_config(soft_prompt(place="before_bos"), Classes(("high", "low"), str, (0.5,)), CODEC, ROWS)

    assert (made.behind, made.edges) == (0, [0.5])


def test_a_phrase_and_a_lora_need_no_placeholders() -> None:
    lora = model_config(LoraFormConfig, "lora", rank=2, alpha=4.0, dropout=0.1, targets=[])

    made = [build_config(each, PAIR, CODEC, ROWS) for each in (model_config(FormConfig, "text"), lora)]

    assert [each.placeholders for each in made] == [[], []]
    assert (made[1].rank, made[1].alpha, made[1].dropout, made[1].target_modules) == (2, 4.0, 0.1, None)


def test_too_few_free_ids_are_refused_with_what_can_be_done() -> None:
    many = Classes(tuple(f"class {number}" for number in range(14)), str)

    with pytest.raises(ConfigError) as caught:
        build_config(soft_prompt(), many, CODEC, ROWS)

    assert str(caught.value) == (
        "a control in the text needs an unused id for each of 14 classes, and this vocabulary has 13; give"
        " control.placeholders, or take control=lora or control=text, which need none."
    )


@pytest.mark.parametrize("beyond", [-1, ROWS, ROWS + 5])
def test_a_placeholder_beyond_the_vocabulary_is_refused(beyond: int) -> None:
    with pytest.raises(ConfigError, match=rf"control\.placeholders: {beyond} lies beyond the vocabulary of {ROWS}"):
        build_config(soft_prompt(placeholders=[127, beyond]), PAIR, CODEC, ROWS)


@pytest.mark.parametrize("special", [CODEC.pad, CODEC.head[0], CODEC.eos])
def test_a_placeholder_that_is_special_is_refused(special: int) -> None:
    with pytest.raises(ConfigError, match="holds BOS, EOS or the padding; give ids that no text uses"):
        build_config(soft_prompt(placeholders=[127, special]), PAIR, CODEC, ROWS)


def test_a_placeholder_that_texts_use_is_refused() -> None:
    (dog,) = CODEC.prefix(" dog")

    with pytest.raises(ConfigError, match="give ids that no text uses"):
        build_config(soft_prompt(placeholders=[127, dog]), PAIR, CODEC, ROWS)


def test_a_template_without_bos_puts_the_control_in_front() -> None:
    codec = Codec(CODEC.tokenizer, type(TEMPLATE)("{prompt}\n", chat=False, bos=False))

    assert build_config(soft_prompt(), PAIR, codec, ROWS).behind == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"form": "prefix"}, "unknown form of a control 'prefix'.*known: lora, soft_prompt, text, token"),
        ({"init": "zero"}, "unknown start of a control 'zero'.*known: random, text, vocabulary"),
        ({"classes": ["good"]}, "at least two classes, each once; got .'good'."),
        ({"classes": ["good", "good"]}, "at least two classes, each once"),
        ({"placeholders": [127]}, "a soft_prompt control needs placeholders, one per class: 1 for 2"),
        ({"form": "token", "placeholders": []}, "a token control needs placeholders, one per class: 0 for 2"),
        ({"form": "text", "phrases": [[5]]}, "a text control needs phrases, one per class: 1 for 2"),
        ({"init": "text", "phrases": []}, "a soft_prompt control needs phrases, one per class: 0 for 2"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ControlConfig(**{"placeholders": [127, 128], **changes})


def test_a_placeholder_beyond_the_vocabulary_is_refused_by_the_model_too() -> None:
    with pytest.raises(ConfigError, match=rf"placeholder {ROWS} lies beyond the vocabulary of {ROWS}"):
        attach(Case("token", "llama"), backbone("llama"), placeholders=[127, ROWS])


def test_targets_that_match_no_layer_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"control\.targets: 'nowhere' names no layer of this model"):
        attach(Case("lora", "llama"), backbone("llama"), target_modules=["nowhere"])


@pytest.mark.parametrize("form", ["text", "token", "soft_prompt", "lora"])
def test_a_control_of_another_template_is_refused(form: str) -> None:
    with pytest.raises(ModelError, match=r"trained on prompts written with another template; set model\.template"):
        attach(Case(form, "llama"), backbone("llama"), template="0123456789abcdef")


@pytest.mark.parametrize("held", [[127] * 4, [127] * 6, [127] * 5 + [128]], ids=["four", "six", "one of another"])
def test_a_part_of_a_control_is_refused(held: list[int]) -> None:
    policy = attach(Case("soft_prompt", "llama", settings={"length": 5}), backbone("llama"))

    with pytest.raises(ControlError, match="a part of the placeholders only; each kind takes 5 of them"):
        policy.model(torch.tensor([[1, *held, 8, 9]]))


def test_a_control_cut_at_a_context_is_refused_in_whichever_row_it_is() -> None:
    policy = attach(Case("soft_prompt", "gpt2", settings={"length": 3}), backbone("gpt2"))

    with pytest.raises(ControlError, match="each kind takes 3 of them"):
        policy.model(torch.tensor([[1, 127, 127, 127, 9], [1, 9, 9, 128, 128]]))
