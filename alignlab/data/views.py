"""How a stage sees a record: the functions from a record to the groups it contributes."""

from __future__ import annotations

from alignlab.records import Example, Group, Record

LIKED = ("chosen", "good")
"""Labels of single responses that stand for a preferred one."""


def pair(record: Record) -> tuple[Group, ...]:
    """Chosen and rejected side by side, in this order."""
    chosen, rejected = record.labelled("chosen"), record.labelled("rejected")
    if chosen is None or rejected is None:
        return ()
    return (Group(record.row, (Example(record.prompt, chosen.text), Example(record.prompt, rejected.text))),)


def chosen(record: Record) -> tuple[Group, ...]:
    """The preferred response alone: the one labelled so, or the only one if nothing says that it is not preferred."""
    liked = next((response for response in record.responses if response.label in LIKED), None)
    if liked is None and len(record.responses) == 1 and record.responses[0].label is None:
        liked = record.responses[0]
    return () if liked is None else (Group(record.row, (Example(record.prompt, liked.text, second=record.second),)),)


def rejected(record: Record) -> tuple[Group, ...]:
    """The dispreferred response of a pair alone."""
    disliked = record.labelled("rejected")
    return () if disliked is None else (Group(record.row, (Example(record.prompt, disliked.text),)),)


def labelled(record: Record) -> tuple[Group, ...]:
    """The single response of a record whose label is its class (see `classes.labelled`)."""
    response = record.responses[0]
    return (Group(record.row, (Example(record.prompt, response.text, response.label),)),)


def every(record: Record) -> tuple[Group, ...]:
    """The first response, whatever is known of it: plain text for pretraining."""
    return (Group(record.row, (Example(record.prompt, record.responses[0].text),)),)
