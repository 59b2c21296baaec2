"""A strength, or classes of answers, as weighted forward passes.

Shapes: B texts, R rows of a pass, T time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from alignlab.errors import ControlError, ModelError
from alignlab.records import NO_CLASS, Batch
from alignlab.registry import unknown

Strength: TypeAlias = "float | Tensor"
"""One number for every row of a batch, or a tensor with one number per row."""

ClassMixture: TypeAlias = "str | Mapping[str, float]"
"""A class by its name, or classes with weights that add up to 1."""

AskedStrength: TypeAlias = "float | Mapping[str, float]"
"""A number, or, of several adapters, a number by the name of each."""

AskedStrengths: TypeAlias = "AskedStrength | Sequence[AskedStrength]"
"""One for all prompts, or one for each."""

LARGEST = torch.finfo(torch.float32).max
"""The largest strength: models compute with it in float32."""

WITHOUT = -1.0
"""The setting of a pass without any class; a class's own setting is its number."""


@dataclass(frozen=True)
class Prefix:
    """Ids that are put into a text, behind its first `behind` tokens (BOS)."""

    ids: tuple[int, ...] = ()
    behind: int = 0


@dataclass(frozen=True)
class Inserted:
    """What a tuner puts into a text: at most so many `tokens`; `reserved`: the ids that stand for its vectors there, which no
    text may hold and no answer has."""

    tokens: int = 0
    reserved: tuple[int, ...] = ()


NOTHING = Inserted()


@dataclass(frozen=True)
class WeightedPass:
    """One weighted forward pass: its logits, times `weight`, with the tuner at `setting` and a prefix in every text."""

    weight: Strength
    setting: Strength
    prefix: Prefix = Prefix()


ONE_PASS: tuple[WeightedPass, ...] = (WeightedPass(1.0, 1.0),)
"""The tuner as it was trained."""


class HasStrength(Protocol):
    """How a tuner turns a strength into forward passes, and how it is set and switched off."""

    per_row: bool
    """Whether one pass may hold rows of different settings."""

    controls: Controls | None
    """The classes between which it chooses; None where it has a strength only."""

    inserted: Inserted
    """What it puts into texts, at most."""

    starts_as_base: bool
    """Whether a new one leaves every log-probability as it is without the tuner."""

    default_passes: tuple[WeightedPass, ...]
    """The passes where neither a strength nor a class is asked for: those of strength 1, or of no class."""

    edits_head: bool
    """Whether its setting may change what the model's head computes."""

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        """The passes whose weighted logits make this strength; raises ControlError for one it cannot apply."""

    def at(self, setting: Strength) -> AbstractContextManager[None]:
        """Sets the tuner for the passes inside; at 1.0 nothing is touched."""

    def off(self) -> AbstractContextManager[None]:
        """Makes the model the backbone as it is without the tuner, bit for bit, for the passes inside."""


class Untuned:
    """The tuner of a model that carries nothing."""

    per_row = True
    controls: Controls | None = None
    inserted = NOTHING
    starts_as_base = True
    default_passes = ONE_PASS
    edits_head = False

    def passes(self, strength: Strength) -> tuple[WeightedPass, ...]:
        """One pass, whatever the strength."""
        del strength
        return ONE_PASS

    def at(self, setting: Strength) -> AbstractContextManager[None]:
        """Nothing to set."""
        del setting
        return nullcontext()

    def off(self) -> AbstractContextManager[None]:
        """Nothing to switch off."""
        return nullcontext()


def as_strength(values: Sequence[float], device: torch.device) -> Strength:
    """One number where all are the same, else a tensor of them."""
    return torch.tensor(values, device=device) if len(set(values)) > 1 else values[0]


def checked_strengths(strength: float | Iterable[float], count: int | None = None) -> list[float]:
    """One strength per prompt, `count` of them where it is known.

    Raises ControlError for a list of another length and for anything but finite numbers that float32 holds.
    """
    try:
        if isinstance(strength, (str, set, frozenset, Mapping)):
            raise TypeError
        # A tensor without dimensions says that it can be iterated, and cannot.
        many = isinstance(strength, Iterable) and getattr(strength, "ndim", 1) > 0
        given = list(strength) if many else [float(strength)] * (1 if count is None else count)  # type: ignore[arg-type]
        values = [float(value) for value in given]
    except (TypeError, ValueError) as error:
        raise ControlError(f"strength {strength!r} is not a number or a list of numbers.") from error
    if count is not None and len(values) != count:
        raise ControlError(f"{len(values)} strengths were given for {count} prompts; give one number, or one per prompt.")
    if not all(math.isfinite(value) for value in values):
        raise ControlError(f"strength {values} holds a value that is not finite; give real numbers.")
    if any(abs(value) > LARGEST for value in values):
        raise ControlError(f"strength {max(values, key=abs):g} is beyond what float32 holds; ask for less.")
    return values


