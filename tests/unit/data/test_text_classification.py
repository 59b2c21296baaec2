"""Texts and labels from files: what is read, what is counted, what is refused."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignlab.data.config import TextClassificationConfig
from alignlab.data.halves import PrefixConfig
from alignlab.data.local import text_classification as build
from alignlab.errors import ConfigError, DataError
from alignlab.records import LabelSet
from tests.unit.conftest import checked


def config(path: Path, **changes: Any) -> TextClassificationConfig:
    made = TextClassificationConfig(
        name="text_classification",
        max_tokens=None,
        too_long="error",
        limit=None,
        test_limit=None,
        prefixes=PrefixConfig(None, None, ""),
        flipped=0.0,
        halves=None,
        part=None,
        path=str(path),
        train="train*",
        test="test*",
        test_share=None,
        split_seed=0,
        text="text",
        second=None,
        label="label",
        task="classes",
        answers="names",
        frame=None,
        labels=None,
    )
    return replace(made, **changes)


def folder(tmp_path: Path, name: str, train: str, test: str) -> Path:
    (tmp_path / f"train{name}").write_text(train, encoding="utf-8")
    (tmp_path / f"test{name}").write_text(test, encoding="utf-8")
    return tmp_path


def pairs_of(source: Any, split: str) -> list[tuple[str, str]]:
    return [(record.prompt, record.responses[0].text) for record in source.split(split).records]


@pytest.mark.parametrize(
    ("name", "train"),
    [
        (".csv", 'text,label\n"a, b",NA\nc,1\n'),
        (".csv", '\ufefftext,label\n"a, b",NA\nc,1\n'),
        (".tsv", "text\tlabel\na, b\tNA\nc\t1\n"),
        (".jsonl", '{"text": "a, b", "label": "NA"}\n{"text": "c", "label": 1}\n'),
    ],
)
def test_every_form_gives_the_cells_as_they_are_written(tmp_path: Path, name: str, train: str) -> None:
    source = build(config(folder(tmp_path, name, train, train)))

    assert pairs_of(source, "train") == [("a, b", "NA"), ("c", "1")]
    assert source.labels is not None
    assert source.labels() == LabelSet(("1", "NA"))


def test_a_gzipped_file_is_shared_out_without_losing_or_doubling_a_row(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"t{number}", "label": number % 2}) + "\n" for number in range(10))
    (tmp_path / "all.jsonl.gz").write_bytes(gzip.compress(lines.encode()))

    source = build(config(tmp_path, train="all*", test="all*", test_share=0.3))

    train, test = (pairs_of(source, split) for split in ("train", "test"))
    assert len(test) == 3
    assert sorted(train + test) == sorted((f"t{number}", str(number % 2)) for number in range(10))


def test_an_empty_cell_is_counted_with_its_reason(tmp_path: Path) -> None:
    source = build(config(folder(tmp_path, ".csv", "text,label\na,x\n,y\nb,\n", "text,label\na,x\n")))

    split = source.split("train")

    assert len(split.records) == 1
    assert split.left_out == {"a column is empty": 2}


def test_two_columns_of_text_are_kept_apart(tmp_path: Path) -> None:
    rows = "premise,hypothesis,label\na,b,yes\nc,d,no\n"

    source = build(config(folder(tmp_path, ".csv", rows, rows), text="premise", second="hypothesis"))

    assert [(record.prompt, record.second) for record in source.split("train").records] == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    ("train", "changes", "says"),
    [
        ("text,label\na,x\nb,x\n", {}, "one class only, x"),
        ("text,label\na,1\nb,nan\n", {"task": "number"}, r"train\.csv:2: label 'nan' is no finite number"),
        ("text,lable\na,1\nb,2\n", {}, "no column 'label' .*did you mean lable"),
        ("text,label\n", {}, "train split has no row"),
        ("text,label\na,0.5\nb,3\nc,4.75\n", {}, r"numbers, such as 0\.5, and .* 3 classes of them; set data.task=number"),
    ],
)
def test_what_cannot_be_learned_is_one_sentence(tmp_path: Path, train: str, changes: dict[str, Any], says: str) -> None:
    source = build(config(folder(tmp_path, ".csv", train, train), **changes))
    assert source.labels is not None

    with pytest.raises((ConfigError, DataError), match=says):
        source.labels() if "task" not in changes else source.split("train")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_label_outside_the_classes_is_named_with_its_row(tmp_path: Path, split: str) -> None:
    rows = {"train": "text,label\na,x\nb,y\n", "test": "text,label\na,x\n"}
    rows[split] += "c,z\n"
    labels = ["x", "y"] if split == "train" else None

    source = build(config(folder(tmp_path, ".csv", rows["train"], rows["test"]), labels=labels))

    with pytest.raises(DataError, match=rf"{split}\.csv:\d: label 'z' is none of the classes x, y; mend the row"):
        source.split(split)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"test_share": 0.2}, "name different files; set data.test_share=null"),
        ({"test": "train*"}, "name the same files; set data.test_share"),
        ({"test": "train*", "test_share": 1.0}, "test_share=1.0 must be above 0 and below 1"),
        ({"labels": ["a"]}, "must name at least two classes"),
        ({"task": "ranking"}, "choose one of classes, number"),
        ({"path": None}, "needs data.path"),
    ],
)
def test_a_config_without_a_meaning_is_refused_before_anything_is_read(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    made = replace(config(folder(tmp_path, ".csv", "text,label\na,x\n", "text,label\na,x\n")), **changes)

    with pytest.raises(ConfigError, match=says):
        checked("data", made)


def test_texts_are_written_into_a_frame_and_classes_told_by_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,second,label\nx,y,no\nz,w,yes\n")
    (tmp_path / "test.csv").write_text("text,second,label\nx,y,maybe\n")
    made = build(config(tmp_path, second="second", answers="numbers", frame="{second} or {text}?"))

    records = made.split("train").records

    assert [(record.prompt, record.second, record.responses[0].text) for record in records] == [
        ("y or x?", None, "0"),
        ("w or z?", None, "1"),
    ]
    assert made.labels is not None
    assert made.labels().names == ("0", "1")
    with pytest.raises(DataError, match="label 'maybe' is none of the classes no, yes"):
        made.split("test")
