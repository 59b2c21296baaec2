"""Records to groups to ids: how a stage sees a record, which rows are dropped or cut, and the account of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alignlab.data.source import LeftOut, Split, counted
from alignlab.errors import DataError, UnusableRowError
from alignlab.records import Encoded, EncodedGroup, Example, Group, Record, Response, View

Encode = Callable[[Sequence[Example], Sequence[str]], list[Encoded]]
"""(examples, their row names) -> ids with BOS and EOS in place."""
NOTHING = "nothing in it for this stage"
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


@dataclass(frozen=True)
class Liked:
    """The preferred response alone, as `chosen`; of responses that have a score, those of at least `least_score`. Raises
    DataError for one that has a score and no label where no such number is given: trained on alike, bad ones would count as
    good ones."""

    least_score: float | None = None

    def __call__(self, record: Record) -> tuple[Group, ...]:
        """None of them where nothing says that a response is good enough."""
        enough = tuple(response for response in record.responses if self._is_enough(record.row, response))
        return chosen(replace(record, responses=enough)) if enough else ()

    def _is_enough(self, row: str, response: Response) -> bool:
        if response.score is None:
            return True
        if self.least_score is not None:
            return response.score >= self.least_score
        if response.label is None:
            raise DataError(
                f"{row}: the response has a score and no label, so it is not known whether it is to be trained on; set"
                f" method.least_score to the lowest score that is (here it is {response.score:g}), or give labels."
            )
        return True

    def left_out(self, record: Record) -> str:
        """Why a record has nothing for this view."""
        if any(response.label in LIKED or response.label is None for response in record.responses):
            return f"a score below method.least_score={self.least_score:g}" if self.least_score is not None else NOTHING
        return f"no response labelled {' or '.join(LIKED)}"


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


@dataclass(frozen=True)
class Limits:
    """The most tokens of a row (prompt and response), and what happens to a longer one. Where a stage asks for it:
    `prompt_tokens`, to which a longer prompt is cut on the left (BOS and prefix stay), and `response_tokens`, of which the
    first are read. `tasks`: those of the records of a task, where there are several sources. `drops`: rows that the
    tokenizer or a chat template cannot take are left out."""

    max_tokens: int
    too_long: str
    prompt_tokens: int | None = None
    response_tokens: int | None = None
    tasks: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    drops: bool = False

    def of(self, task: str | None) -> Limits:
        """Those of a task."""
        if task is None or task not in self.tasks:
            return self
        max_tokens, too_long = self.tasks[task]
        return replace(self, max_tokens=max_tokens, too_long=too_long)


@dataclass(frozen=True)
class Truncation:
    """How much of a row a stage reads: a longer prompt is cut on the left, of a response come the first tokens; None = all."""

    prompt_tokens: int | None = None
    response_tokens: int | None = None

    def __call__(self, limits: Limits) -> Limits:
        """The limits, with this truncation."""
        return replace(limits, prompt_tokens=self.prompt_tokens, response_tokens=self.response_tokens)


EVERYTHING = Truncation()


@dataclass(frozen=True)
class Account:
    """How many rows of a split were kept, dropped and changed under one view, and why. `read` counts records, the others
    groups; `made`: how many, where the view makes several of a record. `cut` (prompts), `shortened` (responses), `ended`
    (responses cut to fit, their EOS with the end), `moved` and `notes` (what was changed in rows, or is remarkable in them)
    count among the kept. `lost`: the rows that `dropped` counts."""

    read: int
    kept: int
    dropped: Mapping[str, int]
    cut: int
    moved: int
    shortened: int = 0
    made: int | None = None
    ended: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)
    lost: tuple[LeftOut, ...] = field(default=(), compare=False, repr=False)

    def counts(self) -> dict[str, Any]:
        """Its numbers, from which the sentence can be made again."""
        return {key: value for key, value in vars(self).items() if key != "lost"}

    def sentence(self) -> str:
        """One line for the plan and the log."""
        lost = "; ".join(f"{count} dropped: {reason}" for reason, count in self.dropped.items()) or "none dropped"
        cut = f"; {self.cut} prompts cut on the left" if self.cut else ""
        moved = f"; in {self.moved} a response that would merge with its prompt is tokenised apart" if self.moved else ""
        ended = f"; {self.ended} with a response cut at its end, which is not trained as one" if self.ended else ""
        shortened = f"; of {self.shortened} responses the first tokens are used" if self.shortened else ""
        made = "" if self.made is None else f" as {self.made} items"
        notes = "".join(f"; {count} {note}" for note, count in self.notes.items())
        return f"{self.read} rows read{made}, {self.kept} kept, {lost}{cut}{ended}{shortened}{moved}{notes}"


def encode(split: Split, view: View, encode_examples: Encode, limits: Limits) -> tuple[list[EncodedGroup], Account]:
    """Every record of a split, as ids. Raises DataError, with the row, under `too_long: error` and where nothing is left."""
    lost = list(split.lost)
    reason_of = getattr(view, "left_out", None)
    groups: list[Group] = []
    tasks: list[str | None] = []
    for record in split.records:
        seen = view(record)
        if not seen:
            lost.append(LeftOut(record.row, reason_of(record) if reason_of else NOTHING))
        groups += seen
        tasks += [record.task] * len(seen)
    encoded: list[EncodedGroup] = []
    for group, task, members in zip(groups, tasks, ids_of(groups, encode_examples, limits.drops), strict=True):
        if isinstance(members, str):
            lost.append(LeftOut(group.row, members))
        else:
            encoded.append(EncodedGroup(group.row, members, task=task))

    kept: list[EncodedGroup] = []
    cut = shortened = ended = 0
    for whole in encoded:
        opening = _opening(whole, limits.response_tokens)
        fitted, reason = _fit(opening, limits.of(whole.task))
        if fitted is None:
            lost.append(LeftOut(whole.row, reason))
            continue
        shortened += opening is not whole
        cut += fitted.members[0].start < opening.members[0].start
        ended += fitted.response_tokens < opening.response_tokens
        kept.append(fitted)
    moved = sum(any(member.moved for member in group.members) for group in kept)
    made = len(groups) if len(groups) > split.read - len(split.lost) else None
    notes = dict(split.notes)
    account = Account(split.read, len(kept), counted(lost), cut, moved, shortened, made, ended, notes, tuple(lost))
    if not kept:
        raise DataError(f"no row is left to work on ({account.sentence()}); check the data, data.max_tokens and data.too_long.")
    return kept, account


def ids_of(groups: Sequence[Group], encode_examples: Encode, drops: bool) -> list[tuple[Encoded, ...] | str]:
    """The members of each group as ids; of one that cannot be used, its reason, where `drops`. Else raises UnusableRowError."""

    def alone(group: Group) -> tuple[Encoded, ...] | str:
        try:
            return tuple(encode_examples(group.members, [group.row] * len(group.members)))
        except UnusableRowError as error:
            return error.reason

    try:
        examples = [example for group in groups for example in group.members]
        flat = iter(encode_examples(examples, [group.row for group in groups for _ in group.members]))
        return [tuple(next(flat) for _ in group.members) for group in groups]
    except UnusableRowError:
        if not drops:
            raise
        return [alone(group) for group in groups]


def _opening(group: EncodedGroup, tokens: int | None) -> EncodedGroup:
    """The group with the first tokens of its responses; the group itself where they have no more."""
    if tokens is None or all(len(member.ids) - member.start <= tokens for member in group.members):
        return group
    return replace(group, members=tuple(replace(member, ids=member.ids[: member.start + tokens]) for member in group.members))


def _fit(group: EncodedGroup, limits: Limits) -> tuple[EncodedGroup | None, str]:
    """The group itself if it fits; else it is cut, or None and why, or an error, as the policy says."""
    over = 0 if limits.prompt_tokens is None else max(member.start for member in group.members) - limits.prompt_tokens
    if over > 0 and not _leaves_a_prompt(group, over):
        return None, f"prefix and prompt longer than {limits.prompt_tokens} tokens"
    fitted = _without_left(group, over) if over > 0 else group
    excess = fitted.length - limits.max_tokens
    if excess <= 0:
        return fitted, ""
    if limits.too_long == "error":
        raise DataError(
            f"{group.row}: {fitted.length} tokens, but a row may have {limits.max_tokens}; set data.too_long=drop,"
            " cut_prompt_left or cut_response, or raise data.max_tokens if the model's context allows."
        )
    if limits.too_long == "cut_response":
        if any(member.start >= limits.max_tokens for member in fitted.members):
            return None, f"no room for a response in {limits.max_tokens} tokens"
        return _first_tokens(fitted, limits.max_tokens), ""
    if limits.too_long == "drop" or not _leaves_a_prompt(fitted, excess):
        return None, f"longer than {limits.max_tokens} tokens"
    return _without_left(fitted, excess), ""


def _first_tokens(group: EncodedGroup, count: int) -> EncodedGroup:
    """Every member up to this length; a longer one loses the end of its response, and EOS with it."""
    return replace(group, members=tuple(replace(member, ids=member.ids[:count]) for member in group.members))


def _leaves_a_prompt(group: EncodedGroup, count: int) -> bool:
    return all(member.start - member.head > count for member in group.members)


def _without_left(group: EncodedGroup, count: int) -> EncodedGroup:
    """Every member loses the same tokens of its prompt."""
    return replace(
        group,
        members=tuple(replace(m, ids=m.ids[: m.head] + m.ids[m.head + count :], start=m.start - count) for m in group.members),
    )
