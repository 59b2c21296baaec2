"""JSON lines, plain or gzipped, read so that every complaint names its file and line."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.errors import DataError, UnusablePairError
from alignlab.records import Record, Response

MARKER = "\n\nAssistant:"
"""Where the last answer of an HH dialogue begins."""


def read(files: Sequence[Path], limit: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (file:line, object) of each line that is not blank; raises DataError for one that does not parse."""
    count = 0
    for file in files:
        for number, line in enumerate(_lines(file), start=1):
            if limit is not None and count >= limit:
                return
            if line.strip():
                count += 1
                yield f"{file.name}:{number}", _parse(line, f"{file.name}:{number}")


def dialogue_pair(row: str, chosen: str, rejected: str) -> Record:
    """A record from two dialogues; raises UnusablePairError where their prompts differ or an answer is missing."""
    prompt, answer = _cut(row, chosen)
    other_prompt, other_answer = _cut(row, rejected)
    if prompt != other_prompt:
        raise UnusablePairError(
            f"{row}: the prompts of chosen and rejected differ; set data.unusable_pairs=drop to leave it out.",
            "prompts of the pair differ",
        )
    return Record.pair(row, prompt, answer, other_answer)


def text(fields: Mapping[str, Any], key: str, row: str) -> str:
    """A field that has to be a text with something in it; raises DataError otherwise."""
    value = fields.get(key)
    if not isinstance(value, str):
        raise DataError(f"{row}: {key!r} must be a text but is {type(value).__name__}; the line has {', '.join(fields)}.")
    if not value.strip():
        raise DataError(f"{row}: {key!r} is empty; remove the row or give it a text.")
    return value


def pointwise(row: str, fields: Mapping[str, Any]) -> Record:
    """A record of one response with a label, a score or attributes."""
    label, score = fields.get("label"), fields.get("score")
    number = isinstance(score, (int, float)) and not isinstance(score, bool) and math.isfinite(score)
    if score is not None and not number:
        raise DataError(f"{row}: 'score' must be a finite number but is {score!r}.")
    attributes = fields.get("attributes") or {}
    if not isinstance(attributes, dict) or not all(isinstance(value, str) for value in attributes.values()):
        raise DataError(f"{row}: 'attributes' must map names to texts but is {attributes!r}.")
    response = Response(text(fields, "response", row), None if label is None else str(label), score, attributes)
    return Record(row, text(fields, "prompt", row), (response,))


def _lines(file: Path) -> Iterator[str]:
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            yield from lines
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{file.name}: cannot be read as text ({error}); look at the file, or write it again.") from error


def _parse(line: str, row: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{row}: not valid JSON ({error.msg} at column {error.colno}); mend or remove the line.") from error
    if not isinstance(value, dict):
        raise DataError(f"{row}: a line must be a JSON object but is {type(value).__name__}.")
    return value


def _cut(row: str, dialogue: str) -> tuple[str, str]:
    """The prompt up to and with the last marker, and the answer behind it."""
    prompt, marker, answer = dialogue.rpartition(MARKER)
    if not marker or not answer.strip():
        raise UnusablePairError(
            f"{row}: no answer behind the last {MARKER.strip()!r}; set data.unusable_pairs=drop to leave it out.",
            "an answer is empty",
        )
    return prompt + marker, answer
