"""Which groups make up each optimiser step, formed by length and decided by the seed alone; and groups to tensors."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch.utils.data import Dataset

from alignlab.records import Batch, EncodedGroup

WINDOW_STEPS = 16
"""Steps whose groups are sorted by length together: large enough to fill rows well, small enough to keep steps mixed."""


@dataclass(frozen=True)
class Share:
    """A micro-batch: its groups, and the size of the step it is a part of."""

    members: tuple[int, ...]
    step_groups: int
    step_tokens: int


def plan(
    groups: Sequence[EncodedGroup],
    *,
    steps: int,
    step_groups: int,
    micro_groups: int,
    seed: int,
    weights: Mapping[str, float] | None = None,
) -> list[Share]:
    """The micro-batches of a whole training, in order: `steps` times step_groups / micro_groups of them.

    Epochs are shuffled one after the other into one stream, and steps are cut from it, so no step is short and no group is
    left out of an epoch. Within a window of steps, groups of like length come together; the steps are then shuffled.
    A window that would hold every group equally often is shortened: the seed would not decide what a step is made of.
    Groups of several classes are drawn in turn, so that every step has as many of each, and a rare class comes round sooner.
    `weights`: the share of each task, which add up to 1; at every place of the stream, what has been drawn of a task is within
    one group of its share, and its classes are drawn in turn.
    """
    generator = random.Random(seed)
    classes, every_turn = _streams(groups, weights, steps * step_groups)
    streams = [_epochs(members, generator) for members in classes]
    shares: list[Share] = []
    done, before = 0, [0] * len(classes)
    while done < steps:
        count = min(WINDOW_STEPS, steps - done)
        while True:
            begins = range(done * step_groups, (done + count) * step_groups, step_groups)
            turns = [every_turn[begin : begin + step_groups] for begin in begins]
            wanted = [sum(turn.count(own) for turn in turns) for own in range(len(classes))]
            if count == 1 or not _whole_epochs(classes, before, wanted):
                break
            count //= 2
        before = [drawn + more for drawn, more in zip(before, wanted, strict=True)]
        drawn = [islice(stream, more) for stream, more in zip(streams, wanted, strict=True)]
        sorted_by_class = [iter(_by_length(groups, members)) for members in drawn]
        cut = [_by_length(groups, (next(sorted_by_class[own]) for own in turn)) for turn in turns]
        generator.shuffle(cut)
        for step in cut:
            tokens = sum(groups[index].response_tokens for index in step)
            micro_batches = (step[begin : begin + micro_groups] for begin in range(0, step_groups, micro_groups))
            shares += [Share(tuple(members), step_groups, tokens) for members in micro_batches]
        done += count
    return shares


def in_order(groups: Sequence[EncodedGroup], batch_groups: int) -> list[list[int]]:
    """Batches for passes without gradients: groups sorted by length, longest first."""
    order = sorted(range(len(groups)), key=lambda index: (-groups[index].length, index))
    return [order[begin : begin + batch_groups] for begin in range(0, len(order), batch_groups)]


def collate(groups: Sequence[EncodedGroup], *, pad: int, step_groups: int, step_tokens: int) -> Batch:
    """Groups of equally many members to one batch, padded on the right to the longest."""
    width = max(group.length for group in groups)
    ids = [[list(m.ids) + [pad] * (width - len(m.ids)) for m in group.members] for group in groups]
    references = [group.reference for group in groups if group.reference is not None]
    controls = tuple(member.control for group in groups for member in group.members if member.control is not None)
    targets = [[m.target for m in group.members if m.target is not None] for group in groups]
    types = [[list(m.types) + [0] * (width - len(m.types)) for m in group.members if m.types] for group in groups]
    return Batch(
        ids_GMT=torch.tensor(ids),
        length_GM=torch.tensor([[len(m.ids) for m in group.members] for group in groups]),
        start_GM=torch.tensor([[m.start for m in group.members] for group in groups]),
        prefix_G=torch.tensor([shared_tokens(group) for group in groups]),
        rows=tuple(group.row for group in groups),
        step_groups=step_groups,
        step_tokens=step_tokens,
        reference_GM=torch.tensor(references) if len(references) == len(groups) else None,
        controls=controls or None,
        target_GM=torch.tensor(targets) if targets[0] else None,
        types_GMT=torch.tensor(types) if types[0] else None,
    )


def whole(groups: Sequence[EncodedGroup], pad: int) -> Batch:
    """A batch that is a step by itself."""
    tokens = sum(group.response_tokens for group in groups)
    return collate(groups, pad=pad, step_groups=len(groups), step_tokens=tokens)


def padding_share(groups: Sequence[EncodedGroup], shares: Sequence[Share]) -> float:
    """The share of tokens that are padding, over all micro-batches, members counted as separate rows."""
    real = padded = 0
    for share in shares:
        lengths = [len(member.ids) for index in share.members for member in groups[index].members]
        real += sum(lengths)
        padded += max(lengths) * len(lengths)
    return 1 - real / padded


class Batches(Dataset[dict[str, Batch]]):
    """The micro-batches of a training, made when they are asked for."""

    def __init__(self, groups: Sequence[EncodedGroup], shares: Sequence[Share], pad: int) -> None:
        self._groups, self._shares, self._pad = groups, shares, pad

    def __len__(self) -> int:
        return len(self._shares)

    def __getitem__(self, index: int) -> dict[str, Batch]:
        share = self._shares[index]
        members = [self._groups[member] for member in share.members]
        return {"batch": collate(members, pad=self._pad, step_groups=share.step_groups, step_tokens=share.step_tokens)}


def _streams(
    groups: Sequence[EncodedGroup], weights: Mapping[str, float] | None, places: int
) -> tuple[list[list[int]], list[int]]:
    """The groups that are drawn from one another's side, and of which of them each place of the stream is."""
    if weights is None:
        classes = _by_class(groups)
        return classes, [place % len(classes) for place in range(places)]
    tasks = [[index for index, group in enumerate(groups) if group.task == task] for task in weights]
    of_task = [[[task[place] for place in own] for own in _by_class([groups[index] for index in task])] for task in tasks]
    first = [sum(map(len, of_task[:number])) for number in range(len(of_task))]
    turns: list[int] = []
    drawn = [0] * len(of_task)
    for place in range(1, places + 1):
        # The task that is furthest behind its share; of equal ones the first.
        task = max(range(len(drawn)), key=lambda number: (list(weights.values())[number] * place - drawn[number], -number))
        turns.append(first[task] + drawn[task] % len(of_task[task]))
        drawn[task] += 1
    return [members for own in of_task for members in own], turns


def _by_class(groups: Sequence[EncodedGroup]) -> list[list[int]]:
    """The groups of each class, in the alphabetical order of classes; all of them together where there are none."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group.members[0].control or "", []).append(index)
    return [members[name] for name in sorted(members)]


def _whole_epochs(classes: Sequence[Sequence[int]], before: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether so many groups, drawn after those before, are all groups of every class, each as often as the others."""
    return all(
        done % len(members) == 0 and more % len(members) == 0
        for members, done, more in zip(classes, before, wanted, strict=True)
    )


def _by_length(groups: Sequence[EncodedGroup], members: Iterable[int]) -> list[int]:
    return sorted(members, key=lambda index: (groups[index].length, index))


def _epochs(members: list[int], generator: random.Random) -> Iterator[int]:
    while True:
        order = list(members)
        generator.shuffle(order)
        yield from order


def shared_tokens(group: EncodedGroup) -> int:
    """How many leading tokens all members have in common, responses left out."""
    limit = min(member.start for member in group.members)
    first = group.members[0].ids
    for position in range(limit):
        if any(member.ids[position] != first[position] for member in group.members[1:]):
            return position
    return limit
