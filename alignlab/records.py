"""The records of data sets, the groups that stages make of them, and the batches that reach the model.

`Record -> View -> Group -> Batch`. Shapes ride in the names: G groups, M members of a group, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


NO_CLASS = "none"
"""What stands for no class at all, where one may be asked for by name."""
ACROSS = "across"
"""What stands for all classes together, where a number is named by its class."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation. `role`: system | user | assistant."""

    role: str
    text: str


class Dialogue(str):
    """A prompt of several messages: as a text, what a plain format gets; `turns`, what a chat template gets."""

    turns: tuple[Turn, ...]

    def __new__(cls, text: str, turns: Sequence[Turn]) -> Dialogue:
        """The text with its turns, of which the last is the user's."""
        made = super().__new__(cls, text)
        made.turns = tuple(turns)
        return made

    def __getnewargs__(self) -> tuple[str, tuple[Turn, ...]]:  # type: ignore[override]
        """What a copy is made of."""
        return str(self), self.turns


@dataclass(frozen=True)
class Response:
    """One answer and what is known of it: a label, a score, any number of named attributes."""

    text: str
    label: str | None = None
    score: float | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelSet:
    """The labels that a text can have: one of `names`, or a number where there are no names. `numbers`: the names are numbers,
    so that it counts how far off an answer is."""

    names: tuple[str, ...]
    numbers: bool = False


@dataclass(frozen=True)
class Record:
    """One record of text: a prompt and its responses. `row` says where it came from, for messages and lookups; `task`, which of
    several sources it is from. `second`: a second source text, for tasks on pairs of texts; the response is then the label of
    both."""

    row: str
    prompt: str
    responses: tuple[Response, ...]
    task: str | None = None
    second: str | None = None

    @staticmethod
    def pair(row: str, prompt: str, chosen: str, rejected: str) -> Record:
        """A record of two answers of which the first is preferred."""
        return Record(row, prompt, (Response(chosen, label="chosen"), Response(rejected, label="rejected")))

    def labelled(self, label: str) -> Response | None:
        """The first response that carries this label."""
        return next((response for response in self.responses if response.label == label), None)


@dataclass(frozen=True)
class Example:
    """One prompt and response to encode. `control`: the class that it is an example of, where a stage learns classes.
    `prefix`: a
    text in front of the prompt, behind BOS; it is tokenised by itself, so the rest has the same ids with every prefix.
    `second`: a second source text."""

    prompt: str
    response: str
    control: str | None = None
    prefix: str = ""
    second: str | None = None


@dataclass(frozen=True)
class Group:
    """Examples that travel together through batching: the two sides of a pair, or one example alone."""

    row: str
    members: tuple[Example, ...]


View = Callable[[Record], Sequence[Group]]
"""How a stage sees a record: its groups. None of them: the record has nothing for this view, which is counted."""


@dataclass(frozen=True)
class Encoded:
    """One example as ids. `start`: position of the first response token. `moved`: the response would merge with the prompt,
    so it is tokenised apart. `head`: leading tokens that a cut leaves alone, BOS and the prefix. Of a classifier, whose ids are
    the source alone: `target`, the number of the class, or the number itself; `types`, which source text each token belongs to,
    where the model asks."""

    ids: tuple[int, ...]
    start: int
    moved: bool = False
    control: str | None = None
    head: int = 0
    target: float | None = None
    types: tuple[int, ...] = ()


@dataclass(frozen=True)
class EncodedGroup:
    """A group as ids; `reference` holds one log-probability (nats, summed over the response) per member, if cached. `task`: the
    source that it is from, where there are several."""

    row: str
    members: tuple[Encoded, ...]
    reference: tuple[float, ...] | None = None
    task: str | None = None

    @property
    def length(self) -> int:
        """Tokens of the longest member."""
        return max(len(member.ids) for member in self.members)

    @property
    def response_tokens(self) -> int:
        """Response tokens of all members together; a first token has nothing that predicts it and is not counted."""
        return sum(len(member.ids) - max(member.start, 1) for member in self.members)


@dataclass(frozen=True)
class Batch:
    """What reaches the model: ids padded on the right, members of a group sharing their first `prefix_G` tokens.

    `step_groups` and `step_tokens` are the sizes of the whole optimiser step that this (micro-)batch is a part of, so that
    every loss and metric is written as this batch's share of the step, and shares add up under accumulation. `controls`: the
    class of each member, groups after one another, where the members have one; what it looks like is the policy's business.
    `target_GM`, `types_GMT`: a classifier's targets and token types (see Encoded).
    """

    ids_GMT: Tensor
    length_GM: Tensor
    start_GM: Tensor
    prefix_G: Tensor
    rows: tuple[str, ...]
    step_groups: int
    step_tokens: int
    reference_GM: Tensor | None = None
    controls: tuple[str, ...] | None = None
    target_GM: Tensor | None = None
    types_GMT: Tensor | None = None

    def member(self, number: int) -> Batch:
        """The same groups with one of their members alone; the sizes of the step stay those of the whole."""
        one = slice(number, number + 1)
        length_GM = self.length_GM[:, one]
        return replace(
            self,
            ids_GMT=self.ids_GMT[:, one, : int(length_GM.max())],
            length_GM=length_GM,
            start_GM=self.start_GM[:, one],
            reference_GM=None if self.reference_GM is None else self.reference_GM[:, one],
            controls=None if self.controls is None else self.controls[number :: self.ids_GMT.shape[1]],
            target_GM=None if self.target_GM is None else self.target_GM[:, one],
            types_GMT=None if self.types_GMT is None else self.types_GMT[:, one, : int(length_GM.max())],
        )

    def to(self, device: Any) -> Batch:
        """The same batch on another device."""
        if self.ids_GMT.device == device:
            return self
        moved = {name: value.to(device) for name, value in vars(self).items() if hasattr(value, "device")}
        return replace(self, **moved)


@dataclass(frozen=True)
class Loss:
    """What an objective returns: a scalar to minimise and named scalars to log, each this batch's share of its step."""

    value: Tensor
    metrics: Mapping[str, Tensor]
