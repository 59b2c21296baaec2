"""Generated files: each is read with every row accounted for, or refused in one sentence."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from alignlab.data.local import jsonl, offers, text_classification
from alignlab.data.published import hh_pairs, summary_pairs, ultrafeedback_pairs
from alignlab.data.rows import COLUMNS
from alignlab.data.source import Split
from alignlab.errors import AlignlabError
from tests.fuzzing import fuzzed
from tests.unit.data.forms import WRITERS, config
from tests.unit.data.test_text_classification import config as texts_of

ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
TEXTS = st.sampled_from(["p", "q", "Why is it?", "yes", "no", "\n\nHuman: a\n\nAssistant: b", "", " ", "a\0b", "é"]) | ANY_TEXT
ROLES = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", "", "User"])
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": ROLES, "content": TEXTS})
    | st.fixed_dictionaries({"from": ROLES, "value": TEXTS})
    | st.fixed_dictionaries({"role": st.just("user"), "content": st.none() | st.integers()}),
    max_size=4,
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.just(10**400)
NESTED = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2), max_leaves=5
)
TALK = st.sampled_from([("a", "b", "c"), ("é", " d", "e\n")]).map(
    lambda three: [{"role": "user", "content": three[0]}, {"role": "assistant", "content": three[1]}]
)
SENSIBLE = (
    st.fixed_dictionaries({"prompt": TEXTS, "chosen": TEXTS, "rejected": TEXTS | st.lists(TEXTS, max_size=3)})
    | st.fixed_dictionaries({"chosen": TALK, "rejected": TALK})
    | st.fixed_dictionaries({"prompt": TEXTS, "completion": TEXTS, "label": st.booleans() | TEXTS, "score": SCALARS})
    | st.fixed_dictionaries({"messages": TALK | MESSAGES, "system": st.none() | TEXTS})
    | st.fixed_dictionaries({"instruction": TEXTS, "input": TEXTS, "output": TEXTS, "history": st.just([["a", "b"]]) | NESTED})
)
NAMES = st.sampled_from([*sorted({name for found in COLUMNS.values() for name in found}), "id", ""]) | ANY_TEXT
STRANGE = st.dictionaries(NAMES, NESTED | MESSAGES, max_size=4)
GOOD = [{"prompt": f"q{number}", "chosen": "yes", "rejected": "no"} for number in range(3)]
ROWS = st.lists(SENSIBLE | SENSIBLE | STRANGE, max_size=6).flatmap(lambda rows: st.sampled_from([rows, GOOD + rows]))
LINES = (
    "{",
    "[1]",
    "3",
    '{"prompt": "p", "prompt": "q"}',
    '{"a": "\\ud800"}',
    '{"a": NaN}',
    "[" * 5000,
    '{"n": 1' + "0" * 5000 + "}",
)
TABLES = (".csv", "-semicolons.csv", ".tsv")


def kept(split: Split) -> int:
    """How many rows the records are of: their names, the number of a record in its row aside."""
    return len({record.row.partition("/")[0] for record in split.records})


def as_table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the same columns, in the order of their first row; messages as JSON."""
    columns = dict.fromkeys(column for row in rows for column in row)
    cells = [{column: row.get(column) for column in columns} for row in rows]
    return [
        {column: json.dumps(value) if isinstance(value, (list, dict)) else value for column, value in row.items()}
        for row in cells
    ]


