"""What people's files say: the expected records are written out by hand, beside the rows that hold them."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from alignlab.data.files import find
from alignlab.data.local import jsonl, offers
from alignlab.data.source import LeftOut, Split
from alignlab.errors import AlignlabError, ConfigError, DataError
from alignlab.records import Dialogue, Record, Response, Turn
from tests.unit.data.forms import WRITERS, config, written

PAIRS = [("Why, oh why?", 'Because; "so"\nit is.', "No."), ("Où est-il ?", "Là, là-bas.", "Sais pas\tmoi."), ("3", "4", "5")]
TEXTS = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in PAIRS]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def split_of(tmp_path: Path, *rows: dict[str, Any], **changes: Any) -> Split:
    return jsonl(config(written(tmp_path, rows), **changes)).split("train")


def texts(split: Split) -> list[tuple[str, ...]]:
    return [(record.prompt, *(response.text for response in record.responses)) for record in split.records]


@pytest.mark.parametrize("form", WRITERS)
def test_pairs_say_the_same_in_every_kind_of_file(tmp_path: Path, form: str) -> None:
    source = jsonl(config(written(tmp_path, TEXTS, form)))

    assert texts(source.split("train")) == texts(source.split("test")) == PAIRS
    assert offers(config(tmp_path)) == {"pairs", "chosen"}


@pytest.mark.parametrize("form", [".jsonl", ".json", ".parquet", "-saved"])
@pytest.mark.parametrize(
    "row",
    [
        lambda p, c, r: {"prompt": [user(p)], "chosen": [assistant(c)], "rejected": [assistant(r)]},
        lambda p, c, r: {"chosen": [user(p), assistant(c)], "rejected": [user(p), assistant(r)]},
        lambda p, c, r: {"prompt": p, "chosen": [user(p), assistant(c)], "rejected": [user(p), assistant(r)]},
        lambda p, c, r: {"prompt": p, "chosen": [assistant(c)], "rejected": [assistant(r)]},
        lambda p, c, r: {
            "conversations": [{"from": "human", "value": p}],
            "chosen": {"from": "gpt", "value": c},
            "rejected": {"from": "gpt", "value": r},
        },
        lambda p, c, r: {"instruction": p, "input": "", "chosen": c, "rejected": r},
        lambda p, c, r: {"prompt": p, "chosen": c, "rejected": [r]},
    ],
    ids=["explicit", "implicit", "both", "answers", "sharegpt", "alpaca", "list"],
)
def test_messages_of_one_turn_are_the_pairs_that_texts_are(tmp_path: Path, form: str, row: Any) -> None:
    rows = [row(*pair) for pair in PAIRS]

    source = jsonl(config(written(tmp_path, rows, form)))

    assert texts(source.split("train")) == PAIRS
    assert not any(isinstance(record.prompt, Dialogue) for record in source.split("train").records)


def test_other_names_of_columns_are_given_and_refusals_list_what_there_is(tmp_path: Path) -> None:
    renamed = [{"question": prompt, "better": chosen, "worse": rejected} for prompt, chosen, rejected in PAIRS]
    folder = written(tmp_path, renamed, ".csv")
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse"}

    assert texts(jsonl(config(folder, columns=columns)).split("train")) == PAIRS
    with pytest.raises(DataError, match=r"the line has question, better, worse\. Name other columns with data\.columns="):
        jsonl(config(folder)).split("train")
    with pytest.raises(
        DataError, match=r"data\.columns\.system=rules: no row has this column; there are question, better, worse"
    ):
        jsonl(config(folder, columns={**columns, "system": "rules"})).split("train")


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [({"promt": "q"}, r"data\.columns\.promt is not known"), ({"prompt": "q", "chosen": "q"}, "one column twice")],
)
def test_columns_that_mean_nothing_are_refused(tmp_path: Path, columns: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config(written(tmp_path, TEXTS), columns=columns).check("data")


def test_every_turn_reaches_the_prompt(tmp_path: Path) -> None:
    opening = [{"role": "system", "content": "Be brief."}, user("a"), assistant("b"), user("c")]
    row = {"prompt": "a", "chosen": [*opening, assistant("yes")], "rejected": [*opening, assistant("no")], "prompt_id": "7"}

    split = split_of(tmp_path, row)

    (record,) = split.records
    assert isinstance(record.prompt, Dialogue)
    assert record.prompt == "Be brief.\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    turns = (Turn("system", "Be brief."), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
    assert record.prompt.turns == turns
    assert [response.text for response in record.responses] == ["yes", "no"]
    assert split.notes == {"with a system turn": 1, "with several turns": 1}
    assert split.origin is not None
    assert (split.origin.used, split.origin.unused) == (("prompt", "chosen", "rejected"), ("prompt_id",))


def test_a_system_column_is_the_system_turn_and_other_columns_are_named(tmp_path: Path) -> None:
    split = split_of(tmp_path, {"system": "Only French.", **TEXTS[2], "source": "web", "score": 3})

    (record,) = split.records
    assert record.prompt == "Only French.\n\n3"
    assert isinstance(record.prompt, Dialogue)
    assert record.prompt.turns == (Turn("system", "Only French."), Turn("user", "3"))
    assert split.origin is not None
    assert split.origin.sentence() == (
        "from train.jsonl; columns system, prompt, chosen, rejected; columns not used source, score"
    )


def test_a_column_that_may_be_meant_for_one_that_is_read_is_said_to_look_like_it(tmp_path: Path) -> None:
    split = split_of(tmp_path, {"prompt": "a", "response": "b", "lable": "good", "completion": "c", "source": "web"})

    assert split.origin is not None
    assert split.origin.unused == ("lable (did you mean 'label'?)", "completion", "source")


def test_a_column_counts_as_used_where_its_value_is_read(tmp_path: Path) -> None:
    split = split_of(tmp_path, {"prompt": "a", "response": None, "completion": "b", "output": "c", "label": None})

    assert [response.text for record in split.records for response in record.responses] == ["b"]
    assert split.origin is not None
    assert (split.origin.used, split.origin.unused) == (("prompt", "completion"), ("response", "output", "label"))


def test_alpaca_rows_have_input_and_history(tmp_path: Path) -> None:
    row = {"instruction": "Sum.", "input": "1 2", "output": "3", "history": [["Hi.", "Hello."]], "system": ""}

    (record,) = split_of(tmp_path, row).records

    assert isinstance(record.prompt, Dialogue)
    assert record.prompt.turns == (Turn("user", "Hi."), Turn("assistant", "Hello."), Turn("user", "Sum.\n1 2"))
    assert record.responses == (Response("3"),)


@pytest.mark.parametrize("form", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("key", ["completion", "response"])
def test_true_and_false_are_good_and_bad(tmp_path: Path, key: str, form: str) -> None:
    rows = [{"prompt": "p", key: "a", "label": True}, {"prompt": "p", key: "b", "label": False}]

    split = jsonl(config(written(tmp_path, rows, form))).split("train")

    assert [record.responses[0] for record in split.records] == [Response("a", "good"), Response("b", "bad")]
    assert offers(config(tmp_path)) == {"chosen", "labels"}


def test_of_a_conversation_the_last_answer_or_all_are_responses(tmp_path: Path) -> None:
    row = {"messages": [user("a"), assistant("b"), user("c"), assistant("d"), user("e")]}

    last, every = split_of(tmp_path, row), split_of(tmp_path, row, answers="all")

    assert [record.responses[0].text for record in last.records] == ["d"]
    assert [(record.row, record.prompt, record.responses[0].text) for record in every.records] == [
        ("train.jsonl:1/2", "a", "b"),
        ("train.jsonl:1", "Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: ", "d"),
    ]
    assert (every.read, len(every.records)) == (1, 2)
    assert last.notes["turns behind the last answer left out"] == 1
    assert last.notes["earlier answers of a conversation are prompt (data.answers=all trains on them)"] == 1


def test_each_of_several_rejected_answers_makes_a_pair(tmp_path: Path) -> None:
    split = split_of(tmp_path, {"prompt": "p", "chosen": "c", "rejected": ["r", "c", "s"]})

    assert split.records == (Record.pair("train.jsonl:1", "p", "c", "r"), Record.pair("train.jsonl:1/2", "p", "c", "s"))
    assert split.notes == {
        "rejected answers equal to the chosen one left out": 1,
        "with several rejected answers, each a pair": 1,
    }


def test_rows_of_two_kinds_are_each_read_for_what_they_are(tmp_path: Path) -> None:
    start = "\n\nHuman: a\n\nAssistant:"
    rows = ({"chosen": start + " yes", "rejected": start + " no"}, TEXTS[0], {"prompt": "p", "response": "r", "score": 0.5})

    split = split_of(tmp_path, *rows)

    assert texts(split) == [(start, " yes", " no"), PAIRS[0], ("p", "r")]
    assert offers(config(tmp_path)) == {"pairs", "chosen", "scores"}


UNUSABLE: dict[str, tuple[str, str]] = {
    "empty answer": (json.dumps({"prompt": "p", "chosen": "c", "rejected": " "}), "an answer is empty"),
    "empty prompt": (json.dumps({"prompt": "", "chosen": "c", "rejected": "r"}), "a prompt is empty"),
    "one side": (json.dumps({"prompt": "p", "chosen": "c"}), "an answer of the pair is missing"),
    "no content": (json.dumps({"messages": [user("a"), {"role": "assistant"}]}), "a message without role or content"),
    "nothing": (json.dumps({"prompt": "p"}), "no answer in it"),
    "no prompt": (json.dumps({"chosen": "c", "rejected": "r"}), "no prompt in it"),
    "number": (json.dumps({"prompt": "p", "response": 3}), "a column of another form"),
    "label list": (json.dumps({"prompt": "p", "response": "r", "label": ["a"]}), "a label of another form"),
    "empty class": (json.dumps({"prompt": "p", "response": "r", "label": " "}), "a label is empty"),
    "huge score": ('{"prompt": "p", "response": "r", "score": 1' + "0" * 400 + "}", "a score is no finite number"),
    "truth as score": (json.dumps({"prompt": "p", "response": "r", "score": True}), "a score is no finite number"),
    "huge number": ('{"prompt": "p", "response": "r", "n": 1' + "0" * 9000 + "}", "not valid JSON"),
    "brackets": ('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    "surrogate": ('{"prompt": "p", "response": "\\ud800"}', "half of a surrogate pair in a text"),
    "NUL": ('{"prompt": "p", "response": "a\\u0000b"}', "a NUL character in a text"),
    "key twice": ('{"prompt": "p", "response": "r", "response": "s"}', "a key stands twice"),
    "broken": ('{"prompt": ', "not valid JSON"),
    "array": ("[3]", "no JSON object"),
    "tool": (json.dumps({"messages": [user("a"), {"role": "tool", "content": "b"}]}), "a message of another role"),
    "no answer": (json.dumps({"messages": [user("a")]}), "no answer of an assistant"),
    "greeting": (
        json.dumps({"messages": [assistant("hi"), user("a"), assistant("b")]}),
        "user and assistant do not take turns",
    ),
    "systems": (json.dumps({"system": "s", "messages": [{"role": "system", "content": "t"}, user("a")]}), "two system texts"),
    "prompts": (
        json.dumps({"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("c")]}),
        "prompts of the pair differ",
    ),
    "strange": (
        json.dumps({"prompt": "z", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}),
        "prompt and conversation differ",
    ),
}


@pytest.mark.parametrize(("line", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_row_is_refused_or_dropped_and_counted(tmp_path: Path, line: str, reason: str) -> None:
    good = json.dumps(TEXTS[0])
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(f"{good}\n{line}\n", encoding="utf-8")

    with pytest.raises(DataError, match=r"train\.jsonl:2: ") as error:
        jsonl(config(tmp_path)).split("train")
    split = jsonl(config(tmp_path, unusable_pairs="drop")).split("train")

    assert len(str(error.value)) < 400
    assert texts(split) == [PAIRS[0]]
    assert (split.left_out, split.read) == ({reason: 1}, 2)


STRAY = {
    "train.jsonl": (r"train\.jsonl:2: holds the byte 0xe9 at column 18, which is no UTF-8; mend", "train.jsonl:2"),
    "train.json": (r"train\.json:2: holds the byte 0xe9 at column 18, ", "train.json:2"),
    "train.csv": (
        r"train\.csv:2: holds the byte 0xe9 at column 6 of the row that ends in line 4, which is no UTF-8; mend",
        "train.csv:2",
    ),
    "train.jsonl.gz": (r"train\.jsonl\.gz:2: holds the byte 0xe9 at column 18, ", "train.jsonl.gz:2"),
}


@pytest.mark.parametrize("name", STRAY)
def test_a_byte_that_is_no_utf_8_is_named_with_its_row_which_can_be_dropped(tmp_path: Path, name: str) -> None:
    lines = [
        json.dumps({"prompt": f"p {each}", "chosen": "c", "rejected": "r"}, ensure_ascii=False)
        for each in ("ü", "caf!", "\ud7ff")
    ]
    whole = "[" + ",\n".join(lines) + "]" if name == "train.json" else "\n".join(lines)
    if name == "train.csv":
        whole = 'prompt,chosen,rejected\np ü,c,r\n"p caf!\n",c,r\np \ud7ff,c,r\n'
    content = whole.encode().replace(b"!", b"\xe9")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    settings = {"train": name, "test": name, "test_share": 0.4}
    said, row = STRAY[name]

    with pytest.raises(DataError, match=rf"^{said}.*; set data\.unusable_pairs=drop to leave out every such row \(.*\)\.$"):
        jsonl(config(tmp_path, **settings)).split("train")
    splits = [jsonl(config(tmp_path, unusable_pairs="drop", **settings)).split(split) for split in ("train", "test")]

    assert splits[0].lost == (LeftOut(row, "a byte that is no UTF-8"),)
    assert sorted(record.prompt for split in splits for record in split.records) == ["p ü", "p \ud7ff"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "choosen": "c", "rejected": "r"}, "no 'chosen'; the line has prompt, choosen, rejected (did you mean"),
        ({"prompt": "p", "chosen": "c", "reject": "r"}, "(did you mean 'rejected' by 'reject'?)"),
        (
            {"promt": "p", "chosen": "c", "rejected": "r"},
            "promt, chosen, rejected (did you mean 'prompt' by 'promt'?)",
        ),
        ({"prompt": "p", "respnse": "r"}, "(did you mean 'response' by 'respnse'?)"),
        ({"message": [user("a"), assistant("b")]}, "(did you mean 'messages' by 'message'?)"),
        ({"messages": [user("a"), {"rolle": "assistant", "content": "b"}]}, "(did you mean 'role' by 'rolle'?)"),
        ({"messages": [user("a"), {"from": "gpt", "valeu": "b"}]}, "(did you mean 'value' by 'valeu'?)"),
    ],
)
def test_a_misspelt_column_or_key_is_named_beside_the_one_that_is_missing(
    tmp_path: Path, row: dict[str, object], said: str
) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        split_of(tmp_path, row)


def test_a_column_that_is_only_called_otherwise_is_not_taken_for_a_misspelt_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the line has question, answer\. Name other columns"):
        split_of(tmp_path, {"question": "p", "answer": "r"})


def test_equal_answers_are_left_out_and_counted_and_repetitions_named(tmp_path: Path) -> None:
    same = {"prompt": "p", "chosen": "c", "rejected": "c"}
    repeating = {"prompt": "Why is it?", "chosen": "Why is it? So.", "rejected": "Why is it? No."}
    source = jsonl(config(written(tmp_path, [TEXTS[0], same, TEXTS[0], repeating])))

    train, test = source.split("train"), source.split("test")

    assert train.left_out == {"both answers are the same": 1}
    assert train.notes == {"answers that repeat their prompt": 1, "that repeat another row (kept)": 1}
    assert test.notes == {**train.notes, "that stand in the training split too": 3}


def test_a_prompt_that_all_answers_repeat_is_cut_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Why is it?", "chosen": "Why is it? So.", "rejected": ["Why is it?\nNo.", " Why is it? Not."]},
        {"prompt": "Why is it?", "chosen": "Why is it? So.", "rejected": "No."},
        {"prompt": "What is a", "chosen": "What is a yam?", "rejected": "What is art?"},
        {"prompt": [user("a"), assistant("b"), user("Why is it?")], "response": "Why is it? So."},
        {"prompt": "Why is it?", "chosen": "Why is it? So.", "rejected": "Why is it?  So."},
        {"prompt": "Why is it?", "response": "Why is it?"},
    ]
    settings = {"repeated_prompt": "cut", "unusable_pairs": "drop"}

    split = split_of(tmp_path, *rows, **settings)

    assert texts(split) == [
        ("Why is it?", "So.", "No."),
        ("Why is it?", "So.", " Not."),
        ("Why is it?", "Why is it? So.", "No."),
        ("What is a", "What is a yam?", "What is art?"),
        ("Human: a\n\nAssistant: b\n\nHuman: Why is it?\n\nAssistant: ", "So."),
    ]
    assert split.notes["answers whose repeated prompt was cut"] == 2
    assert split.left_out == {"both answers are the same": 1, "an answer is empty": 1}


def test_backups_pipes_and_further_forms_are_named_and_not_read(tmp_path: Path) -> None:
    folder = written(tmp_path, TEXTS)
    WRITERS[".jsonl.gz"](folder / "train.jsonl.gz", TEXTS)
    WRITERS[".csv"](folder / "train.csv", TEXTS)
    for name in (".train.jsonl.swp", "train.jsonl~", "train.jsonl.bak", "train_notes.md"):
        (folder / name).write_text("{", encoding="utf-8")
    (folder / "train_more").mkdir()
    os.mkfifo(folder / "train_pipe.jsonl")

    split = jsonl(config(folder)).split("train")

    assert texts(split) == PAIRS
    assert split.origin is not None
    assert split.origin.files == ("train.jsonl",)
    assert set(split.origin.passed_over) == {
        "train.csv (another form of train.jsonl)",
        "train.jsonl.gz (another form of train.jsonl)",
        "train.jsonl~ (hidden or a backup)",
        "train.jsonl.bak (hidden or a backup)",
        "train_notes.md (no form of data)",
        "train_more (a folder)",
        "train_pipe.jsonl (not a regular file)",
    }


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")

    assert find(tmp_path / "rows.jsonl", "train*").files == ()
    with pytest.raises(ConfigError, match=r"passed over: rows.jsonl \(not a regular file\)"):
        config(tmp_path / "rows.jsonl").check("data")


def test_a_file_in_both_patterns_beside_others_is_refused(tmp_path: Path) -> None:
    written(tmp_path, TEXTS)

    with pytest.raises(ConfigError, match=r"data\.train and data\.test both name test\.jsonl"):
        config(tmp_path, train="t*").check("data")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("train.csv", b"prompt,prompt\na,b\n", "a column stands twice"),
        ("train.csv", b'prompt,chosen\n"a,b\n', "cannot be read as a table"),
        ("train.csv", b"prompt,chosen,rejected\na,b\n", "has 2 cells, but the table has 3 columns"),
        ("train.parquet", b"PAR1", "cannot be read as a table"),
        ("train.json", b"3", "must hold JSON objects but is int"),
        ("train.json", b"[{]", "not valid JSON"),
        ("train.jsonl.xz", b"no xz", "cannot be read"),
        ("train.jsonl", b"\n\n", "the file is empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    written(tmp_path, TEXTS)
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / name).write_bytes(content)

    with pytest.raises(AlignlabError, match=rf"{name}.*{sentence}"):
        jsonl(config(tmp_path)).split("train")
