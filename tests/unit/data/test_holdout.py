"""A validation split for data that has none: which records, and that the others are what is trained on."""

from __future__ import annotations

import pytest

from alignlab.data.halves import with_validation
from alignlab.data.source import LeftOut, Source, Split
from alignlab.errors import ConfigError, DataError
from alignlab.records import Record


def source(prompts: int, of_each: int = 1, tasks: tuple[str | None, ...] = (None,)) -> Source:
    """So many prompts with so many pairs each, for each task."""
    records = tuple(
        Record(f"{task} {number}/{pair}", f"{task} prompt {number}", (), task)
        for task in tasks
        for number in range(prompts)
        for pair in range(of_each)
    )
    return Source(
        "made",
        {
            "train": lambda: Split(records, (LeftOut("lost:1", "no answer"), LeftOut("lost:2", "no answer"))),
            "test": lambda: Split(records[:3]),
        },
    )


def test_the_share_is_held_out_and_the_rest_is_trained_on() -> None:
    made = with_validation(source(40), "validation", 0.25, seed=0)

    train, validation = ({record.row for record in made.split(name).records} for name in ("train", "validation"))
    assert (len(train), len(validation)) == (30, 10)
    assert train | validation == {record.row for record in source(40).split("train").records}
    assert made.split("train").left_out == {"no answer": 2}
    assert made.split("test").records == source(40).split("test").records


def test_the_seed_decides_which() -> None:
    first, again, other = (with_validation(source(40), "validation", 0.25, seed=seed).split("validation") for seed in (0, 0, 1))

    assert first == again != other


def test_records_of_one_prompt_stay_together() -> None:
    made = with_validation(source(10, of_each=3), "validation", 0.4, seed=0)

    train, validation = ({record.prompt for record in made.split(name).records} for name in ("train", "validation"))
    assert (len(train), len(validation)) == (6, 4)
    assert train.isdisjoint(validation)


def test_each_task_gives_its_share() -> None:
    made = with_validation(source(20, tasks=("a", "b")), "validation", 0.1, seed=0)

    assert sorted(str(record.task) for record in made.split("validation").records) == ["a", "a", "b", "b"]


def test_a_split_that_the_data_has_is_taken_as_it_is() -> None:
    given = source(4)
    given = Source("made", {**given.readers, "validation": lambda: Split(())})

    assert with_validation(given, "validation", 0.5, seed=0) is given


def test_without_a_split_and_a_share_it_is_refused() -> None:
    with pytest.raises(ConfigError) as info:
        with_validation(source(4), "validation", None, seed=0)

    assert str(info.value) == (
        "data=made has no split 'validation'; give trainer.validation.share, the part of its training records to hold out, or"
        " name another split of it: train, test."
    )


def test_a_share_that_takes_everything_is_refused() -> None:
    with pytest.raises(DataError, match=r"holding out 0\.5 of 3 training records leaves 0 to train on and 3 to validate on"):
        with_validation(source(1, of_each=3), "validation", 0.5, seed=0).split("train")
