"""GLUE and E2E NLG from files: splits, classes, what is left out, what is refused."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignlab.data.config import E2eConfig, GlueConfig
from alignlab.data.tasks import TASKS, e2e_nlg, glue, halves, linearised
from alignlab.errors import ConfigError, DataError
from alignlab.records import LabelSet
from tests.unit.conftest import HUB

MEANING = "name[The Eagle], priceRange[£20-25], near[Burger King]"


def config(path: Path | None, task: str = "rte", **changes: Any) -> GlueConfig:
    own = {"name": "glue", "path": path and str(path), "train": "train*", "test": "validation*"}
    return replace(
        GlueConfig(**HUB, **own, task=task, protocol="clean", split_seed=42, answers="names", frames=None), **changes
    )


def e2e(path: Path | None, **changes: Any) -> E2eConfig:
    files = {"train": "trainset*", "validation": "devset*", "test": "testset*"}
    made = E2eConfig(**HUB, name="e2e_nlg", path=path and str(path), **files, linearisation="raw")
    return replace(made, **changes)


def written(folder: Path, task: str, rows: int, train: int = 3, label: object = 1) -> Path:
    """Rows of a task whose texts say their place."""
    for name, count in (("train", train), ("validation", rows)):
        lines = [{**{column: f"{column} {place}" for column in TASKS[task].texts}, "label": label} for place in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def places(records: Any) -> list[int]:
    return [int(record.row.rpartition(":")[2]) - 1 for record in records]


def test_rte_is_cut_in_two_as_the_released_code_cuts_it() -> None:
    validation, test = halves("rte", 277, 42)

    assert (len(validation), validation[:6]) == (138, [30, 126, 220, 142, 255, 236])
    assert (len(test), test[:4]) == (139, [51, 95, 217, 186])


def test_the_halves_of_cola_are_swapped() -> None:
    validation, test = halves("cola", 1043, 42)

    assert (len(validation), validation[:4]) == (522, [412, 74, 937, 500])
    assert (len(test), test[:4]) == (521, [1035, 280, 535, 822])


@pytest.mark.parametrize(
    ("task", "rows", "validation", "test"),
    [
        ("sst2", 872, 436, 436),
        ("mrpc", 408, 204, 204),
        ("qqp", 40_430, 1000, 39_430),
        ("stsb", 1500, 750, 750),
        ("mnli", 9815, 1000, 8815),
        ("qnli", 5463, 1000, 4463),
    ],
)
def test_the_splits_have_the_papers_sizes_and_share_no_row(task: str, rows: int, validation: int, test: int) -> None:
    for seed in range(42, 47):
        found = halves(task, rows, seed)

        assert (len(found[0]), len(found[1])) == (validation, test)
        assert sorted(found[0] + found[1]) == list(range(rows))


def test_a_split_has_the_rows_at_its_places_with_classes_by_name(tmp_path: Path) -> None:
    source = glue(config(written(tmp_path, "rte", rows=277)))

    records = source.split("validation").records

    assert places(records)[:3] == [30, 126, 220]
    assert (records[0].prompt, records[0].second) == ("sentence1 30", "sentence2 30")
    assert {record.responses[0].text for record in records} == {"not_entailment"}
    assert source.labels is not None
    assert source.labels() == LabelSet(("entailment", "not_entailment"))


def test_under_t5s_protocol_training_rows_of_a_large_task_validate_it(tmp_path: Path) -> None:
    source = glue(config(written(tmp_path, "sst2", rows=5, train=1003), "sst2", protocol="t5", answers="numbers"))

    splits = {name: source.split(name).records for name in ("train", "validation", "test")}

    assert {name: len(records) for name, records in splits.items()} == {"train": 3, "validation": 1000, "test": 5}
    assert sorted(places(splits["train"]) + places(splits["validation"])) == list(range(1003))
    assert splits["test"][0].responses[0].text == "1"


def test_a_similarity_is_a_number_or_for_t5_a_text_with_one_decimal(tmp_path: Path) -> None:
    folder = written(tmp_path, "stsb", rows=4, label=3.799999952316284)
    number, text = glue(config(folder, "stsb")), glue(config(folder, "stsb", answers="numbers"))

    assert number.split("test").records[0].responses[0].text == "3.800"
    assert text.split("test").records[0].responses[0].text == "3.8"
    assert number.labels is not None
    assert number.labels() == LabelSet(())
    assert text.labels is not None
    assert (text.labels().numbers, text.labels().names[:2], text.labels().names[-1]) == (True, ("0.0", "0.1"), "5.0")


def test_rows_without_a_label_or_a_text_are_left_out_after_the_cut(tmp_path: Path) -> None:
    rows = [{"sentence": text, "label": label} for text, label in (("a", 0), (" ", 1), ("c", -1), ("d", "acceptable"))]
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    split = glue(config(tmp_path, "cola")).split("train")

    assert [record.responses[0].text for record in split.records] == ["unacceptable", "acceptable"]
    assert split.left_out == {"a text is empty": 1, "no label is published": 1}


def test_mismatched_rows_are_not_read(tmp_path: Path) -> None:
    written(tmp_path, "mnli", rows=1001)
    (tmp_path / "validation.jsonl").rename(tmp_path / "validation_matched.jsonl")
    (tmp_path / "validation_mismatched.jsonl").write_text("no JSON\n")

    split = glue(config(tmp_path, "mnli")).split("test")

    assert len(split.records) == 1
    assert split.origin is not None
    assert split.origin.files == ("validation_matched.jsonl",)


@pytest.mark.parametrize(
    ("task", "label", "said"),
    [
        ("rte", "maybe", "validation.jsonl:1: label 'maybe' is none of the classes entailment, not_entailment of task rte."),
        ("rte", 2, "label '2' is none of the classes"),
        ("stsb", 7, "label '7' is no number from 0 to 5, which task stsb asks for"),
        ("stsb", "similar", "label 'similar' is no number from 0 to 5"),
    ],
)
def test_a_label_that_a_task_does_not_have_is_refused(tmp_path: Path, task: str, label: object, said: str) -> None:
    source = glue(config(written(tmp_path, task, rows=1, label=label), task, limit=None))

    with pytest.raises(DataError) as error:
        source.split("train")
    assert said.replace("validation.jsonl", "train.jsonl") in str(error.value)


def test_other_columns_and_too_few_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no column 'sentence' of task sst2"):
        glue(config(written(tmp_path, "rte", rows=4), "sst2")).split("train")
    with pytest.raises(DataError, match="task qnli has 4 rows to validate and test on, and 1000 of them are for validation"):
        glue(config(written(tmp_path, "qnli", rows=4), "qnli")).split("test")


def test_the_training_rows_of_a_task_are_known_before_they_are_read() -> None:
    assert config(None, "rte").expected("train") == 2490
    assert config(None, "sst2", protocol="t5").expected("train") == 66_349
    assert config(None, "mnli", limit=100).expected("train") == 100


def archive(folder: Path, *rows: str) -> Path:
    path = folder / "e2e-dataset.zip"
    with zipfile.ZipFile(path, "w") as made:
        for name in ("trainset", "devset", "testset"):
            made.writestr(f"e2e-dataset/{name}.csv", "\n".join(["mr,ref", *rows]))
    return path


def test_e2e_is_read_from_its_archive_or_from_a_folder(tmp_path: Path) -> None:
    rows = [f'"{MEANING}","At ""The Eagle"", near Burger King."', f'"{MEANING}",Eat at The Eagle.', '" ",nothing']
    path = archive(tmp_path, *rows)
    zipfile.ZipFile(path).extractall(tmp_path)

    for place in (path, tmp_path / "e2e-dataset"):
        split = e2e_nlg(e2e(place)).split("validation")

        assert [record.prompt for record in split.records] == [MEANING, MEANING]
        assert split.records[0].responses[0].text == 'At "The Eagle", near Burger King.'
        assert split.left_out == {"a column is empty": 1}


def test_every_meaning_is_asked_for_once(tmp_path: Path) -> None:
    source = e2e_nlg(e2e(archive(tmp_path, f'"{MEANING}",One.', f'"{MEANING}",Two.', "name[Aromi],Three.")))

    assert source.prompts() == [MEANING, "name[Aromi]"]


def test_a_meaning_is_written_as_it_is_or_field_by_field() -> None:
    assert linearised(MEANING, "raw", "row") == MEANING
    assert linearised(MEANING, "fields", "row") == "name : The Eagle | priceRange : £20-25 | near : Burger King"


@pytest.mark.parametrize("meaning", ["The Eagle", "name[The Eagle", "name[a] and area[b]", "name[a], "])
def test_what_is_no_list_of_fields_is_refused(meaning: str) -> None:
    with pytest.raises(DataError, match=r"row: .* is no list of name\[value\]"):
        linearised(meaning, "fields", "row")


def test_a_broken_archive_and_other_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK no archive")
    (tmp_path / "trainset.csv").write_text("a,b\n1,2\n")

    with pytest.raises(DataError, match=r"broken\.zip cannot be read as an archive of csv files"):
        e2e_nlg(e2e(tmp_path / "broken.zip")).split("train")
    with pytest.raises(DataError, match="has neither the columns mr and ref nor meaning_representation and human_reference"):
        e2e_nlg(e2e(tmp_path)).split("train")
    with pytest.raises(ConfigError, match="holds no file 'devset"):
        e2e_nlg(e2e(tmp_path)).split("validation")
