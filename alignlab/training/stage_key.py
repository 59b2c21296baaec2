"""What decides a stage's result, as a short key: two jobs with the same key would leave the same bits."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignlab.files import PACKAGES, package_version
from alignlab.records import EncodedGroup
from alignlab.training.method import Stage, Work


def stage_key(stage: Stage, work: Work, before: Mapping[str, Any]) -> str:
    """`before`: what the stage meets beside its rows: weights, tuner, seed, the machine's side, the keys of earlier stages.

    Rows count by their ids, so tokenizer, template and data are in it, and what only evaluation reads is not. The sources of
    alignlab and the versions below it count too.
    """
    digest = hashlib.sha256(
        json.dumps([described(stage), described(before), work.steps, described(work.weights), _code()]).encode()
    )
    digest.update(_rows(work.groups))
    return digest.hexdigest()[:24]


def described(thing: Any) -> Any:
    """A thing as JSON that is the same in every process, and another one where any part differs.

    Raises TypeError for an object that is neither data nor says by `described` what it is made of.
    """
    if thing is None or isinstance(thing, (str, int, float, bool)):
        return thing
    if isinstance(thing, (list, tuple)):
        return [described(part) for part in thing]
    if isinstance(thing, (set, frozenset)):
        return sorted(described(part) for part in thing)
    if isinstance(thing, Mapping):
        return {str(key): described(value) for key, value in sorted(thing.items(), key=lambda item: str(item[0]))}
    if hasattr(thing, "described"):
        return [_name(type(thing)), described(thing.described())]
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return [_name(type(thing)), {field.name: described(getattr(thing, field.name)) for field in dataclasses.fields(thing)}]
    if isinstance(thing, functools.partial):
        return [described(thing.func), described(thing.args), described(thing.keywords)]
    if callable(thing) and hasattr(thing, "__qualname__"):
        return _name(thing)
    raise TypeError(f"{_name(type(thing))} does not say what it is made of; give it `described`.")


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _rows(groups: Sequence[EncodedGroup]) -> bytes:
    digest = hashlib.sha256()
    for group in groups:
        members = [[m.ids, m.start, m.control, m.target] for m in group.members]
        digest.update(json.dumps([group.row, group.task, members]).encode())
    return digest.digest()


@functools.cache
def _code() -> list[str]:
    """The sources of alignlab as one hash, and the versions of what it stands on."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return [digest.hexdigest(), *(f"{name} {package_version(name)}" for name in PACKAGES)]
