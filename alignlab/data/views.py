"""How a stage sees a record: the functions from a record to the group it contributes."""

from __future__ import annotations

from alignlab.records import Example, Group, Preference

LIKED = ("chosen", "good")
"""Labels of single responses that stand for a preferred one."""


def pair(record: Preference) -> Group | None:
    """Chosen and rejected side by side, in this order."""
    chosen, rejected = record.labelled("chosen"), record.labelled("rejected")
    if chosen is None or rejected is None:
        return None
    return Group(record.row, (Example(record.prompt, chosen.text), Example(record.prompt, rejected.text)))


def chosen(record: Preference) -> Group | None:
    """The preferred response alone: the one labelled so, or the only one if nothing says that it is not preferred."""
    liked = next((response for response in record.responses if response.label in LIKED), None)
    if liked is None and len(record.responses) == 1 and record.responses[0].label is None:
        liked = record.responses[0]
    return None if liked is None else Group(record.row, (Example(record.prompt, liked.text),))


def labelled(record: Preference) -> Group:
    """The single response of a record whose label is its class (see `classes.labelled`)."""
    response = record.responses[0]
    return Group(record.row, (Example(record.prompt, response.text, response.label),))


def every(record: Preference) -> Group | None:
    """The first response, whatever is known of it: plain text for pretraining."""
    return Group(record.row, (Example(record.prompt, record.responses[0].text),))