def strengths_of(
    tuner: HasStrength, strength: AskedStrength | Iterable[AskedStrength], count: int | None = None
) -> list[float]:
    """What `tuner.passes` takes for each prompt: the strengths themselves, or, of several adapters, numbers that stand for one
    of each. Raises ControlError as `checked_strengths`, and for a name that is missing or unknown."""
    take: Callable[..., list[float]] = getattr(tuner, "numbered", checked_strengths)
    return take(strength, count)


def adapters_of(tuner: HasStrength) -> tuple[str, ...]:
    """The names by which each of several adapters has a strength; none where one number is all."""
    return tuple(getattr(tuner, "adapters", ()))


@dataclass(frozen=True)
class Controls:
    """The classes, best first where there is an order, and the prefix that each puts into a text (empty where the setting alone
    says the class). `reserved`: ids that stand for a prefix and are never generated. `template`: the hash of the one that
    prompts were written with in training."""

    names: tuple[str, ...]
    prefixes: tuple[Prefix, ...]
    reserved: tuple[int, ...] = ()
    template: str | None = None

    @property
    def inserted(self) -> Inserted:
        """The longest prefix, and the reserved ids."""
        return Inserted(max(len(prefix.ids) for prefix in self.prefixes), self.reserved)

    def check_template(self, template_hash: str) -> None:
        """Raises ModelError where prompts are written with another template than in training."""
        if self.template not in (None, template_hash):
            raise ModelError(
                "this control was trained on prompts written with another template; set model.template as it was then."
            )

    def number(self, name: str) -> int:
        """The number of a class. Raises ControlError for one that is not known."""
        if name not in self.names:
            raise ControlError(unknown("class", name, (*self.names, NO_CLASS)))
        return self.names.index(name)

    def mixtures(self, control: ClassMixture | Sequence[ClassMixture], count: int) -> list[Mapping[str, float]]:
        """What is asked for each of `count` texts, as weights of classes.

        Raises ControlError for a list of another length, an unknown class, and weights that do not add up to 1.
        """
        given = [control] * count if isinstance(control, (str, Mapping)) else list(control)
        if len(given) != count:
            raise ControlError(f"{len(given)} classes were given for {count} prompts; give one, or one per prompt.")
        return [self._weights(each) for each in given]

    def passes(self, asked: Sequence[Mapping[str, float]]) -> tuple[WeightedPass, ...]:
        """z = sum over classes of w_c z_c (our choice; MEET's paper does not mix), a pass for each class that is asked for."""
        used = [name for name in (*self.names, NO_CLASS) if any(weights.get(name, 0.0) for weights in asked)]
        if all(weights == asked[0] for weights in asked):
            return tuple(self._weighted_pass(name, asked[0][name]) for name in used)
        return tuple(self._weighted_pass(name, torch.tensor([weights.get(name, 0.0) for weights in asked])) for name in used)

    def at_strength(self, strength: Strength) -> tuple[WeightedPass, ...]:
        """s z(first class) + (1 - s) z(second class), one pass at exactly 0 and 1. Raises ControlError for more classes."""
        if len(self.names) != 2:
            raise ControlError(
                f"a strength mixes two classes, and here are {', '.join(self.names)}; ask for one by name (control=)."
            )
        first, second = self.names
        if not isinstance(strength, Tensor) and strength in (0.0, 1.0):
            return (self._weighted_pass(first if strength else second, 1.0),)
        return self._weighted_pass(first, strength), self._weighted_pass(second, 1 - strength)

    def insert_prefixes(self, batch: Batch) -> tuple[Batch, Tensor]:
        """A batch whose members have classes, with each one's prefix, and the setting of each (R = G*M, a row per member)."""
        numbers = [self.number(name) for name in batch.controls or ()]
        settings_R = torch.tensor(numbers, dtype=torch.float32, device=batch.ids_GMT.device)
        return insert_prefixes(batch, [self.prefixes[number] for number in numbers]), settings_R

    def _weighted_pass(self, name: str, weight: Strength) -> WeightedPass:
        if name == NO_CLASS:
            return WeightedPass(weight, WITHOUT, Prefix())
        number = self.number(name)
        return WeightedPass(weight, float(number), self.prefixes[number])

    def _weights(self, asked: ClassMixture) -> Mapping[str, float]:
        if not isinstance(asked, (str, Mapping)):
            known = ", ".join((*self.names, NO_CLASS))
            raise ControlError(f"{asked!r} is neither the name of a class nor names with weights; known: {known}.")
        weights = {asked: 1.0} if isinstance(asked, str) else dict(asked)
        for name, weight in weights.items():
            if name != NO_CLASS:
                self.number(str(name))
            if not isinstance(weight, (int, float)):
                raise ControlError(f"the weight of class {name!r} is {weight!r}, and must be a number.")
        if not math.isclose(sum(weights.values()), 1.0, abs_tol=1e-6):
            raise ControlError(f"the weights of classes {weights} must be numbers that add up to 1.")
        return weights


