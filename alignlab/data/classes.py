"""Classes of responses: from the sides of pairs, labels, scores cut at quantiles, or attributes crossed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from alignlab.data.config import ClassesConfig
from alignlab.data.encode import LIKED
from alignlab.data.source import LeftOut, Source, Split, counted
from alignlab.errors import DataError
from alignlab.records import ACROSS, NO_CLASS, Record, Response

LABELLED = {"train": "labelled", "test": "labelled_test"}
"""Split -> the split that holds each of its responses that has a class as a record of its own."""

_UNKNOWN, _ON_A_CUT, _CONFLICT = "of no class", "score on a cut between classes", "the same text under two classes"


@dataclass(frozen=True)
class Classes:
    """`names`, best first where there is an order. `of`: the class of a response, or the reason why it has none. `edges`:
    scores between a class and the next, falling. `attributes`: what the responses of a class have, where classes are made of
    attributes."""

    names: tuple[str, ...]
    of: Callable[[Response], str]
    edges: tuple[float, ...] = ()
    attributes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def find(config: ClassesConfig, source: Source) -> Classes:
    """The classes that a config asks for, with what the training split decides: names that are not given, and edges.

    Raises DataError where that leaves fewer than two.
    """
    responses = [response for record in source.split("train").records for response in record.responses]
    found = _FINDERS[config.by](config, responses)
    if len(found.names) < 2:
        raise DataError(
            f"control.classes.by={config.by} finds {', '.join(found.names) or 'no class'} in the training split of"
            f" data={source.name}; a control chooses between at least two classes."
        )
    for name, meaning in ((NO_CLASS, "no class"), (ACROSS, "all classes together")):
        if name in found.names:
            raise DataError(f"a class of data={source.name} is called {name!r}, which stands for {meaning}; rename it.")
    return found


def classed(source: Source, classes: Classes) -> Source:
    """The source with two more splits, named by LABELLED, whose records are single responses with their class as label."""
    readers = {name: partial(labelled, source, split, classes) for split, name in LABELLED.items()}
    return replace(source, readers={**source.readers, **readers})


def labelled(source: Source, split: str, classes: Classes) -> Split:
    """Each response of a split as a record whose label is its class; left out, and counted, are responses without a class, on
    a cut between two, and texts that stand under two classes for the same prompt.

    Raises DataError where a class of the training split has no response.
    """
    lost = list(source.split(split).lost)
    items: list[Record] = []
    for record in source.split(split).records:
        for number, response in enumerate(record.responses):
            name, row = classes.of(response), f"{record.row}/{number}"
            if name in classes.names:
                items.append(replace(record, row=row, responses=(replace(response, label=name),)))
            else:
                lost.append(LeftOut(row, name))
    conflicting = _conflicting(items)
    lost += [LeftOut(item.row, _CONFLICT) for item in items if item.row in conflicting]
    kept = tuple(item for item in items if item.row not in conflicting)
    if split == "train":
        _refuse_empty(classes, kept, counted(lost))
    notes = source.split(split).notes
    return Split(kept, tuple(lost), notes=notes)


def _pairs(config: ClassesConfig, _responses: Sequence[Response]) -> Classes:
    names = tuple(config.names or ())
    sides = dict(zip(("chosen", "rejected"), names, strict=True))
    return Classes(names, lambda response: sides.get(str(response.label), _UNKNOWN))


def _labels(config: ClassesConfig, responses: Sequence[Response]) -> Classes:
    found = {response.label for response in responses if response.label is not None}
    if not config.names and len(found) > 1 and found.isdisjoint(LIKED):
        raise DataError(
            f"the labels are {', '.join(sorted(found))}, and none of them says that it is the best; name them, best first:"
            " control.classes.names=[...]."
        )
    # Strength 1 is the first class, so a label that stands for what is preferred comes first.
    names = tuple(config.names or sorted(found, key=lambda label: (label not in LIKED, label)))
    return Classes(names, lambda response: response.label if response.label in names else _UNKNOWN)


def _scores(config: ClassesConfig, responses: Sequence[Response]) -> Classes:
    scores = sorted((response.score for response in responses if response.score is not None), reverse=True)
    bins = config.bins
    if len(scores) < bins:
        raise DataError(f"control.classes.bins={bins}, but the training split has {len(scores)} scores; give more data.")
    places = [round(len(scores) * number / bins) for number in range(1, bins)]
    edges = tuple((scores[place - 1] + scores[place]) / 2 for place in places)
    usual = {2: ("high", "low"), 3: ("high", "middle", "low")}
    names = tuple(config.names or usual.get(bins) or [f"bin{number + 1}" for number in range(bins)])

    def bin_of(response: Response) -> str:
        score = response.score
        if score is None:
            return _UNKNOWN
        return _ON_A_CUT if score in edges else names[sum(score < edge for edge in edges)]

    return Classes(names, bin_of, edges)


def _attributes(config: ClassesConfig, responses: Sequence[Response]) -> Classes:
    def crossed(response: Response) -> str:
        return "-".join(response.attributes.get(key, _UNKNOWN) for key in config.attributes)

    held = {crossed(r): {key: r.attributes.get(key, _UNKNOWN) for key in config.attributes} for r in responses}
    found = {name: values for name, values in held.items() if _UNKNOWN not in values.values()}
    names = tuple(config.names or sorted(found))
    attributes = {name: found[name] for name in names if name in found}
    return Classes(names, lambda r: crossed(r) if crossed(r) in names else _UNKNOWN, attributes=attributes)


_FINDERS: Mapping[str, Callable[[ClassesConfig, Sequence[Response]], Classes]] = {
    "pairs": _pairs,
    "labels": _labels,
    "scores": _scores,
    "attributes": _attributes,
}


def _conflicting(items: Sequence[Record]) -> set[str]:
    """The rows whose prompt and text stand under several classes."""
    seen: dict[tuple[str, str], dict[str, str | None]] = {}
    for item in items:
        seen.setdefault((item.prompt, item.responses[0].text), {})[item.row] = item.responses[0].label
    return {row for rows in seen.values() if len(set(rows.values())) > 1 for row in rows}


def _refuse_empty(classes: Classes, kept: Sequence[Record], left_out: Mapping[str, int]) -> None:
    held = Counter(item.responses[0].label for item in kept)
    empty = [name for name in classes.names if not held[name]]
    if empty:
        counts = ", ".join(f"{name}: {held[name]}" for name in classes.names)
        reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.items() if count) or "none left out"
        raise DataError(
            f"class {empty[0]!r} has no training row ({counts}; {reasons}); give rows of it, or set control.classes.names to"
            " the classes that there are (null: as found)."
        )
