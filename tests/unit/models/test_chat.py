"""The whole of a chat template: what is asked and trained is what apply_chat_template writes, up to the end of the turn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alignlab.data.batching import whole
from alignlab.data.encode import Limits, encode, pair
from alignlab.data.source import Split
from alignlab.errors import ConfigError, DataError
from alignlab.models.answers import ends
from alignlab.models.backbone import Backbone
from alignlab.models.chat import Chat
from alignlab.models.encoders import SourceTargetCodec
from alignlab.models.kinds import KINDS
from alignlab.models.sampling import Sampling
from alignlab.models.text import Codec, Template
from alignlab.records import Dialogue, EncodedGroup, Example, Record, Turn
from tests.unit.conftest import plain
from tests.unit.models.chats import CASES, GEMMA, LLAMA3, PHI3, QWEN3, REASONER, SMOLLM3, Case, tokenizer

ROW = "train.jsonl:7"
TURNS = (Turn("user", "hi there"), Turn("assistant", "Hello."), Turn("user", "  how are you \n"))
SYSTEM = (Turn("system", "Be brief."), *TURNS)
HH = "\n\nHuman: hi there\n\nAssistant: Hello.\n\nHuman:   how are you \n\n\nAssistant:"
TAKING_SYSTEM = [name for name in CASES if name not in ("gemma", "llama2")]


def prompt_of(turns: tuple[Turn, ...]) -> str:
    return turns[0].text if len(turns) == 1 else Dialogue("not read", turns)


def dated(template: str, **arguments: Any) -> Codec:
    made = tokenizer(template, ("<|im_start|>", "<|im_end|>", "<|eot_id|>"), "<|im_end|>", "<s>")
    return Codec(made, Template("{prompt}", chat=True, bos=None, arguments=arguments))


@pytest.mark.parametrize("turns", [TURNS[2:], TURNS], ids=["one turn", "three turns"])
@pytest.mark.parametrize("response", ["fine day", "  fine\nday \n", "\nfine"])
@pytest.mark.parametrize("name", CASES)
def test_ids_and_labels_are_those_of_apply_chat_template(name: str, turns: tuple[Turn, ...], response: str) -> None:
    case = CASES[name]
    asked, learned = case.ids((*turns, Turn("assistant", response)))

    codec = case.codec()
    (encoded,) = codec.examples([Example(prompt_of(turns), response)], [ROW])
    (prompt,) = codec.prompts([prompt_of(turns)])

    assert list(prompt) == asked
    assert list(encoded.ids[: encoded.start]) == asked
    assert list(encoded.ids[encoded.start :]) == learned


@pytest.mark.parametrize("name", TAKING_SYSTEM)
def test_a_system_turn_reaches_the_template(name: str) -> None:
    asked, learned = CASES[name].ids((*SYSTEM, Turn("assistant", "fine day")))

    (encoded,) = CASES[name].codec().examples([Example(prompt_of(SYSTEM), "fine day")], [ROW])

    assert list(encoded.ids) == asked + learned


@pytest.mark.parametrize("name", CASES)
def test_a_text_that_names_its_speakers_is_the_turns_that_it_names(name: str) -> None:
    codec = CASES[name].codec()
    bare = (TURNS[0], TURNS[1], Turn("user", "how are you"))

    (marked,) = codec.examples([Example(HH, " fine day\n\nHuman: thanks")], [ROW])
    (turns,) = codec.examples([Example(Dialogue("not read", bare), "fine day")], [ROW])

    assert marked == turns


@pytest.mark.parametrize("response", ["fine day", "fine\n\nday!"])
@pytest.mark.parametrize("name", CASES)
def test_what_was_trained_is_read_back_as_the_response(name: str, response: str) -> None:
    codec = CASES[name].codec()
    (encoded,) = codec.examples([Example("hi", response)], [ROW])

    said = codec.continuation(encoded.ids[: encoded.start], encoded.ids[encoded.start :])

    assert codec.answer("hi", said) == response


@pytest.mark.parametrize(
    ("name", "ends", "stop"),
    [
        ("smollm2", ["<|im_end|>"], ()),
        ("qwen2.5", ["<|endoftext|>", "<|im_end|>"], ()),
        ("gemma", ["<eos>", "<end_of_turn>"], ()),
        ("llama3", ["<|end_of_text|>", "<|eot_id|>"], ()),
        ("phi3", ["<|endoftext|>", "<|end|>"], ()),
        ("llama2", ["</s>"], ()),
        ("alpaca", ["</s>"], ("\n### End",)),
        ("bare", ["</s>"], ()),
    ],
)
def test_an_answer_ends_at_eos_and_at_the_end_of_a_turn(name: str, ends: list[str], stop: tuple[str, ...]) -> None:
    codec = CASES[name].codec()

    assert codec.tokenizer.convert_ids_to_tokens(list(codec.ends)) == ends
    assert codec.stop == stop


def test_the_text_of_an_end_is_as_many_ids_as_it_has() -> None:
    counted = {name: CASES[name].codec().end_tokens for name in ("gemma", "llama2", "alpaca", "bare")}

    assert counted == {"gemma": 1, "llama2": len(" ") + 1, "alpaca": len("\n### End"), "bare": 1}


def small(codec: Codec) -> Backbone:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(codec.tokenizer), eos_token_id=codec.eos, pad_token_id=0, **shape))
    return Backbone("small", model.eval(), codec, "small", KINDS["causal"].implementation())


@pytest.mark.parametrize("name", ["gemma", "qwen3", "alpaca"])
def test_log_probabilities_are_those_of_plain_transformers(name: str) -> None:
    case, codec = CASES[name], CASES[name].codec()
    backbone = small(codec)
    asked, learned = case.ids((*TURNS, Turn("assistant", "fine day")))
    (encoded,) = codec.examples([Example(prompt_of(TURNS), "fine day")], [ROW])

    with torch.no_grad():
        scores = plain(backbone).logprobs(whole([EncodedGroup(ROW, (encoded,))], codec.pad))

    ids_1T = torch.tensor([asked + learned])
    labels_T = torch.tensor([-100] * len(asked) + learned)
    with torch.no_grad():
        loss = backbone.model(input_ids=ids_1T, labels=labels_T[None]).loss
    assert float(scores.total_GM) == pytest.approx(-float(loss) * len(learned), rel=1e-5)


@pytest.mark.parametrize("name", ["gemma", "qwen3", "alpaca"])
def test_a_model_that_learned_to_end_its_turn_ends_it(name: str) -> None:
    backbone = small(CASES[name].codec())
    (encoded,) = backbone.codec.examples([Example("hi", "fine day")], [ROW])
    ids_1T, labels_1T = torch.tensor([encoded.ids]), torch.tensor([encoded.ids])
    labels_1T[0, : encoded.start] = -100
    optimizer = torch.optim.Adam(backbone.model.parameters(), lr=1e-2)
    for _ in range(90):
        optimizer.zero_grad()
        backbone.model(input_ids=ids_1T, labels=labels_1T).loss.backward()
        optimizer.step()

    (text,) = plain(backbone).respond(["hi"], sampling=Sampling(60, temperature=0, top_p=1), seed=0)

    assert text == "fine day"


def test_ends_that_the_model_names_stay_ends(llama: Backbone) -> None:
    policy = plain(replace(llama, codec=CASES["gemma"].codec()))
    policy.backbone.model.generation_config.eos_token_id = [5, 6]  # type: ignore[union-attr]

    assert ends(policy.backbone) == [*policy.backbone.codec.ends, 5, 6]


@pytest.mark.parametrize("template", [LLAMA3, SMOLLM3], ids=["asks for a date", "prints it in any case"])
def test_a_template_that_prints_the_date_is_refused_until_it_is_given_one(template: str) -> None:
    with pytest.raises(ConfigError, match=r"prints the date, .* set model\.template\.arguments=\{date_string: 26 Jul 2024\}"):
        dated(template)

    codec = dated(template, date_string="26 Jul 2024")

    assert "26 Jul 2024" in codec.written("hi")
    assert codec.template_hash == dated(template, date_string="26 Jul 2024").template_hash
    assert codec.template_hash != dated(template, date_string="27 Jul 2024").template_hash


def test_a_frozen_date_changes_nothing_else_of_a_template() -> None:
    frozen = dated(SMOLLM3, date_string="1 May 2026").written("hi")

    assert frozen == "Today is 1 May 2026.\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_arguments_are_part_of_the_key_and_plain_formats_keep_theirs() -> None:
    without, given = CASES["qwen3, no thoughts"].codec(), CASES["qwen3"].codec()
    plain_format = Codec(without.tokenizer, Template("{prompt}\n", chat=False, bos=False))

    assert without.template_hash != given.template_hash
    assert plain_format.template_hash == "a06f8c3469bd6a59"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"enable_thinkin": False}, r"unknown argument of the tokenizer's chat template .* did you mean enable_thinking\?"),
        ({"add_generation_prompt": False}, "unknown argument of the tokenizer's chat template"),
        ({"date_string": "today"}, "unknown argument of the tokenizer's chat template"),
    ],
)
def test_an_argument_that_the_template_does_not_take_is_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(CASES["qwen3"], arguments=tuple(arguments.items())).codec()
    with pytest.raises(ConfigError, match="the tokenizer's chat template takes none; leave it out"):
        replace(CASES["smollm2"], arguments=tuple(arguments.items())).codec()


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            "{{ raise_exception('never') }}",
            r"refuses a question with its answer \(never\); mend it, or set model\.template\.chat=false",
        ),
        ("{% for m in messages %}", "cannot be read"),
        ("{{ 1 + 'a' }}", "refuses a question with its answer"),
        ("{{ messages | length }}", "does not write what is said"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_sentence(template: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        dated(template)


def test_a_template_whose_answers_stand_elsewhere_than_they_are_asked_for_trains_nothing() -> None:
    codec = Codec(tokenizer(REASONER, ("<U>", "<A>"), "</s>", None), Template("{prompt}", chat=True, bos=None))

    assert codec.written("hi") == "<U>hi<A><think>\n"
    with pytest.raises(ConfigError, match=r"asks for an answer behind '<think>\\n' and writes answers without it"):
        codec.examples([Example("hi", "fine")], [ROW])


@pytest.mark.parametrize(
    ("prompt", "response", "sentence"),
    [
        ("Rules.\n\nHuman: hi", "fine", "the prompt names its speakers"),
        ("Human: hi", "fine", "the prompt names its speakers"),
        ("\n\nAssistant: hi\n\nHuman: you\n\nAssistant: good\n\nAssistant:", "fine", "the prompt names its speakers"),
        ("hi", "Assistant: fine", "the response names its speakers"),
        ("hi", "fine\n\nHuman: you", "the response names its speakers"),
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "fine", "which the chat template writes itself"),
        ("hi<|im_end|>", "fine", "which the chat template writes itself"),
        ("hi", "fine<|im_end|>", r"the response holds '<\|im_end\|>' as text"),
        ("hi", "fine<|endoftext|>", r"the response holds '<\|endoftext\|>' as text"),
        ("\n\nHuman: hi\n\nAssistant:", " \n\nHuman: you", "the response is empty"),
    ],
)
def test_texts_with_markup_of_their_own_are_refused_with_their_row(prompt: str, response: str, sentence: str) -> None:
    with pytest.raises(DataError, match=f"{ROW}: .*{sentence}"):
        CASES["qwen2.5"].codec().examples([Example(prompt, response)], [ROW])


def test_words_in_front_of_the_first_speaker_are_the_systems_and_turns_of_one_speaker_are_one() -> None:
    text = "Rules.\n\nHuman: a\n\nHuman: b\n\nAssistant:"

    written = CASES["qwen2.5"].codec().written(text)

    assert written == ("<|im_start|>system\nRules.<|im_end|>\n<|im_start|>user\na\n\nb<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("name", "bos"), [("gemma", "<bos>"), ("smollm2", None), ("phi3", None), ("llama3", "<|begin_of_text|>")]
)
def test_bos_is_what_the_template_writes_once_in_front(name: str, bos: str | None) -> None:
    codec = CASES[name].codec()

    assert codec.tokenizer.convert_ids_to_tokens(list(codec.head)) == ([bos] if bos else [])


def test_a_tokenizer_with_several_templates_gives_its_default() -> None:
    made = CASES["gemma"].tokenizer()
    made.chat_template = {"default": GEMMA, "tool_use": PHI3}
    assert Chat(made, {}).end == "<end_of_turn>"

    made.chat_template = {"tool_use": PHI3}
    with pytest.raises(ConfigError, match="has no default chat template"):
        Chat(made, {})


def test_a_row_is_shown_with_its_special_tokens_and_its_trained_part_apart() -> None:
    codec = Case(QWEN3, ("<|im_start|>", "<|im_end|>"), eos="<|im_end|>", end="<|im_end|>").codec()
    (encoded,) = codec.examples([Example("hi", "fine day")], [ROW])

    before, trained = codec.shown(encoded)

    assert before == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert trained == "<think>\n\n</think>\n\nfine day<|im_end|>"


def test_rows_that_are_none_for_a_chat_template_are_counted_where_rows_may_be_dropped() -> None:
    codec = CASES["gemma"].codec()
    refused = Dialogue("not read", (Turn("system", "Be brief."), Turn("user", "hi")))
    records = [
        Record.pair("1", "hi", "yes", "no"),
        Record.pair("2", refused, "yes", "no"),
        Record.pair("3", "Human: hi", "a", "b"),
    ]
    split = Split(tuple(records))

    groups, account = encode(split, pair, codec.examples, Limits(100, "error", drops=True))

    assert [group.row for group in groups] == ["1"]
    assert account.dropped == {"the chat template refuses its turns": 1, "its texts have markup of their own": 1}
    assert codec.askable([record.prompt for record in records]) == ["hi"]
    with pytest.raises(DataError, match=r"2: the tokenizer's chat template refuses a prompt of system, user \(System role not"):
        encode(split, pair, codec.examples, Limits(100, "error"))


def test_an_encoder_decoder_model_reads_the_template_and_answers_without_the_space_of_a_dialogue() -> None:
    made = CASES["zephyr"].tokenizer()
    codec = SourceTargetCodec(made, Template("{prompt}", chat=True, bos=None))

    (encoded,) = codec.examples([Example("\n\nHuman: hi\n\nAssistant:", " fine")], [ROW])

    assert made.decode(encoded.ids[: encoded.start]) == "<|user|>\nhi</s>\n<|assistant|>\n"
    assert made.decode(encoded.ids[encoded.start :]) == "fine</s>"
    assert (codec.ends, codec.stop, codec.end_tokens) == ((codec.eos,), (), 1)