def one_sentence(error: AlignlabError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 700


def read_all(folder: Path, changes: dict[str, Any]) -> dict[str, Split]:
    settled = config(folder, **changes)
    settled.check("data")
    offers(settled)
    source = jsonl(settled)
    return {name: source.split(name) for name in ("train", "test")}


@fuzzed(2000)
@given(
    rows=ROWS,
    form=st.sampled_from([form for form in WRITERS if form not in (".parquet", "-saved")]),
    more=st.lists(st.sampled_from(LINES), max_size=2),
    shared=st.booleans(),
    changes=st.fixed_dictionaries(
        {
            "unusable_pairs": st.sampled_from(["error", "drop", "drop"]),
            "answers": st.sampled_from(["last", "all"]),
            "repeated_prompt": st.sampled_from(["keep", "cut"]),
            "columns": st.just({})
            | st.dictionaries(st.sampled_from(sorted(COLUMNS)), st.sampled_from(["id", "prompt", "output"]), max_size=1),
        }
    ),
)
def test_every_file_is_accounted_for_or_refused(
    rows: list[dict[str, Any]], form: str, more: list[str], shared: bool, changes: dict[str, Any]
) -> None:
    if form in TABLES:
        rows = as_table(rows) or [{"prompt": "p"}]
    extra = more if form in (".jsonl", "-bom.jsonl") else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split in ("train", "test"):
            path = folder / f"{split}{form}"
            WRITERS[form](path, rows)
            if extra:
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(line + "\n" for line in extra)
        try:
            found = read_all(folder / f"train{form}" if shared else folder, changes)
        except AlignlabError as error:
            return one_sentence(error)
    count = len(rows) + len(extra)
    for split in found.values():
        assert split.read == kept(split) + sum(split.left_out.values())
    if shared:
        assert sum(split.read for split in found.values()) == count
    else:
        assert all(split.read == count for split in found.values())


LABELLED = st.fixed_dictionaries(
    {"text": TEXTS | SCALARS, "label": st.sampled_from(["a", "b", "1.5"]) | SCALARS | st.just([1])}
)


@fuzzed(400)
@given(
    rows=st.lists(LABELLED, max_size=6).map(lambda rows: [{"text": "p", "label": "2"}, {"text": "q", "label": "b"}, *rows]),
    form=st.sampled_from([".jsonl", ".csv", ".json"]),
    task=st.sampled_from(["classes", "classes", "number"]),
)
def test_labelled_texts_are_accounted_for_or_refused(rows: list[dict[str, Any]], form: str, task: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        for split in ("train", "test"):
            WRITERS[form](Path(name) / f"{split}{form}", as_table(rows) if form == ".csv" else rows)
        settled = texts_of(Path(name), task=task)
        try:
            settled.check("data")
            source = text_classification(settled)
            assert source.labels is not None
            source.labels()
            found = [source.split(split) for split in ("train", "test")]
        except AlignlabError as error:
            return one_sentence(error)
    assert all(split.read == len(rows) == kept(split) + sum(split.left_out.values()) for split in found)


SUMMARIES = st.fixed_dictionaries(
    {
        "info": st.dictionaries(st.sampled_from(["subreddit", "title", "post"]), TEXTS | SCALARS) | SCALARS,
        "summaries": st.lists(st.fixed_dictionaries({"text": TEXTS | SCALARS}) | SCALARS, max_size=3) | SCALARS,
        "choice": st.integers(-1, 2) | SCALARS,
    }
)


@fuzzed(400)
@given(
    rows=st.lists(SENSIBLE | STRANGE | SUMMARIES, max_size=5),
    read=st.sampled_from(
        [
            lambda rows: ultrafeedback_pairs(rows, "Q: {prompt}"),
            lambda rows: hh_pairs(rows, "drop"),
            lambda rows: hh_pairs(rows, "error"),
            lambda rows: summary_pairs(rows, "{title} {post}"),
        ]
    ),
)
def test_rows_of_published_sets_are_accounted_for_or_refused(rows: list[dict[str, Any]], read: Callable[[Any], Split]) -> None:
    try:
        split = read([(f"rows:{number}", row) for number, row in enumerate(rows)])
    except AlignlabError as error:
        return one_sentence(error)
    assert split.read == len(rows) == kept(split) + sum(split.left_out.values())


@fuzzed(60)
@given(rows=st.lists(SENSIBLE, min_size=1, max_size=5), form=st.sampled_from([".parquet", "-saved"]))
def test_tables_are_accounted_for_or_refused(rows: list[dict[str, Any]], form: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split in ("train", "test"):
            try:
                WRITERS[form](folder / f"{split}{form}", rows)
            except Exception:  # rows that no table holds, such as a column of texts and lists
                return
        try:
            found = read_all(folder, {"unusable_pairs": "drop"})
        except AlignlabError as error:
            return one_sentence(error)
    assert all(split.read == len(rows) == kept(split) + sum(split.left_out.values()) for split in found.values())


@fuzzed(300)
@given(
    content=st.binary(max_size=60)
    | st.text(st.sampled_from('{}[]",:;\\\t\n\r\0ap1-.eé'), max_size=60).map(lambda text: text.encode()),
    ending=st.sampled_from(
        [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".jsonl.gz", ".json.bz2", ".csv.xz", ".txt"]
    ),
)
def test_bytes_are_never_a_traceback(content: bytes, ending: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / f"rows{ending}"
        file.write_bytes(content)
        try:
            found = read_all(file, {"unusable_pairs": "drop"})
        except AlignlabError as error:
            return one_sentence(error)
    assert all(split.read == kept(split) + sum(split.left_out.values()) for split in found.values())