def insert_prefixes(batch: Batch, prefixes: Sequence[Prefix]) -> Batch:
    """A batch with a prefix put into each member (one per member, groups after one another)."""
    longest = max(len(prefix.ids) for prefix in prefixes)
    if not longest:
        return batch
    groups, members, time = batch.ids_GMT.shape
    device = batch.ids_GMT.device
    behind = prefixes[0].behind
    put_RL = torch.tensor([prefix.ids + (0,) * (longest - len(prefix.ids)) for prefix in prefixes], device=device)
    length_R1 = torch.tensor([[len(prefix.ids)] for prefix in prefixes], device=device)
    clock_T = torch.arange(time + longest, device=device).expand(len(prefixes), -1)
    since_RT = clock_T - behind
    from_RT = torch.where(since_RT < 0, clock_T, clock_T - length_R1).clamp(0, time - 1)
    put_RT = put_RL.gather(1, since_RT.clamp(0, longest - 1))
    inside_RT = (since_RT >= 0) & (since_RT < length_R1)
    ids_RT = torch.where(inside_RT, put_RT, batch.ids_GMT.reshape(-1, time).gather(1, from_RT))
    length_GM = length_R1.reshape(groups, members)
    # A prefix is shared further only where all members of a group have the same prefix.
    alike_G = torch.tensor([len(set(prefixes[g * members : (g + 1) * members])) == 1 for g in range(groups)], device=device)
    types_RT = None if batch.types_GMT is None else batch.types_GMT.reshape(-1, time).gather(1, from_RT)
    longer_G = torch.where(batch.prefix_G >= behind, batch.prefix_G + length_GM[:, 0], batch.prefix_G)
    return replace(
        batch,
        ids_GMT=ids_RT.reshape(groups, members, -1),
        length_GM=batch.length_GM + length_GM,
        start_GM=batch.start_GM + length_GM,
        prefix_G=torch.where(alike_G, longer_G, batch.prefix_G.clamp(max=behind)),
        types_GMT=None if types_RT is None else types_RT.masked_fill(inside_RT, 0).reshape(groups, members, -1),
    )


def insert_prefix_rows(ids_RT: Tensor, mask_RT: Tensor, prefixes: Sequence[Prefix]) -> tuple[Tensor, Tensor]:
    """Rows padded on the left with a prefix put into each, and their mask, again padded on the left."""
    rows, fills = [], []
    for ids, mask, prefix in zip(ids_RT.tolist(), mask_RT.tolist(), prefixes, strict=True):
        real = [token for token, seen in zip(ids, mask, strict=True) if seen]
        rows.append([*real[: prefix.behind], *prefix.ids, *real[prefix.behind :]])
        fills.append(real[:1] or [0])
    width = max(len(row) for row in rows)
    # Padded with a token of a text, which is no placeholder.
    padded = [fill * (width - len(row)) + row for fill, row in zip(fills, rows, strict=True)]
    seen = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(padded, device=ids_RT.device), torch.tensor(seen, device=ids_RT.device)
