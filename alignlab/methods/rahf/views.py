"""How RAHF's stages see a record: one response behind different prefixes. Members share the ids of prompt and response."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from alignlab.records import Example, Group, Record


@dataclass(frozen=True)
class InstructionVariants:
    """Each response of a pair behind the prefix that fits it, and behind the other: two groups of two members."""

    better: str
    worse: str

    def __call__(self, record: Record) -> tuple[Group, ...]:
        """The chosen response's group, then the rejected one's."""
        sides = (("chosen", self.better, self.worse), ("rejected", self.worse, self.better))
        found = [(record.labelled(label), matching, other) for label, matching, other in sides]
        if any(response is None for response, _, _ in found):
            return ()
        return tuple(
            Group(f"{record.row}/{number}", tuple(Example(record.prompt, response.text, prefix=prefix) for prefix in prefixes))
            for number, (response, *prefixes) in enumerate(found)
            if response is not None
        )


@dataclass(frozen=True)
class PromptVariants:
    """Responses of a pair, each behind every one of `prefixes`. `coin_seed`: one response per record, by a fair coin that
    depends on the record's row alone; None takes both."""

    prefixes: tuple[str, ...]
    coin_seed: int | None

    def __call__(self, record: Record) -> tuple[Group, ...]:
        """One group, or one for each response."""
        texts = [record.labelled("chosen"), record.labelled("rejected")]
        if None in texts:
            return ()
        heads = self.coin_seed is not None and Random(f"{self.coin_seed}/{record.row}").random() < 0.5
        wanted = (0, 1) if self.coin_seed is None else (0 if heads else 1,)
        return tuple(
            Group(
                f"{record.row}/{number}",
                tuple(Example(record.prompt, response.text, prefix=prefix) for prefix in self.prefixes),
            )
            for number, response in enumerate(texts)
            if response is not None and number in wanted
        )
