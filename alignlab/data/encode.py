"""Groups to ids: the only place that drops or cuts a row, and the account of what it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from alignlab.data.source import Split
from alignlab.errors import DataError
from alignlab.records import Encoded, EncodedGroup, Example, Group, View

Encode = Callable[[Sequence[Example], Sequence[str]], list[Encoded]]
"""(examples, their row names) -> ids with BOS and EOS in place."""


@dataclass(frozen=True)
class Limits:
    """The most tokens of a row (prompt and response), what happens to a longer one, and how many leading tokens a cut
    prompt keeps (BOS)."""

    max_tokens: int
    too_long: str
    head_tokens: int


@dataclass(frozen=True)
class Account:
    """What became of the rows of a split under one view. Counts are records; `cut` and `moved` count among the kept."""

    read: int
    kept: int
    dropped: Mapping[str, int]
    cut: int
    moved: int

    def sentence(self) -> str:
        """One line for the plan and the log."""
        lost = "; ".join(f"{count} dropped: {reason}" for reason, count in self.dropped.items()) or "none dropped"
        cut = f"; {self.cut} prompts cut on the left" if self.cut else ""
        moved = f"; in {self.moved} a token spans prompt and response" if self.moved else ""
        return f"{self.read} rows read, {self.kept} kept, {lost}{cut}{moved}"


def encode(split: Split, view: View, encode_examples: Encode, limits: Limits) -> tuple[list[EncodedGroup], Account]:
    """Every record of a split, as ids. Raises DataError, with the row, under `too_long: error` and where nothing is left."""
    dropped = Counter(split.left_out)
    groups = []
    for record in split.records:
        group = view(record)
        if group is None:
            dropped["nothing in it for this stage"] += 1
        else:
            groups.append(group)
    examples = [example for group in groups for example in group.members]
    flat = iter(encode_examples(examples, [group.row for group in groups for _ in group.members]))
    encoded = [_group(group, [next(flat) for _ in group.members]) for group in groups]

    kept: list[EncodedGroup] = []
    cut = 0
    for whole in encoded:
        fitted = _fit(whole, limits)
        if fitted is None:
            dropped[f"longer than {limits.max_tokens} tokens"] += 1
            continue
        cut += fitted is not whole
        kept.append(fitted)
    read = len(split.records) + sum(split.left_out.values())
    account = Account(read, len(kept), dict(dropped), cut, sum(any(m.moved for m in group.members) for group in kept))
    if not kept:
        raise DataError(f"no row is left to work on ({account.sentence()}); check the data, data.max_tokens and data.too_long.")
    return kept, account


def _group(group: Group, members: Sequence[Encoded]) -> EncodedGroup:
    """The members of one prompt answer from the same token on, also where only one of them merged the prompt's last."""
    if len({example.prompt for example in group.members}) == 1:
        start = min(member.start for member in members)
        members = [replace(member, start=start) for member in members]
    return EncodedGroup(group.row, tuple(members))


def _fit(group: EncodedGroup, limits: Limits) -> EncodedGroup | None:
    """The group itself if it fits; else it is cut, or None, or an error, as the policy says."""
    excess = group.length - limits.max_tokens
    if excess <= 0:
        return group
    if limits.too_long == "error":
        raise DataError(
            f"{group.row}: {group.length} tokens, but a row may have {limits.max_tokens}; set data.too_long=drop or"
            " cut_prompt_left, or raise data.max_tokens if the model's context allows."
        )
    if limits.too_long == "drop" or any(member.start - limits.head_tokens <= excess for member in group.members):
        return None
    return replace(group, members=tuple(_without_left(member, excess, limits.head_tokens) for member in group.members))


def _without_left(member: Encoded, count: int, head: int) -> Encoded:
    return replace(member, ids=member.ids[:head] + member.ids[head + count :], start=member.start - count)
