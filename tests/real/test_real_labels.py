"""Real labelled texts: every set of the shared folder is read whole, and one trains; E2E NLG from its archive."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from alignlab.config import GROUPS, parse
from run import run

pytestmark = pytest.mark.real
CONF = Path(__file__).parents[2] / "conf"
PAIR = ("data.text=premise", "data.second=hypothesis")
HELD_OUT = "data.test_share=0.2"


def source_of(shared: Path, *overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        raw = compose("run", ["model=tiny_roberta", "tracking=off", *(word.format(shared=shared) for word in overrides)])
    data = parse(raw).data
    return GROUPS["data"][data.name].build(data)


def one_file(folder: str, file: str, *more: str) -> tuple[str, ...]:
    """Overrides for a folder of which one file is both trained and tested on."""
    path = f"data.path={{shared}}/data/{folder}"
    return "data=text_classification", path, f"data.train={file}", f"data.test={file}", HELD_OUT, *more


def two_files(folder: str, train: str, test: str, *more: str) -> tuple[str, ...]:
    return (
        "data=text_classification",
        f"data.path={{shared}}/data/{folder}",
        f"data.train={train}*",
        f"data.test={test}*",
        *more,
    )


SETS = {
    "sentence-polarity": (one_file("sentence-polarity", "all*", "data.text=sentence"), 10_662, 2),
    "boolq": (one_file("boolq", "dev*", "data.text=question", "data.second=passage", "data.label=answer"), 3_270, 2),
    "qnli": (one_file("qnli", "dev*", *PAIR), 5_732, 2),
    "snli": (one_file("snli", "dev*", *PAIR), 9_831, 3),
    "copa": (two_files("copa", "train", "dev", *PAIR), 1_000, 2),
    "wnli": (two_files("wnli", "train", "dev", *PAIR), 706, 2),
    "banking77": (two_files("banking77", "train", "test", "data.label=category"), 13_083, 77),
}
"""Overrides, rows of both splits, classes."""


@pytest.mark.parametrize("name", SETS)
def test_a_labelled_set_is_read_whole(name: str, shared: Path) -> None:
    overrides, rows, classes = SETS[name]
    source = source_of(shared, *overrides)

    train, test = source.split("train"), source.split("test")

    assert train.read + test.read == rows
    assert len(source.labels().names) == classes
    assert {record.responses[0].text for record in test.records} <= set(source.labels().names)
    assert not {record.row for record in train.records} & {record.row for record in test.records}


def test_e2e_has_the_rows_of_its_release_and_630_meanings_to_answer(shared: Path) -> None:
    source = source_of(shared, "data=e2e_nlg", "data.path={shared}/data/e2e-nlg/e2e-dataset.zip", "model=tiny_gpt2")

    counts = {name: source.split(name).read for name in ("train", "validation", "test")}

    assert counts == {"train": 42_061, "validation": 4_672, "test": 4_693}
    assert len(source.prompts()) == 630
    assert max(Counter(record.prompt for record in source.split("test").records).values()) > 1


def test_pairs_of_texts_train_a_classifier_that_is_measured(shared: Path, tmp_path: Path) -> None:
    overrides = [word.format(shared=shared) for word in SETS["wnli"][0]]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        small = ["data.limit=64", "data.max_tokens=128", "method.fit.steps=2", "method.fit.epochs=null", "method.fit.batch=8"]
        where = ["tracking=off", f"folder={tmp_path}/run", "trainer.device=cpu", "control=trained"]
        raw = compose("run", ["model=tiny_roberta", "method=sft", "tuner=red", *overrides, *small, *where])
    run(raw)

    report = json.loads((tmp_path / "run" / "report.json").read_text())
    measured = {row["metric"]: row for row in report["results"]}
    assert {"accuracy", "matthews", "f1"} <= measured.keys()
    assert measured["accuracy"]["n"] == 71
