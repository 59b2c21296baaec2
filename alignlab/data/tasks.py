"""Published tasks whose answers are checked: eight of GLUE (arXiv 1804.07461) and E2E NLG, from local files or the hub."""

from __future__ import annotations

import csv
import io
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from alignlab.data.config import HELD_OUT, HELD_OUT_OF_TRAINING, E2eConfig, GlueConfig, HubConfig
from alignlab.data.files import names, read
from alignlab.data.local import of_files, written
from alignlab.data.published import hub_rows
from alignlab.data.source import LeftOut, Origin, Source, Split
from alignlab.errors import DataError
from alignlab.records import LabelSet, Record, Response

Rows = Sequence[tuple[str, Mapping[str, Any]]]
"""(where from, its columns) of each row."""


@dataclass(frozen=True)
class Task:
    """A task of GLUE. `texts`: its columns, one or two. `classes`: in the order of their numbers; none where the answer is a
    number from 0 to 5."""

    texts: tuple[str, ...]
    classes: tuple[str, ...] = ()


_TWO = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
TASKS: Mapping[str, Task] = {
    "cola": Task(("sentence",), ("unacceptable", "acceptable")),
    "sst2": Task(("sentence",), ("negative", "positive")),
    "mrpc": Task(_TWO, ("not_equivalent", "equivalent")),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate")),
    "stsb": Task(_TWO),
    "mnli": Task(("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": Task(("question", "sentence"), _ENTAILMENT),
    "rte": Task(_TWO, _ENTAILMENT),
}
"""By GLUE's names, as `nyu-mll/glue` on the hub has them."""
LARGE = ("mnli", "qnli", "qqp")
"""Tasks of which the clean protocol takes `HELD_OUT` validation rows, and of the others half."""
HIGHEST = 5.0
"""Of STS-B's similarities."""
UNLABELLED = -1
"""What stands for a label that GLUE does not publish."""
FIELD = re.compile(r"\s*([^\[\],][^\[\]]*)\[([^\[\]]*)\]\s*(?:,|$)")
"""One field of a meaning representation: its name, and its value in brackets."""
COLUMNS = (("mr", "ref"), ("meaning_representation", "human_reference"))
"""What E2E's columns are called in its release, and on the hub."""


def glue(config: GlueConfig) -> Source:
    """Splits train, validation and test. The labelled rows that GLUE itself calls validation are cut in two, or tested on as a
    whole where validation rows are training rows (`halves`); GLUE's own test rows have no labels and are not used."""
    task = TASKS[config.task]
    if config.answers == "names":
        labels = LabelSet(task.classes)
    elif task.classes:
        labels = LabelSet(tuple(str(number) for number in range(len(task.classes))))
    else:
        labels = LabelSet(tuple(f"{tenths / 10:.1f}" for tenths in range(int(10 * HIGHEST) + 1)), numbers=True)
    held_out = "validation_matched" if config.task == "mnli" else "validation"
    patterns = {"train": config.train, "validation": config.test, "test": config.test}

    @lru_cache
    def every(of_training: bool) -> Rows:
        if config.path:
            return list(read(config.files(config.train if of_training else config.test)))
        split = "train" if of_training else held_out
        return list(hub_rows(config.hub, split, config.commit, None, subset=config.task))

    def reader(split: str) -> Split:
        rows = _rows_of(split, config, every)[: config.limit if split == "train" else config.test_limit]
        return _labelled(rows, config, labels)

    if config.path:
        return of_files(config, reader, patterns, labels=lambda: labels)
    return Source(config.name, {split: partial(reader, split) for split in patterns}, labels=lambda: labels)


def halves(task: str, rows: int, seed: int) -> tuple[list[int], list[int]]:
    """The places of the validation and of the test rows among `rows` labelled ones, drawn by NumPy's legacy generator: the
    "clean" protocol of RED's released code, which ReFT and DeLoRA use as well. The halves of CoLA are swapped there.

    Raises DataError for a large task with too few rows to hold out `HELD_OUT`.
    """
    held_out = HELD_OUT if task in LARGE else rows // 2
    if not 0 < held_out < rows:
        raise DataError(
            f"task {task} has {rows} rows to validate and test on, and {held_out} of them are for validation; give the whole"
            " validation set of GLUE."
        )
    first, rest = _drawn(rows, seed, held_out)
    return (rest, first) if task == "cola" else (first, rest)


def _drawn(rows: int, seed: int, count: int) -> tuple[list[int], list[int]]:
    """So many places, and the others, in the order in which they are drawn."""
    import numpy as np

    order = [int(place) for place in np.random.RandomState(seed).permutation(rows)]
    return order[:count], order[count:]


def _rows_of(split: str, config: GlueConfig, every: Callable[[bool], Rows]) -> Rows:
    """The rows of a split under the protocol."""
    if config.protocol == "t5":
        return held_out_of_training(split, config.task, config.task in HELD_OUT_OF_TRAINING, config.split_seed, every)
    if split == "train":
        return every(True)
    whole = every(False)
    return [whole[place] for place in halves(config.task, len(whole), config.split_seed)[split == "test"]]


def held_out_of_training(split: str, task: str, large: bool, seed: int, every: Callable[[bool], Rows]) -> Rows:
    """The rows of a split after ATTEMPT (arXiv 2205.11961): of a large task `HELD_OUT` training rows are for validation and all
    of the validation rows for the test, of a small one half of these each; which rows, is our choice. `every`: whether of
    training -> rows. Raises DataError for a large task with too few training rows."""
    if large:
        if split == "test":
            return every(False)
        whole = every(True)
        if len(whole) <= HELD_OUT:
            raise DataError(f"task {task} has {len(whole)} training rows, and {HELD_OUT} are held out; give all of them.")
        validation, train = _drawn(len(whole), seed, HELD_OUT)
        return [whole[place] for place in (validation if split == "validation" else sorted(train))]
    if split == "train":
        return every(True)
    whole = every(False)
    return [whole[place] for place in _drawn(len(whole), seed, len(whole) // 2)[split == "test"]]


def _labelled(rows: Rows, config: GlueConfig, labels: LabelSet) -> Split:
    task, lost, records = TASKS[config.task], list[LeftOut](), []
    wanted = (*task.texts, "label")
    for row, fields in rows:
        missing = next((column for column in wanted if column not in fields), None)
        if missing is not None:
            raise DataError(
                f"{row}: has no column {missing!r} of task {config.task} (it has {names(fields, missing)}); look at the file."
            )
        texts = ["" if fields[column] is None else str(fields[column]) for column in task.texts]
        told = _told(fields["label"], config, task, labels, row)
        if told is None:
            lost.append(LeftOut(row, "no label is published"))
        elif not all(text.strip() for text in texts):
            lost.append(LeftOut(row, "a text is empty"))
        else:
            records.append(_asked(row, dict(zip(task.texts, texts, strict=True)), told, config))
    if not records:
        raise DataError(f"data={config.name}: task {config.task} has no row with a text and a label; look at data.path.")
    others = dict.fromkeys(column for _, fields in rows for column in fields if column not in wanted)
    return Split(tuple(records), tuple(lost), origin=Origin(used=wanted, unused=tuple(others)))


def _asked(row: str, texts: Mapping[str, str], told: str, config: GlueConfig) -> Record:
    """The texts one behind the other, or written into the frame of the task."""
    if config.frames is not None:
        return Record(row, written(config.frames[config.task], texts, row), (Response(told),))
    first, *second = texts.values()
    return Record(row, first, (Response(told),), second=second[0] if second else None)


def _told(label: Any, config: GlueConfig, task: Task, labels: LabelSet, row: str) -> str | None:
    """What a row is told to be, as the labels of the data have it; None where that is not published. A class may be given by
    its name or its number."""
    given = str(label).strip()
    if label is None or given in ("", str(UNLABELLED), f"{UNLABELLED}.0"):
        return None
    if task.classes:
        place = task.classes.index(given) if given in task.classes else int(given) if given.isdecimal() else len(task.classes)
        if place >= len(task.classes):
            raise DataError(f"{row}: label {given!r} is none of the classes {', '.join(task.classes)} of task {config.task}.")
        return labels.names[place]
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if not 0 <= number <= HIGHEST:
        raise DataError(f"{row}: label {given[:40]!r} is no number from 0 to {HIGHEST:g}, which task {config.task} asks for.")
    return f"{number:.1f}" if labels.names else f"{number:.3f}"


def e2e_nlg(config: E2eConfig) -> Source:
    """Splits train, validation and test: a meaning representation as the prompt, and one of its references as the response."""
    patterns = {"train": config.train, "validation": config.validation, "test": config.test}
    reader = partial(_e2e_split, config, patterns)
    if config.path:
        return of_files(config, reader, patterns)
    return Source(config.name, {split: partial(reader, split) for split in patterns})


def linearised(meaning: str, form: str, row: str) -> str:
    """What is to be said, as a text. Raises DataError, for `fields`, where it is no list of `name[value]`."""
    if form == "raw":
        return meaning
    found = [(match[1].strip(), match[2].strip()) for match in FIELD.finditer(meaning)]
    if "".join(match[0] for match in FIELD.finditer(meaning)) != meaning or not found:
        raise DataError(f"{row}: {meaning[:60]!r} is no list of name[value]; mend the row, or set data.linearisation=raw.")
    return " | ".join(f"{name} : {value}" for name, value in found)


def _e2e_split(config: E2eConfig, patterns: Mapping[str, str], split: str) -> Split:
    limit = config.limit if split == "train" else config.test_limit
    records, lost = [], list[LeftOut]()
    for number, (row, fields) in enumerate(_e2e_rows(config, split, patterns[split])):
        if number == limit:
            break
        meaning, reference = _texts(row, fields)
        if meaning.strip() and reference.strip():
            records.append(Record(row, linearised(meaning, config.linearisation, row), (Response(reference),)))
        else:
            lost.append(LeftOut(row, "a column is empty"))
    return Split(tuple(records), tuple(lost))


def _texts(row: str, fields: Mapping[str, Any]) -> tuple[str, str]:
    for meaning, reference in COLUMNS:
        if meaning in fields and reference in fields:
            return str(fields[meaning] or ""), str(fields[reference] or "")
    expected = " nor ".join(" and ".join(pair) for pair in COLUMNS)
    raise DataError(f"{row}: has neither the columns {expected} (it has {names(fields)}); name files with references.")


def _e2e_rows(config: HubConfig, split: str, pattern: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not config.path:
        return hub_rows(config.hub, split, config.commit, None)
    path = Path(config.path)
    return _archived(path, pattern) if path.suffix == ".zip" else read(config.files(pattern))


def _archived(path: Path, pattern: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of the csv files of an archive that a pattern names."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [name for name in archive.namelist() if fnmatch(Path(name).name, pattern) and name.endswith(".csv")]
            if not found:
                raise DataError(f"{path.name} holds no csv file {pattern!r} (it has {names(archive.namelist())}).")
            for name in found:
                with archive.open(name) as file:
                    rows = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
                    for number, fields in enumerate(rows, start=1):
                        yield f"{Path(name).name}:{number}", fields
    except (OSError, zipfile.BadZipFile, UnicodeError, csv.Error) as error:
        raise DataError(f"{path.name} cannot be read as an archive of csv files ({error}); fetch it again.") from error
