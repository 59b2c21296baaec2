"""Which groups make up each optimiser step, formed by length and decided by the seed alone; and groups to tensors."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


def plan(groups: Sequence[EncodedGroup], *, steps: int, step_groups: int, micro_groups: int, seed: int) -> list[Share]:
    """The micro-batches of a whole training, in order: `steps` times step_groups / micro_groups of them.

    Epochs are shuffled one after the other into one stream, and steps are cut from it, so no step is short and no group is
    left out of an epoch. Within a window of steps, groups of like length come together; the steps are then shuffled.
    """
    generator = random.Random(seed)
    stream = _epochs(len(groups), generator)
    shares: list[Share] = []
    done = 0
    while done < steps:
        count = min(WINDOW_STEPS, steps - done)
        window = sorted((next(stream) for _ in range(count * step_groups)), key=lambda index: (groups[index].length, index))
        cut = [window[begin : begin + step_groups] for begin in range(0, len(window), step_groups)]
        generator.shuffle(cut)
        for step in cut:
            tokens = sum(groups[index].response_tokens for index in step)
            micro_batches = (step[begin : begin + micro_groups] for begin in range(0, step_groups, micro_groups))
            shares += [Share(tuple(members), step_groups, tokens) for members in micro_batches]
        done += count
    return shares


def in_order(groups: Sequence[EncodedGroup], batch_groups: int) -> list[list[int]]:
    """Batches for looking without learning: groups sorted by length, longest first."""
    order = sorted(range(len(groups)), key=lambda index: (-groups[index].length, index))
    return [order[begin : begin + batch_groups] for begin in range(0, len(order), batch_groups)]


def collate(groups: Sequence[EncodedGroup], *, pad: int, step_groups: int, step_tokens: int) -> Batch:
    """Groups of equally many members to one batch, padded on the right to the longest."""
    width = max(group.length for group in groups)
    ids = [[list(m.ids) + [pad] * (width - len(m.ids)) for m in group.members] for group in groups]
    references = [group.reference for group in groups if group.reference is not None]
    return Batch(
        ids_GMT=torch.tensor(ids),
        length_GM=torch.tensor([[len(m.ids) for m in group.members] for group in groups]),
        start_GM=torch.tensor([[m.start for m in group.members] for group in groups]),
        prefix_G=torch.tensor([_shared(group) for group in groups]),
        rows=tuple(group.row for group in groups),
        step_groups=step_groups,
        step_tokens=step_tokens,
        reference_GM=torch.tensor(references) if len(references) == len(groups) else None,
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


def _epochs(count: int, generator: random.Random) -> Iterator[int]:
    while True:
        order = list(range(count))
        generator.shuffle(order)
        yield from order


def _shared(group: EncodedGroup) -> int:
    """How many leading tokens all members have in common, responses left out."""
    limit = min(member.start for member in group.members)
    first = group.members[0].ids
    for position in range(limit):
        if any(member.ids[position] != first[position] for member in group.members[1:]):
            return position
    return limit
