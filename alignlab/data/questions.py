"""SuperGLUE (arXiv 1905.00537) and SQuAD (arXiv 1606.05250) as texts with a short answer, from local files or the hub.

A row is written into the frame of its task; its answer is the number of a class, or a span of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from alignlab.data.config import QuestionsConfig
from alignlab.data.files import names, read
from alignlab.data.local import of_files, written
from alignlab.data.published import hub_rows
from alignlab.data.source import LeftOut, Origin, Source, Split
from alignlab.data.tasks import UNLABELLED, Rows, held_out_of_training
from alignlab.errors import DataError
from alignlab.records import LabelSet, Record, Response

MARKUP = re.compile(r"<[^<>]*>")
"""What MultiRC's paragraphs hold beside their text."""


@dataclass(frozen=True)
class Task:
    """`columns`: those that a frame may hold. `classes`: in the order of their numbers; none where the answer is a text."""

    columns: tuple[str, ...]
    classes: tuple[str, ...] = ()


TASKS: Mapping[str, Task] = {
    "boolq": Task(("question", "passage"), ("false", "true")),
    "cb": Task(("premise", "hypothesis"), ("entailment", "contradiction", "neutral")),
    "multirc": Task(("paragraph", "question", "answer"), ("false", "true")),
    "wic": Task(("word", "sentence1", "sentence2"), ("false", "true")),
    "wsc": Task(("text", "span1_text", "span2_text"), ("false", "true")),
    "record": Task(("query", "passage", "entities")),
    "squad": Task(("question", "context")),
}
"""By SuperGLUE's names, with its columns on the hub."""
LARGE = ("multirc", "record", "squad")
"""Tasks of which 1,000 training rows are for validation, and of the others half of the validation rows."""
SUBSETS = {"wsc": "wsc.fixed"}
"""Where the hub calls a task otherwise."""


def questions(config: QuestionsConfig) -> Source:
    """Splits train, validation and test, as ATTEMPT makes them (see `held_out_of_training`)."""
    task = TASKS[config.task]
    patterns = {"train": config.train, "validation": config.test, "test": config.test}

    @lru_cache
    def every(of_training: bool) -> Rows:
        if config.path:
            return list(read(config.files(config.train if of_training else config.test)))
        split, subset = "train" if of_training else "validation", SUBSETS.get(config.task, config.task)
        return list(hub_rows(config.hub, split, config.commit, None, subset=None if config.task == "squad" else subset))

    def reader(split: str) -> Split:
        rows = held_out_of_training(split, config.task, config.task in LARGE, config.split_seed, every)
        return _records(rows[: config.limit if split == "train" else config.test_limit], config, split)

    numbers = LabelSet(tuple(str(number) for number in range(len(task.classes))))
    labels = (lambda: numbers) if task.classes else None
    if config.path:
        return of_files(config, reader, patterns, labels=labels)
    return Source(config.name, {split: partial(reader, split) for split in patterns}, labels=labels)


def offers(config: QuestionsConfig) -> frozenset[str]:
    """`chosen`, and the labels of a task that has classes."""
    return frozenset({"chosen", "label set"} if TASKS[config.task].classes else {"chosen"})


def _records(rows: Rows, config: QuestionsConfig, split: str) -> Split:
    task, lost, records = TASKS[config.task], list[LeftOut](), []
    for row, fields in rows:
        missing = next((column for column in task.columns if column not in fields), None)
        if missing is not None:
            raise DataError(
                f"{row}: has no column {missing!r} of task {config.task} (it has {names(fields, missing)}); look at the file."
            )
        answers = _answers(fields, task, row)
        if not answers:
            lost.append(LeftOut(row, "no answer is published"))
            continue
        prompt = written(config.frame, _texts(fields, config.task, row), row)
        kept = answers if split == "train" else answers[:1]
        records += [
            Record(row if len(kept) == 1 else f"{row}/{number}", prompt, (Response(answer),))
            for number, answer in enumerate(kept, start=1)
        ]
    if not records:
        raise DataError(f"data={config.name}: task {config.task} has no row with an answer; look at data.path.")
    return Split(tuple(records), tuple(lost), rows=len(rows), origin=Origin(used=task.columns))


def _answers(fields: Mapping[str, Any], task: Task, row: str) -> list[str]:
    """The number of the class; or each different text that answers."""
    if not task.classes:
        given = fields.get("answers") or ()
        listed: Sequence[Any] = given.get("text", ()) if isinstance(given, Mapping) else given
        return list(dict.fromkeys(text.strip() for text in map(str, listed) if text.strip()))
    label = fields.get("label")
    if label is None or str(label) in ("", str(UNLABELLED)):
        return []
    named = str(label).strip().lower()
    place = task.classes.index(named) if named in task.classes else int(named) if named.isdecimal() else len(task.classes)
    if place >= len(task.classes):
        raise DataError(f"{row}: label {label!r} is none of the classes {', '.join(task.classes)}.")
    return [str(place)]


def _texts(fields: Mapping[str, Any], task: str, row: str) -> dict[str, str]:
    """What a frame's columns are filled with: without markup, entities as a list, spans in marks."""
    texts = {
        name: ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value or "")
        for name, value in fields.items()
    }
    if task == "multirc":
        texts["paragraph"] = " ".join(MARKUP.sub(" ", texts["paragraph"]).split())
    if task == "wsc":
        texts["text"] = " ".join(_marked(texts["text"].split(), fields, row))
    return texts


def _marked(words: Sequence[str], fields: Mapping[str, Any], row: str) -> Iterator[str]:
    """The words, the first span between `*` and the second between `#`. Raises DataError for a span that is not there."""
    marks: dict[int, str] = {}
    for number, mark in ((1, "*"), (2, "#")):
        first, span = int(fields[f"span{number}_index"]), str(fields[f"span{number}_text"]).split()
        if first + len(span) > len(words):
            raise DataError(f"{row}: span{number}_index={first} lies behind the text; mend the row.")
        marks[first] = marks.get(first, "") + f"{mark} "
        last = first + len(span) - 1
        words = [f"{word} {mark}" if place == last else word for place, word in enumerate(words)]
    for place, word in enumerate(words):
        yield marks.get(place, "") + word
