"""Text to ids: one BOS at most, exactly one EOS per response, whatever the tokenizer does by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from alignlab.data.encode import Limits, chosen, encode
from alignlab.data.source import Split
from alignlab.errors import ConfigError, DataError
from alignlab.models.text import Codec, Template
from alignlab.records import Dialogue, Example, Record, Response, Turn

BOS, EOS, PAD = 0, 1, 2
PIECES = ("<s>", "</s>", "<pad>", *"abcd ", "ab", "\n", "U", "A", ":")
ROW = "train.jsonl:7"
PLAIN = Template("{prompt}", chat=False, bos=True)
CHAT = (
    "<s>{% for m in messages %}{{ m['role'][0] | upper }}:{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


def tokenizer(
    *, merges: Sequence[tuple[str, str]] = (), bos_by_itself: bool = False, **special: str
) -> PreTrainedTokenizerFast:
    """Letters as tokens; `merges` join two of them."""
    made = Tokenizer(BPE(vocab={piece: index for index, piece in enumerate(PIECES)}, merges=list(merges)))
    if bos_by_itself:
        made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, **{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **special}
    )


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(PIECES.index(letter) for letter in text)


def test_an_example_is_bos_prompt_response_eos() -> None:
    codec = Codec(tokenizer(), PLAIN)

    (encoded,) = codec.examples([Example("ab", "cd")], [ROW])

    assert encoded.ids == (BOS, *ids_of("abcd"), EOS)
    assert (encoded.start, encoded.moved) == (3, False)


def test_a_tokenizer_that_adds_bos_by_itself_adds_no_second_one() -> None:
    codec = Codec(tokenizer(bos_by_itself=True), PLAIN)

    (encoded,) = codec.examples([Example("a", "b")], [ROW])
    (prompt,) = codec.prompts(["a"])

    assert encoded.ids == (BOS, *ids_of("ab"), EOS)
    assert prompt == (BOS, *ids_of("a"))


def test_a_template_without_bos_leaves_it_out_even_where_the_tokenizer_would_add_it() -> None:
    codec = Codec(tokenizer(bos_by_itself=True), Template("{prompt}", chat=False, bos=False))

    (encoded,) = codec.examples([Example("a", "b")], [ROW])

    assert encoded.ids == (*ids_of("ab"), EOS)
    assert encoded.start == 1


def test_where_pad_is_eos_the_response_still_ends_with_one_eos() -> None:
    codec = Codec(tokenizer(pad_token="</s>"), PLAIN)

    (encoded,) = codec.examples([Example("a", "b")], [ROW])

    assert codec.pad == codec.eos == EOS
    assert encoded.ids.count(EOS) == 1


def test_a_tokenizer_without_pad_is_padded_with_eos() -> None:
    made = tokenizer()
    made.pad_token = None

    codec = Codec(made, PLAIN)

    assert codec.pad == EOS


@pytest.mark.parametrize("response", ["", " ", "\n"])
def test_an_empty_response_is_refused_with_its_row(response: str) -> None:
    codec = Codec(tokenizer(), PLAIN)

    with pytest.raises(DataError, match=f"{ROW}: the response is empty"):
        codec.examples([Example("a", "b"), Example("a", response)], ["train.jsonl:6", ROW])


@pytest.mark.parametrize("response", ["b</s>", "b</s>c", "<s>b"])
def test_bos_or_eos_written_out_in_a_response_is_refused_with_its_row(response: str) -> None:
    codec = Codec(tokenizer(), PLAIN)

    with pytest.raises(DataError, match=f"{ROW}: the response holds a BOS or EOS token as text"):
        codec.examples([Example("a", response)], [ROW])


def test_where_unusable_rows_are_dropped_those_with_special_tokens_or_no_text_are_counted_by_their_reason() -> None:
    codec = Codec(tokenizer(), PLAIN)
    asked = [("a", "b"), ("a", "b</s>"), ("a<s>", "b"), ("b", "c")]
    records = [Record(f"r:{place}", prompt, (Response(answer, "chosen"),)) for place, (prompt, answer) in enumerate(asked)]

    groups, account = encode(Split(tuple(records)), chosen, codec.examples, Limits(10, "error", drops=True))

    assert [group.row for group in groups] == ["r:0", "r:3"]
    assert account.dropped == {"a special token written out in the text": 2}
    with pytest.raises(DataError, match="r:1: the response holds a BOS or EOS token as text"):
        encode(Split(tuple(records)), chosen, codec.examples, Limits(10, "error"))


def test_two_texts_are_refused_where_the_model_reads_one_prompt() -> None:
    codec = Codec(tokenizer(), PLAIN)

    with pytest.raises(DataError, match=f"{ROW}: has two texts, and a causal language model reads one prompt; join them"):
        codec.examples([Example("a", "c", second="b")], [ROW])


@pytest.mark.parametrize("prompt", ["<s>a", "a<s>b"])
def test_a_second_bos_in_a_prompt_is_refused_with_its_row(prompt: str) -> None:
    codec = Codec(tokenizer(), PLAIN)

    with pytest.raises(DataError, match=f"{ROW}: the prompt .* second BOS"):
        codec.examples([Example(prompt, "c")], [ROW])


def test_a_response_that_would_merge_with_its_prompt_is_tokenised_apart_and_marked() -> None:
    codec = Codec(tokenizer(merges=[("a", "b")]), PLAIN)

    merging, clean = codec.examples([Example("ca", "bd"), Example("c", "abd")], [ROW, ROW])

    assert merging.ids == (BOS, *ids_of("cabd"), EOS)
    assert (merging.start, merging.moved) == (3, True)
    assert clean.ids == (BOS, PIECES.index("c"), PIECES.index("ab"), PIECES.index("d"), EOS)
    assert (clean.start, clean.moved) == (2, False)


def test_a_lead_stands_behind_bos_and_leaves_all_other_ids_as_they_are() -> None:
    codec = Codec(tokenizer(merges=[("a", "b")]), PLAIN)  # "a" in front of "b" would merge

    bare, led = codec.examples([Example("bc", "d"), Example("bc", "d", prefix="ca")], [ROW, ROW])

    assert bare.ids == (BOS, *ids_of("bcd"), EOS)
    assert led.ids == (BOS, *ids_of("cabcd"), EOS)
    assert (bare.head, bare.start, led.head, led.start) == (1, 3, 3, 5)
    assert codec.prefix("ca") == ids_of("ca")
    assert codec.prefix("") == ()


def test_a_lead_stands_in_front_of_the_template() -> None:
    codec = Codec(tokenizer(), Template("U:{prompt}\nA:", chat=False, bos=True))

    (encoded,) = codec.examples([Example("ab", "c", prefix="d ")], [ROW])

    assert encoded.ids == (BOS, *ids_of("d U:ab\nA:c"), EOS)
    assert (encoded.head, encoded.start) == (3, 10)


def test_without_bos_a_lead_stands_first() -> None:
    codec = Codec(tokenizer(bos_by_itself=True), Template("{prompt}", chat=False, bos=False))

    (encoded,) = codec.examples([Example("a", "b", prefix="cd")], [ROW])

    assert encoded.ids == (*ids_of("cdab"), EOS)
    assert (encoded.head, encoded.start) == (2, 3)


def test_behind_a_lead_a_response_that_would_merge_is_still_tokenised_apart() -> None:
    codec = Codec(tokenizer(merges=[("a", "b")]), PLAIN)

    (encoded,) = codec.examples([Example("ca", "bd", prefix="d")], [ROW])

    assert encoded.ids == (BOS, *ids_of("dcabd"), EOS)
    assert (encoded.head, encoded.start, encoded.moved) == (2, 4, True)


@pytest.mark.parametrize("prefix", ["a</s>", "<s>a"])
def test_bos_or_eos_written_out_in_a_lead_is_refused(prefix: str) -> None:
    codec = Codec(tokenizer(), PLAIN)

    with pytest.raises(DataError, match=f"the prefix '{prefix}' holds a BOS or EOS token as text; remove it"):
        codec.examples([Example("a", "b"), Example("a", "b", prefix=prefix)], [ROW, ROW])


def test_the_template_is_written_around_the_prompt() -> None:
    codec = Codec(tokenizer(), Template("U:{prompt}\nA:", chat=False, bos=True))

    (prompt,) = codec.prompts(["ab"])

    assert prompt == (BOS, *ids_of("U:ab\nA:"))


def test_a_chat_template_gets_every_turn_of_a_dialogue_and_a_format_its_text() -> None:
    made = tokenizer()
    made.chat_template = CHAT
    prompt = Dialogue("d: c", [Turn("assistant", "ab"), Turn("user", "c")])
    messages = [{"role": "assistant", "content": "ab"}, {"role": "user", "content": "c"}]

    (chat,) = Codec(made, Template("{prompt}", chat=True, bos=True)).prompts([prompt])
    (plain,) = Codec(made, PLAIN).prompts([prompt])

    assert list(chat) == made.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert plain == (BOS, *ids_of("d: c"))


def test_the_space_behind_the_marker_of_a_dialogue_is_no_part_of_a_chat() -> None:
    made = tokenizer()
    made.chat_template = CHAT
    prompt = Dialogue("\n\nHuman: c\n\nAssistant:", [Turn("user", "c")])

    (chat,) = Codec(made, Template("{prompt}", chat=True, bos=True)).examples([Example(prompt, " d")], [ROW])
    (plain,) = Codec(made, PLAIN).examples([Example(prompt, " d")], [ROW])

    assert chat.ids == (BOS, *ids_of("U:c\nA:d"), EOS)
    assert plain.ids[plain.start :] == (*ids_of(" d"), EOS)


def test_a_chat_template_that_refuses_a_conversation_says_so_in_one_sentence() -> None:
    made = tokenizer()
    made.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHAT
    codec = Codec(made, Template("{prompt}", chat=True, bos=False))

    with pytest.raises(DataError, match=r"chat template refuses a prompt of system, user \(no system turn\); leave such rows"):
        codec.prompts([Dialogue("a", [Turn("system", "b"), Turn("user", "c")])])


def test_a_chat_template_writes_the_turn_and_its_bos_once() -> None:
    made = tokenizer()
    made.chat_template = CHAT
    codec = Codec(made, Template("{prompt}", chat=True, bos=True))

    (encoded,) = codec.examples([Example("ab", "c")], [ROW])

    assert encoded.ids == (BOS, *ids_of("U:ab\nA:c"), EOS)
    assert encoded.start == 1 + len("U:ab\nA:")


def test_decoding_leaves_special_tokens_out() -> None:
    codec = Codec(tokenizer(), PLAIN)

    text = codec.decode([BOS, *ids_of("ab"), EOS, PAD])

    assert text.replace(" ", "") == "ab"


@pytest.mark.parametrize(
    ("template", "missing", "sentence"),
    [
        (PLAIN, "eos_token", "no EOS token"),
        (PLAIN, "bos_token", "no BOS token; set model.template.bos=false"),
        (Template("{prompt}", chat=True, bos=True), "chat_template", "no chat template; set model.template.chat=false"),
    ],
)
def test_a_tokenizer_that_lacks_what_the_template_needs_is_refused(template: Template, missing: str, sentence: str) -> None:
    made = tokenizer()
    setattr(made, missing, None)

    with pytest.raises(ConfigError, match=sentence):
        Codec(made, template)


BYTES = ("<s>", "</s>", "A", ":", "T", "o", "Ġ", "Ċ", "ĠT", "ĊĊ")
METASPACE = ("<s>", "</s>", "A", ":", "T", "o", "▁", "▁T", "▁A", "oT")


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2: a space or a line break belongs to the word behind it, and line breaks at the end of a text go together."""
    vocabulary = {piece: index for index, piece in enumerate(BYTES)}
    made = Tokenizer(BPE(vocabulary, [("Ġ", "T"), ("Ċ", "Ċ")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def metaspace() -> PreTrainedTokenizerFast:
    """As sentencepiece: a text begins with a space, and spaces belong to the word behind them."""
    vocabulary = {piece: index for index, piece in enumerate(METASPACE)}
    made = Tokenizer(BPE(vocabulary, [("▁", "T"), ("▁", "A"), ("o", "T")]))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    ("made", "prompt", "response", "asked", "trained", "moved"),
    [
        # The space in front of an answer is part of its first token, so the prompt ends before it.
        (byte_level, "A: ", "To", "A :", "ĠT o", False),
        (metaspace, "A: ", "To", "▁A :", "▁T o", False),
        # A space that the answer brings itself is the same tokens behind the prompt without one.
        (byte_level, "A:", " To", "A :", "ĠT o", False),
        (metaspace, "A:", " To", "▁A :", "▁T o", False),
        # An answer that begins with a space behind a prompt that ends in one keeps both.
        (byte_level, "A: ", " To", "A :", "Ġ ĠT o", False),
        (metaspace, "A: ", " To", "▁A :", "▁ ▁T o", False),
        # A line break stays where it is; of two, GPT-2 gives the second one to the answer.
        (byte_level, "A\n", "To", "A Ċ", "T o", False),
        (byte_level, "A\n\n", "To", "A Ċ", "Ċ T o", False),
        # Without white space between them a tail and a beginning may be one token; the answer gets none of it.
        (metaspace, "Ao", "To", "▁A o", "T o", True),
        (byte_level, "A\n", "\nTo", "A Ċ", "Ċ T o", False),
    ],
)
def test_a_prompt_has_the_ids_that_it_is_asked_with_whatever_follows(
    made: Callable[[], PreTrainedTokenizerFast], prompt: str, response: str, asked: str, trained: str, moved: bool
) -> None:
    reader = made()
    codec = Codec(reader, PLAIN)

    (encoded,) = codec.examples([Example(prompt, response)], [ROW])
    (ids,) = codec.prompts([prompt])

    assert reader.convert_ids_to_tokens(list(ids)) == ["<s>", *asked.split()]
    assert encoded.ids[: encoded.start] == ids
    assert reader.convert_ids_to_tokens(list(encoded.ids[encoded.start :])) == [*trained.split(), "</s>"]
    assert encoded.moved is moved


@pytest.mark.parametrize("made", [byte_level, metaspace])
@pytest.mark.parametrize(("prompt", "response"), [("A: ", "To"), ("A: ", " To"), ("A:", " To"), ("A:  ", "To"), ("Ao", "To")])
def test_what_was_trained_is_read_back_without_the_white_space_of_the_prompt(
    made: Callable[[], PreTrainedTokenizerFast], prompt: str, response: str
) -> None:
    codec = Codec(made(), PLAIN)
    (encoded,) = codec.examples([Example(prompt, response)], [ROW])

    text = codec.answer(prompt, codec.continuation(encoded.ids[: encoded.start], encoded.ids[encoded.start : -1]))

    assert text == response


def test_an_answer_without_the_white_space_of_the_prompt_is_left_as_it_is() -> None:
    codec = Codec(byte_level(), PLAIN)

    assert codec.answer("A: ", "To") == "To"
    assert codec.answer("A:", " To") == " To"
    assert codec.answer("A: ", "  To") == " To"


def test_a_prompt_of_white_space_alone_keeps_it() -> None:
    codec = Codec(byte_level(), Template("{prompt}", chat=False, bos=False))

    (prompt,) = codec.prompts([" "])
    (encoded,) = codec.examples([Example(" ", "To")], [ROW])

    assert prompt == (BYTES.index("Ġ"),)
    assert (encoded.ids[:1], encoded.start, encoded.moved) == (prompt, 1, True)
